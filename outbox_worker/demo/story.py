"""The story: transactions become signed webhooks; failures are retried, die, are replayed; then the reckoning.

Reads: the database as app and operator, what the receiver reports. Writes: business rows, events, one replay.
Guarantee: no wait outlasts the patience; what has not happened by then is a promise that did not hold.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from outbox_worker.demo.cast import ATTEMPTS, HEALTHY, NEVER, SCHEDULE_SECONDS, WORKSPACES, Event, cast
from outbox_worker.demo.place import one
from outbox_worker.demo.promises import Facts, judge, wanted
from outbox_worker.demo.summary import Summary, summarize

if TYPE_CHECKING:
    from collections.abc import Callable

    from outbox_worker.demo.cast import Role
    from outbox_worker.demo.children import Receiver, Worker
    from outbox_worker.demo.place import Connection, Place
    from outbox_worker.demo.screen import Screen

PACE_SECONDS = 0.03
RETRIED_FIRST = ("order.", "review.")  # the rest is published while these are retried
ROLL_BACK = "message.received"


@dataclass(slots=True)
class Story:
    screen: Screen
    place: Place
    receiver: Receiver
    workers: list[Worker]
    app: Connection
    operator: Connection
    answer: int | None
    patience_seconds: float
    facts: Facts = field(default_factory=lambda: Facts(uuid4(), cast(secrets.token_hex(8)), []))
    scripts: dict[str, dict[str, Any]] = field(default_factory=dict)  # the receiver's, by path

    def tell(self) -> None:
        self.create_endpoints()
        self.until("workers listen", self.workers_are_up)
        self.send_test_events()
        self.do_business()
        self.await_recovery()
        self.await_dead_letters()
        self.replay()
        self.until("nothing is left to do", lambda: self.left_to_do() == 0)

    def create_endpoints(self) -> None:
        signature_header = one(self.place.owner, "select signature_header from outbox.settings")
        for role in self.facts.roles:
            endpoint_id, secret = self.app.execute(
                "select endpoint_id, secret from outbox.create_endpoint(workspace_id => %s, url => %s,"
                " event_types => %s, headers => %s::jsonb, filter => %s::jsonpath,"
                " retry_schedule => %s::interval[])",
                [
                    role.workspace_id,
                    f"http://127.0.0.1:{self.receiver.port}{role.path}",
                    list(role.event_types),
                    json.dumps(role.headers),
                    role.filter,
                    [f"{seconds} s" for seconds in SCHEDULE_SECONDS],
                ],
            ).fetchall()[0]
            self.facts.endpoints[role.path] = endpoint_id
            self.facts.secrets += [secret, *role.headers.values()]
            self.scripts[role.path] = {
                "secret": secret,
                "headers": role.headers,
                "signature_header": signature_header,
                "answers": [self.answer] if self.answer else list(role.answers),
            }
        self.receiver.tell(self.scripts)
        self.screen.step(
            f"{len(self.facts.roles)} endpoints in {len(WORKSPACES)} workspaces; "
            "their secrets and custom headers are sealed"
        )

    def workers_are_up(self) -> bool:
        names = [f"{socket.gethostname()}:{worker.process.pid}" for worker in self.workers]
        query = "select count(*) from outbox.workers where state = 'live' and name = any (%s)"
        return bool(one(self.operator, query, names) == len(names))

    def send_test_events(self) -> None:
        self.screen.step("A test event for every healthy endpoint")
        for role in self.facts.roles:
            if role.answers == HEALTHY:
                endpoint_id = self.facts.endpoints[role.path]
                self.facts.test_events[role.path] = one(
                    self.app, "select outbox.send_test_event(%s)", endpoint_id
                )
        self.until("the test events arrive", lambda: self.received(set(self.facts.test_events.values())))

    def do_business(self) -> None:
        """Publish every event type of the catalogue in every workspace, each with a business row."""
        examples = self.app.execute(
            "select name, example::text from outbox.event_types"
            " where built_in and not operational order by name"
        ).fetchall()
        examples.sort(key=lambda row: not row[0].startswith(RETRIED_FIRST))
        self.facts.event_types = [name for name, _ in examples]
        self.screen.step(
            f"{len(examples)} event types in each of {len(WORKSPACES)} workspaces: "
            "begin; insert into shop.actions …; select outbox.publish(…); commit"
        )
        for name, payload in examples:
            for workspace_id in WORKSPACES:
                self.commit(workspace_id, name, payload)
            if name == "message.received":
                picture = json.loads(payload)
                picture["message"] |= {"type": "image", "text": None}
                self.commit(WORKSPACES[0], name, json.dumps(picture))
            if name == ROLL_BACK:
                self.screen.say("… and one that is rolled back, after it has published")
                with self.app.transaction(force_rollback=True):
                    self.facts.rolled_back.append(self.act(WORKSPACES[0], name, payload))
            self.check_workers()

    def commit(self, workspace_id: str, event_type: str, payload: str) -> None:
        with self.app.transaction():
            event_id = self.act(workspace_id, event_type, payload)
        kind = json.loads(payload).get("message", {}).get("type")
        self.facts.events.append(Event(event_id, workspace_id, event_type, kind, time.monotonic()))
        time.sleep(PACE_SECONDS)  # to be watched; and the figure shown is of an idle system

    def act(self, workspace_id: str, event_type: str, payload: str) -> UUID:
        """Write the business row and publish its event, in the caller's transaction."""
        self.app.execute(
            "insert into shop.actions (run_id, workspace_id, what) values (%s, %s, %s)",
            [self.facts.run_id, workspace_id, event_type],
        )
        published = one(
            self.app, "select outbox.publish(%s, %s, %s::jsonb)", workspace_id, event_type, payload
        )
        return UUID(str(published))

    def await_recovery(self) -> None:
        self.screen.step("Waiting for what fails twice, and recovers")
        others = [role for role in self.facts.roles if role.answers != NEVER]
        self.until(
            "everything else is delivered",
            lambda: all(self.receiver.accepted(role.path) >= wanted(self.facts, role) for role in others),
        )

    def await_dead_letters(self) -> None:
        role = self.never
        self.screen.step(f"Waiting for {role.path} to use up its {ATTEMPTS} attempts")
        due = len(wanted(self.facts, role))
        self.until("its deliveries are dead letters", lambda: len(self.dead_letters()) >= due)
        rows = self.dead_letters()
        self.facts.dead = {event_id for event_id, _ in rows}
        self.facts.dead_attempts = [attempts for _, attempts in rows]
        self.screen.say(f"{len(rows)} dead letters; the workspace is told by delivery.dead")

    @property
    def never(self) -> Role:
        return next(role for role in self.facts.roles if role.answers == NEVER)

    def dead_letters(self) -> list[tuple[Any, ...]]:
        query = "select event_id, attempt_count from outbox.dead_letters where endpoint_id = %s"
        return self.operator.execute(query, [self.facts.endpoints[self.never.path]]).fetchall()

    def replay(self) -> None:
        """Heal the receiver; then the operator's UPDATE."""
        role = self.never
        self.scripts[role.path]["answers"] = [self.answer or 200]
        self.receiver.tell({role.path: self.scripts[role.path]})
        self.screen.step(
            f"{role.path} is healed, so the operator replays: update outbox.deliveries"  # noqa: S608  (shown, not run)
            " set state = 'pending' where state = 'dead' and endpoint_id = …"
        )
        self.facts.replayed = self.operator.execute(
            "update outbox.deliveries set state = 'pending' where state = 'dead' and endpoint_id = %s",
            [self.facts.endpoints[role.path]],
        ).rowcount
        self.until(
            "the dead letters are delivered",
            lambda: self.receiver.accepted(role.path) >= wanted(self.facts, role),
        )

    def reckon(self) -> Summary:
        seconds = self.screen.seconds
        self.receiver.tell({})  # its answer comes after all that it has to report
        self.facts.arrivals = list(self.receiver.arrivals)
        promises = judge(self.facts, self.operator, self.place.owner)
        return summarize(
            self.facts, self.operator, promises, seconds=seconds, look_around=self.place.look_around
        )

    def check_workers(self) -> None:
        for worker in self.workers:
            worker.check()

    def received(self, events: set[UUID]) -> bool:
        return events <= {arrival.event_id for arrival in list(self.receiver.arrivals) if arrival.accepted}

    def left_to_do(self) -> int:
        """Count what is not fanned out or not finished, in one look: a fan-out moves the one to the other."""
        query = """select (select coalesce(sum(f.waiting), 0) from outbox.fan_out_backlog f
                           where f.workspace_id = any (%s))
                        + (select count(*) from outbox.deliveries d
                           where d.state = 'pending' and d.endpoint_id = any (%s))"""
        return int(one(self.operator, query, list(WORKSPACES), list(self.facts.endpoints.values())))

    def until(self, what: str, done: Callable[[], bool]) -> None:
        """Wait until it is so, as long as the patience lasts: the reckoning says what did not happen."""
        began = time.monotonic()
        while not done():
            self.check_workers()
            if time.monotonic() - began > self.patience_seconds:
                self.screen.say(f"gave up waiting until {what}", "bold red")
                self.patience_seconds = 0
                return
            with self.receiver.changed:
                self.receiver.changed.wait(0.05)
        self.patience_seconds -= time.monotonic() - began
