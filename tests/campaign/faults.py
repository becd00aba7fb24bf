"""The faults: each a small function that breaks one thing for a while; the stage heals and records it.

Reads: the stage. Writes: signals, proxy modes, settings and locks of the database, moods of the receiver.
Guarantee: what a fault chooses comes from the generator it is given; what it changes beside proxies and moods it
puts back itself.
If it is wrong: a window is not broken, and the report says it was.
"""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from typing import TYPE_CHECKING

from tests.campaign.database_faults import (
    backends_terminated,
    database_killed,
    database_read_only,
    database_restarted,
    database_slow_and_workers_leave,
    database_way,
    disk_full,
    no_connection_left,
    old_snapshot_held,
    restart,
    table_locked,
)
from tests.campaign.lies import LIES_OF_A_FAULT
from tests.campaign.proxy import Mode
from tests.campaign.receiver import Answer
from tests.campaign.scene import DATABASE_SECONDS, LEASE_SECONDS, POLL_SECONDS
from tests.campaign.standby import standby_promoted
from tests.support import NXDOMAIN, SERVFAIL, Reply

if TYPE_CHECKING:
    import random

    from tests.campaign.stage import Stage
    from tests.campaign.workers import Place

BOUND = LEASE_SECONDS + POLL_SECONDS + 2
HALF_OPEN_BOUND = BOUND + 2 * (DATABASE_SECONDS + 10)
"""psycopg waits 5 s for a cancellation and 5 s for its effect; the next connection of the pool can be as dead."""


async def sigkill_one(stage: Stage, rng: random.Random) -> None:
    stage.fleet.signal(rng.choice(stage.fleet.places), signal.SIGKILL, "kill")


async def sigkill_all(stage: Stage, rng: random.Random) -> None:
    for place in stage.fleet.places:
        stage.fleet.signal(place, signal.SIGKILL, "kill")


async def sigstop(stage: Stage, rng: random.Random, leases: float = 2.0) -> None:
    place = rng.choice(stage.fleet.places)
    stage.fleet.signal(place, signal.SIGSTOP)
    await asyncio.sleep(leases * LEASE_SECONDS)
    stage.fleet.signal(place, signal.SIGCONT)


async def zombies_among_failures(stage: Stage, rng: random.Random) -> None:
    """Two of three are stopped with requests in flight that will fail; the third takes over and keeps failing."""
    for number in stage.endpoints("south"):
        stage.receiver.moods[number] = lambda _rng: Answer(500, seconds=1.0)
    await asyncio.sleep(1.5)
    stopped = rng.sample(stage.fleet.places, 2)
    for place in stopped:
        stage.fleet.signal(place, signal.SIGSTOP)
    await asyncio.sleep(1.6 * LEASE_SECONDS)
    for place in stopped:
        stage.fleet.signal(place, signal.SIGCONT)
    await asyncio.sleep(1)


async def power_cut(stage: Stage, rng: random.Random) -> None:
    """The server and all workers at once: what a claim promised must be on disk."""
    stopping = asyncio.create_task(asyncio.to_thread(stage.database.server.stop, "immediate"))
    await asyncio.sleep(rng.uniform(0, 0.1))
    await sigkill_all(stage, rng)
    await stopping
    await restart(stage, "immediate")


async def sigterm_while_receivers_are_late(stage: Stage, rng: random.Random) -> None:
    for one in stage.consumers:
        stage.receiver.moods[one.number] = lambda _rng: Answer(200, seconds=1.2)
    for place in stage.fleet.places:
        await asyncio.sleep(1.5)
        await stage.fleet.term(place)


async def sigstop_past_presence(stage: Stage, rng: random.Random) -> None:
    """Its shards have other owners, its leases are still good."""
    await sigstop(stage, rng, leases=rng.uniform(0.52, 0.68))


async def sigterm_under_load(stage: Stage, rng: random.Random) -> str:
    return f"left after {await stage.fleet.term(rng.choice(stage.fleet.places)):.1f} s"


async def sigterm_all_in_turn(stage: Stage, rng: random.Random) -> None:
    for place in stage.fleet.places:
        await stage.fleet.term(place)
        await asyncio.sleep(1.5)


async def killed_while_draining(stage: Stage, rng: random.Random) -> None:
    place = rng.choice(stage.fleet.places)
    stage.fleet.signal(place, signal.SIGTERM, "kill")
    await asyncio.sleep(rng.uniform(0, 0.3))
    stage.fleet.signal(place, signal.SIGKILL, "kill")


async def dies_at(stage: Stage, rng: random.Random, place_of_death: str) -> str:
    """A worker is replaced by one that dies there; what leads there is brought about."""
    place, kills = rng.choice(stage.fleet.places), stage.fleet.kills
    count = 1 if place_of_death in RARE else rng.randrange(1, 6)
    await stage.fleet.replace(place, dies_at=f"{place_of_death}#{count}")
    others = [one for one in stage.fleet.places if one is not place]
    if "reap" in place_of_death:
        await stop_with_requests_in_flight(stage, others)
    elif place_of_death == "draining":
        stage.fleet.signal(place, signal.SIGTERM, "kill")
    end = "never came there"
    for _ in range(180):
        await asyncio.sleep(0.1)
        if stage.fleet.kills > kills:
            end = "died there"
            break
    for other in others if "reap" in place_of_death else ():
        stage.fleet.signal(other, signal.SIGCONT)
    return end


