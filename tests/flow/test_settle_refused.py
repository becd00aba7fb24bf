"""A settlement that the database refuses, whatever the reason is called, stops no other and no worker.

Reads and writes: a clone of the template database with a trigger that refuses; a receiver on loopback.
Guarantee: each other attempt of the batch is recorded; the refused one is logged with its SQLSTATE and keeps its lease.
If it is wrong: a trigger that somebody adds to a table of ours ends the worker.
"""

from __future__ import annotations

from outbox_worker import telemetry
from tests.support.factories import make_endpoint, publish, state_of
from tests.support.waiting import eventually

# SQLSTATEs of each class of psycopg's, and, first, two that it has no class for: ours, and somebody's.
REFUSALS = ("OB008", "ZZ001", "22000", "23514", "42501", "P0001", "0A000", "XX000")
REFUSES = """
create function public.refuse() returns trigger language plpgsql as $$
declare state text := (select payload ->> 'refuse' from outbox.events e where e.event_id = new.event_id);
begin
    if state is not null then raise exception using errcode = state, message = 'refused'; end if;
    return new;
end $$;
alter function public.refuse() security definer;
create trigger refuse before insert on outbox.recorded_attempts for each row execute function public.refuse();
"""


async def test_one_refused_settlement_stops_no_other_whatever_its_sqlstate(
    shop, receiver, working, monkeypatch
):
    """A batch with one refused row of each kind: the rest is recorded, and the worker goes on."""
    failed = {}
    monkeypatch.setattr(
        telemetry, "settlement_failed", lambda event_id, _endpoint, error: failed.update({event_id: error})
    )
    make_endpoint(shop, receiver.url)
    shop.execute(REFUSES)
    refused = {publish(shop, payload={"refuse": state}): state for state in REFUSALS}
    good = [publish(shop) for _ in range(20)]
    async with working():
        await eventually(lambda: all(state_of(shop, event) == "delivered" for event in good))
        await eventually(lambda: len(failed) == len(REFUSALS))
        after = publish(shop)
        await eventually(lambda: state_of(shop, after) == "delivered")
    assert {event: error.rsplit(": ", 1)[1] for event, error in failed.items()} == refused
    assert {state_of(shop, event) for event in refused} == {"pending"}
