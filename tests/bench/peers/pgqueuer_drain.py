"""pgqueuer: asyncpg pool, drain mode, batches as large as what is in flight (they size its completion buffer too)."""

import aiohttp
import asyncpg
import uvloop
from pgqueuer import PgQueuer, types
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from wire import BODY, CHUNK, DSN, IN_FLIGHT, JOBS, POOL, begin, post, report


async def main() -> None:
    pool = await asyncpg.create_pool(DSN, min_size=4, max_size=POOL)
    queries = Queries(AsyncpgPoolDriver(pool))
    await queries.install()
    for start in range(0, JOBS, CHUNK):
        count = min(CHUNK, JOBS - start)
        await queries.enqueue(["hook"] * count, [BODY.encode()] * count, [0] * count)
    queuer = PgQueuer(AsyncpgPoolDriver(pool))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=IN_FLIGHT)) as session:

        @queuer.entrypoint("hook")
        async def hook(job: Job) -> None:
            await post(session, f"job_{job.id}", job.payload)

        began = begin()
        await queuer.run(batch_size=IN_FLIGHT, mode=types.QueueExecutionMode.drain)
        report(began)


uvloop.run(main())
