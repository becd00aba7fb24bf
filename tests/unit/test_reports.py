"""The minute's report counts every attempt once, whoever owns the endpoint by then."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from uuid import uuid4

from outbox_worker.limits import Lanes
from outbox_worker.upkeep import report_once

if TYPE_CHECKING:
    from collections.abc import Callable


class Reports:
    """Stands for the store: keeps what was reported."""

    def __init__(self) -> None:
        self.rows: list[dict] = []
        self.meanwhile: Callable[[], None] = lambda: None

    async def report(self, reports) -> None:
        self.meanwhile()
        self.rows += json.loads(json.dumps(reports))


async def test_attempts_at_an_endpoint_that_went_to_another_worker_are_reported_once():
    """Its shard changes hands between two reports: the counts do not go with the lane."""
    shards, reports, endpoint_id = {3}, Reports(), uuid4()
    lanes = Lanes(slots=10, endpoint_limit=5, host_limit=5, suspect_share=0.2, owned=shards)
    lane = lanes.lane(endpoint_id)
    lane.shard = 3
    lanes.answered(lane, lane.host, 7, 0)
    shards.clear()
    lanes.keep_only(shards)
    assert endpoint_id not in lanes.lanes
    for _ in range(2):
        await report_once(reports, lanes, everything=True)
    assert [(row["endpoint_id"], row["attempts"], row["successes"]) for row in reports.rows] == [
        (str(endpoint_id), 1, 1)
    ]


async def test_an_attempt_that_ends_while_a_report_is_written_is_in_the_next_one():
    """What was written is taken off the counts, not what has come since."""
    reports = Reports()
    lanes = Lanes(slots=10, endpoint_limit=5, host_limit=5, suspect_share=0.2)
    lane = lanes.lane(uuid4())
    lanes.answered(lane, lane.host, 7, 0)
    reports.meanwhile = lambda: lanes.refused(lane, lane.host, 900, 0)
    await report_once(reports, lanes, everything=True)
    reports.meanwhile = lambda: None
    await report_once(reports, lanes, everything=True)
    assert [(row["attempts"], row["successes"], sum(row["latency_counts"])) for row in reports.rows] == [
        (1, 1, 1),
        (1, 0, 1),
    ]
