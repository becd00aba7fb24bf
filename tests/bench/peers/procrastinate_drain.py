"""procrastinate: psycopg pool, one worker, finished jobs deleted, no LISTEN in a drain."""

import asyncio

import aiohttp
import procrastinate
import uvloop
from wire import BODY, CHUNK, DSN, IN_FLIGHT, JOBS, POOL, begin, post, report

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=DSN, min_size=4, max_size=POOL))
sessions: list[aiohttp.ClientSession] = []


@app.task(queue="hook", name="hook")
async def hook(number: int, body: str) -> None:
    await post(sessions[0], f"job_{number}", body.encode())


async def main() -> None:
    async with (
        app.open_async(),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=IN_FLIGHT)) as session,
    ):
        sessions.append(session)
        await app.schema_manager.apply_schema_async()
        for start in range(0, JOBS, CHUNK):
            jobs = ({"number": number, "body": BODY} for number in range(start, min(start + CHUNK, JOBS)))
            await hook.batch_defer_async(*jobs)
        await asyncio.sleep(1)
        began = begin()
        await app.run_worker_async(
            queues=["hook"],
            concurrency=IN_FLIGHT,
            wait=False,
            listen_notify=False,
            install_signal_handlers=False,
            delete_jobs="always",
        )
        report(began)


uvloop.run(main())
