"""Auto-disable that nobody is surprised by: five days of a failing endpoint, with a real worker and receivers.

Reads: what each path of the receiver got. Writes: the times in the endpoint's row, moved back instead of waited for.
Guarantee: told a day in, told when it is disabled, disabled by the commit of the attempt that decided it; nothing is lost.
If it is wrong: a customer finds out weeks later, or loses what was sent meanwhile.
"""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta

import pytest

from tests.support.factories import make_endpoint, publish, state_of
from tests.support.receiver import hold, status
from tests.support.waiting import eventually

OPERATIONAL = ["endpoint.failing", "endpoint.disabled", "delivery.dead"]
ONCE_MORE = [timedelta(milliseconds=20)]


def got(receiver, path: str) -> list[dict]:
    return [json.loads(request.body) for request in receiver.requests if request.path == path]


def told(shop) -> list[str]:
    """Every operational event there is."""
    return [
        row[0]
        for row in shop.execute(
            "select e.event_type from outbox.events e join outbox.event_types t on t.name = e.event_type"
            " where t.operational order by e.event_id"
        ).fetchall()
    ]


def row_of(shop, endpoint) -> tuple:
    return shop.execute(
        "select state, state_reason, failing_since is null from outbox.endpoints where endpoint_id = %s",
        [endpoint],
    ).fetchone()


def failing_for(shop, endpoint, since: str) -> None:
    shop.execute(
        "update outbox.endpoints set failing_since = now() - %s::interval where endpoint_id = %s",
        [since, endpoint],
    )


async def fails_again(shop, event_id, endpoint, attempt: int) -> None:
    """Retry now instead of later, until that attempt is recorded."""
    shop.execute(
        "update outbox.deliveries set next_attempt_at = now() where event_id = %s and endpoint_id = %s",
        [event_id, endpoint],
    )
    await eventually(
        lambda: shop.execute(
            "select 1 from outbox.recorded_attempts where event_id = %s and endpoint_id = %s and attempt_no = %s",
            [event_id, endpoint, attempt],
        ).fetchone()
    )


async def test_an_endpoint_that_has_failed_for_5_days_without_one_success_is_disabled(
    shop, receiver, working
):
    """Told after a day and at the end, by name and to its own workspace only; held, not lost; resumed with a slow start."""
    bad, _ = make_endpoint(shop, receiver.url + "bad")
    make_endpoint(shop, receiver.url + "ops", OPERATIONAL)
    make_endpoint(shop, receiver.url + "star", ["*"])
    make_endpoint(shop, receiver.url + "others", OPERATIONAL, workspace_id="ws_2")
    receiver.script("/bad", status(500))
    async with working():
        event_id = publish(shop)
        await fails_again(shop, event_id, bad, 1)
        assert row_of(shop, bad) == ("active", None, False)
        assert told(shop) == []

        failing_for(shop, bad, "25 hours")
        for attempt in (2, 3):  # the second is not told again
            await fails_again(shop, event_id, bad, attempt)
        (failing,) = await eventually(lambda: got(receiver, "/ops"))
        since, disables_at = (
            datetime.fromisoformat(failing["data"][name]) for name in ("failing_since", "disables_at")
        )
        assert (failing["type"], failing["data"]["endpoint_id"]) == ("endpoint.failing", str(bad))
        assert disables_at - since == timedelta(days=5)

        failing_for(shop, bad, "4 days 23:59")
        await fails_again(shop, event_id, bad, 4)
        assert row_of(shop, bad) == ("active", None, False)
        failing_for(shop, bad, "5 days 00:01")
        await fails_again(shop, event_id, bad, 5)
        assert row_of(shop, bad) == ("disabled", "failing", False)
        assert shop.execute(
            "select e.xmin = a.xmin from outbox.endpoints e join outbox.recorded_attempts a using (endpoint_id)"
            " where a.endpoint_id = %s and a.attempt_no = 5",
            [bad],
        ).fetchone() == (True,)  # one commit
        disabled = await eventually(lambda: got(receiver, "/ops")[1:])
        assert [(event["type"], event["data"]["reason"]) for event in disabled] == [
            ("endpoint.disabled", "failing")
        ]

        held = [publish(shop) for _ in range(20)]
        await eventually(lambda: len(got(receiver, "/star")) == 21)
        assert shop.execute(
            "select state, why, count(*) from outbox.delivery_log where endpoint_id = %s group by 1, 2", [bad]
        ).fetchall() == [("held", "endpoint disabled: failing", 21)]
        assert len(got(receiver, "/bad")) == 5

        answers = asyncio.Event()
        receiver.script("/bad", hold(answers))
        shop.execute(
            "update outbox.deliveries set next_attempt_at = now() where event_id = %s and endpoint_id = %s",
            [event_id, bad],
        )
        shop.execute("select outbox.resume_endpoint(%s)", [bad])
        assert row_of(shop, bad) == ("active", None, True)
        await eventually(lambda: len(got(receiver, "/bad")) == 6)
        other = publish(shop, "message.sent")
        await eventually(lambda: len(got(receiver, "/star")) == 22)
        assert len(got(receiver, "/bad")) == 6  # one request until it has answered
        answers.set()
        await eventually(
            lambda: all(state_of(shop, one, bad) == "delivered" for one in [event_id, *held, other])
        )
    assert {event["type"] for event in got(receiver, "/star")} == {"message.received", "message.sent"}
    assert got(receiver, "/others") == []
    assert told(shop) == ["endpoint.failing", "endpoint.disabled"]


