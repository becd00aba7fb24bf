"""The stage: everything that the story needs is started, told, reckoned, and ended again.

Reads: a folder or a database URL. Writes: what `place` says; standard output.
Guarantee: 0 is returned only if every promise held; what was started has ended when this returns or
raises.
If it dies: workers and receiver end by themselves; the next run in the folder takes over server and data.
"""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from outbox_worker.demo.cast import ATTEMPTS, SCHEDULE_SECONDS, WORKSPACES
from outbox_worker.demo.children import receiving, working
from outbox_worker.demo.place import borrowed, prepare
from outbox_worker.demo.screen import Screen
from outbox_worker.demo.story import Story

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKERS = 2


def run(
    *,
    folder: Path | None = None,
    keep: bool = False,
    as_json: bool = False,
    database_url: str | None = None,
    answer: int | None = None,
    patience_seconds: float = 35,
) -> int:
    """Run the demo and give the exit code.

    `answer` is for tests: the receiver answers everything with this status. `patience_seconds` bounds all
    waits for the workers together.
    """
    screen = Screen(as_json=as_json)
    with endable(), ExitStack() as stack:
        place = prepare(stack, folder or Path(".outbox-demo"), database_url, screen.say)
        receiver = stack.enter_context(receiving(place.folder))
        stack.enter_context(borrowed(place, receiver.port))
        screen.loud(notices(receiver.port))
        story = Story(
            screen=screen,
            place=place,
            receiver=receiver,
            workers=[stack.enter_context(working(place, number)) for number in range(1, WORKERS + 1)],
            app=stack.enter_context(place.connect("app")),
            operator=stack.enter_context(place.connect("operator")),
            answer=answer,
            patience_seconds=patience_seconds,
        )
        with screen.live(story.facts.roles, receiver):
            story.tell()
        summary = story.reckon()
        screen.summary(summary)
        if keep:
            stay(screen, story)
        else:
            ours = "The data stay. To look around, run outbox-worker demo --keep, then:"
            theirs = "The data stay. To look around:"
            screen.look_around(theirs if database_url else ours, place.look_around)
        return 0 if summary.ok else 1


def notices(port: int) -> list[str]:
    delays = ", ".join(f"{seconds:g}" for seconds in SCHEDULE_SECONDS)
    return [
        f"FOR THIS DEMO ONLY: this database allows plain http, IP addresses as hosts, and port {port};",
        "workers may connect to 127.0.0.1. In production: https, public host names, the usual ports.",
        f"SHORTENED: retries come after {delays} s, instead of",
        f"30 s, 2 min, 10 min, 1 h, 4 h, 12 h, 24 h. It is {ATTEMPTS} attempts either way.",
    ]


@contextmanager
def endable() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: everything that it started ends first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = [  # nohup and a shell's & have some ignored, and mean it
        number
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]
    before = {number: signal.signal(number, signal.default_int_handler) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stay(screen: Screen, story: Story) -> None:
    """Leave everything running until Ctrl-C, and say what arrives."""
    example = """'message.received', '{"message": {"type": "text"}}'"""
    screen.look_around(
        "Everything keeps running. Look around, from another terminal:", story.place.look_around
    )
    screen.look_around(
        "Publish, and see it arrive here:", [f"select outbox.publish('{WORKSPACES[0]}', {example});"]
    )
    screen.look_around("Ctrl-C ends it.", [])
    story.receiver.on_arrival(screen.arrived)
    try:
        while True:
            story.check_workers()
            with story.receiver.changed:
                story.receiver.changed.wait(1)
    except KeyboardInterrupt:
        screen.say("ending the workers, the receiver and the server")