async def stop_with_requests_in_flight(stage: Stage, places: list[Place]) -> None:
    """Their leases expire, and nobody but the one that is left can take over their endpoints and reap."""
    for one in stage.consumers:
        stage.receiver.moods[one.number] = lambda _rng: Answer(200, seconds=1.2)
    await asyncio.sleep(1.5)
    for place in places:
        stage.fleet.signal(place, signal.SIGSTOP)


RARE = frozenset({"reaping", "in reap", "draining", "in renew_presence"})
KILL_POINTS = (
    "claimed", "after fan_out", "in fan_out", "before fan_out", "in claim", "connect", "last byte", "sent", "settling",
    "in settle", "after settle", "reaping", "in reap", "draining", "in renew_presence",
)  # fmt: skip


def kill_point(name: str):
    fault = partial(dies_at, place_of_death=name)
    fault.__name__ = f"dies at: {name}"
    return fault


async def clock_off_by_an_hour(stage: Stage, rng: random.Random) -> None:
    await stage.fleet.replace(rng.choice(stage.fleet.places), clock_seconds=rng.choice((-3600.0, 3600.0)))
    await asyncio.sleep(4)


async def receivers_mood(stage: Stage, rng: random.Random, *, answer: Answer, seconds: float) -> None:
    for number in stage.endpoints("south"):
        stage.receiver.moods[number] = lambda _rng: answer
    await asyncio.sleep(seconds)


def receivers(name: str, answer: Answer, seconds: float = 5.0):
    fault = partial(receivers_mood, answer=answer, seconds=seconds)
    fault.__name__ = name
    return fault


async def receivers_lying(stage: Stage, rng: random.Random) -> None:
    """Wrong lengths, no HTTP at all, broken-off heads, interim answers without an end."""
    for number in stage.endpoints("south"):
        stage.receiver.moods[number] = lambda of: of.choice(LIES_OF_A_FAULT)
    await asyncio.sleep(6)


async def names_dead(stage: Stage, rng: random.Random, *, reply: Reply, seconds: float = 5.0) -> str:
    """The names of the south are not answered for; their connections are reset, so that they are asked for."""
    asked = len(stage.names.asked)
    for one in stage.consumers:
        if one.named and one.way == "south":
            stage.names.names[one.host] = [reply]
    await stage.south.set(Mode.RESET)
    await stage.south.set(Mode.PASS)
    await asyncio.sleep(seconds)
    return f"{len(stage.names.asked) - asked} questions"


def names(name: str, reply: Reply):
    fault = partial(names_dead, reply=reply)
    fault.__name__ = name
    return fault


async def south_way(stage: Stage, rng: random.Random, *, mode: Mode, seconds: float) -> None:
    await stage.south.set(mode)
    await asyncio.sleep(seconds)


def receiver_way(name: str, mode: Mode, seconds: float = 5.0):
    fault = partial(south_way, mode=mode, seconds=seconds)
    fault.__name__ = name
    return fault


async def calm(stage: Stage, rng: random.Random) -> None:
    await asyncio.sleep(4)


FAULTS = (
    sigkill_one, sigkill_all, power_cut, sigstop, sigstop_past_presence, zombies_among_failures, sigterm_while_receivers_are_late, sigterm_under_load, killed_while_draining, sigterm_all_in_turn,
    clock_off_by_an_hour, database_killed, database_restarted, backends_terminated, database_slow_and_workers_leave,
    database_read_only, no_connection_left, table_locked, old_snapshot_held, standby_promoted,
    disk_full,
    database_way("database slow", Mode.SLOW, 5),
    database_way("database black-holed", Mode.HOLD, 6),
    database_way("database half-open", Mode.VOID, 5, HALF_OPEN_BOUND),
    database_way("database one-way", Mode.MUTE, 5, HALF_OPEN_BOUND),
    database_way("database reset", Mode.RESET, 3),
    receivers("receivers down (503)", Answer(503)),
    receivers("receivers silent", Answer(0)),
    receivers("receivers dripping", Answer(200, drip=True)),
    receivers("receivers late", Answer(200, seconds=1.4)),
    receivers_lying,
    names("names silent", Reply(silent=True)),
    names("names failing", Reply(code=SERVFAIL)),
    names("names unknown", Reply(code=NXDOMAIN)),
    receiver_way("receivers slow", Mode.SLOW),
    receiver_way("receivers black-holed", Mode.HOLD),
    receiver_way("receivers half-open", Mode.VOID),
    receiver_way("receivers one-way", Mode.MUTE),
    receiver_way("receivers reset", Mode.RESET),
    *(kill_point(name) for name in KILL_POINTS),
)  # fmt: skip
BY_NAME = {fault.__name__: fault for fault in (*FAULTS, calm)}