async def test_one_success_in_five_days_is_enough(shop, receiver, working):
    """An answer of 2xx on the last day: failing starts anew, and so does the day until it is told."""
    endpoint, _ = make_endpoint(shop, receiver.url)
    receiver.script("/", status(500), status(200), status(500))
    async with working():
        first = publish(shop)
        await fails_again(shop, first, endpoint, 1)
        failing_for(shop, endpoint, "6 days")
        shop.execute("update outbox.deliveries set next_attempt_at = now() where event_id = %s", [first])
        await eventually(lambda: state_of(shop, first) == "delivered")
        assert row_of(shop, endpoint) == ("active", None, True)
        second = publish(shop)
        await fails_again(shop, second, endpoint, 1)
        assert row_of(shop, endpoint) == ("active", None, False)
    assert told(shop) == []


async def test_a_dead_delivery_is_told_by_name_and_operational_events_beget_none(shop, receiver, working):
    """`delivery.dead` goes out once; that it dies itself at another endpoint is told to nobody."""
    dies, _ = make_endpoint(shop, receiver.url + "dies", retry_schedule=ONCE_MORE)
    make_endpoint(shop, receiver.url + "ops", OPERATIONAL)
    deaf, _ = make_endpoint(shop, receiver.url + "deaf", OPERATIONAL, retry_schedule=ONCE_MORE)
    receiver.script("/dies", status(500))
    receiver.script("/deaf", status(500))
    async with working():
        event_id = publish(shop)
        await eventually(lambda: state_of(shop, event_id, dies) == "dead")
        (dead,) = await eventually(lambda: got(receiver, "/ops"))
        await eventually(lambda: state_of(shop, dead["id"], deaf) == "dead")
        after = publish(shop, "delivery.dead", dead["data"])  # whatever begot more would come before it
        await eventually(lambda: state_of(shop, after, deaf) == "dead")
    assert (dead["type"], dead["data"]["event_id"], dead["data"]["endpoint_id"]) == (
        "delivery.dead",
        str(event_id),
        str(dies),
    )
    assert (dead["data"]["attempts"], dead["data"]["last_status"], dead["data"]["reason"]) == (
        2,
        500,
        "exhausted",
    )
    assert told(shop) == ["delivery.dead"] * 2
    assert len(got(receiver, "/ops")) == 2


@pytest.mark.parametrize("pattern", ["*", "delivery.*", "endpoint.*"])
async def test_no_pattern_subscribes_to_operational_events(shop, receiver, working, pattern):
    """Only the name does: neither `*` nor a prefix gets what concerns the endpoints themselves."""
    make_endpoint(shop, receiver.url + "dies", retry_schedule=ONCE_MORE)
    make_endpoint(shop, receiver.url + "ops", OPERATIONAL)
    make_endpoint(shop, receiver.url + "pattern", [pattern])
    receiver.script("/dies", status(500))
    async with working():
        publish(shop)
        await eventually(lambda: got(receiver, "/ops"))
        await eventually(
            lambda: shop.execute("select count(*) from outbox.open_deliveries").fetchone()[0] == 0
        )
    assert {event["type"] for event in got(receiver, "/pattern")} <= {"message.received"}
