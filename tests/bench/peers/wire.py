"""What each Python peer does for a job: sign the body as we do, POST it, accept a 2xx.

Reads: DSN, URL, JOBS, IN_FLIGHT. Writes: a line when the drain begins, a JSON line with its seconds and this process's CPU.
Guarantee: body and signature are of the same size and kind as outbox-worker's.
If it is wrong: the comparison is unfair.
"""

import base64
import hashlib
import hmac
import json
import os
import sys
import time

DSN, URL = os.environ["DSN"], os.environ["URL"]
JOBS, IN_FLIGHT = int(os.environ["JOBS"]), int(os.environ["IN_FLIGHT"])
POOL = 16
CHUNK = 500
KEY = b"\0" * 32
TEXT = "The quick brown fox jumps over the lazy dog. " * 8
BODY = json.dumps(
    {
        "type": "message.received",
        "workspace_id": "ws_42",
        "data": {
            "message": {"id": 1, "type": "text", "direction": "in", "body": TEXT},
            "contact": {"phone": "+4915112345678", "name": "Erika Mustermann"},
        },
    }
)


def signed(job: str, body: bytes) -> dict[str, str]:
    at = str(int(time.time()))
    code = hmac.new(KEY, f"{job}.{at}.".encode() + body, hashlib.sha256).digest()
    return {
        "content-type": "application/json",
        "webhook-id": job,
        "webhook-timestamp": at,
        "webhook-signature": "v1," + base64.b64encode(code).decode(),
    }


async def post(session, job: str, body: bytes) -> None:
    async with session.post(URL, data=body, headers=signed(job, body)) as answer:
        await answer.read()
        if answer.status != 200:
            raise RuntimeError(f"posting job {job}: status {answer.status}")


def begin() -> tuple[float, float]:
    """Say that the jobs are there and the drain begins, and wait until that was read."""
    sys.stdout.write("draining\n")
    sys.stdout.flush()
    sys.stdin.readline()
    return time.perf_counter(), time.process_time()


def report(began: tuple[float, float]) -> None:
    seconds, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    sys.stdout.write(json.dumps({"jobs": JOBS, "drain_seconds": seconds, "cpu_seconds": cpu}) + "\n")
