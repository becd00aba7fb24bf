"""The demo's child processes: workers, as anybody runs them, and the receiver.

Reads: what the receiver reports, the exit codes of the workers. Writes: the receiver's script; a log a child.
Guarantee: a child gets an environment of its own, is in a session of its own (Ctrl-C is for the demo alone),
and ends with its block.
If it dies: the children see the end of their standard input and end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast
from uuid import UUID

import outbox_worker
from outbox_worker.errors import OutboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from outbox_worker.demo.place import Place

STOP_SECONDS = 8
REPORT_SECONDS = 15
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "LD_LIBRARY_PATH")
WORKER_SETTINGS = {
    "OUTBOX_ALLOW_NETWORKS": "127.0.0.1/32",
    "OUTBOX_REQUEST_TIMEOUT_SECONDS": "8",
    "OUTBOX_LEASE_SECONDS": "36",
    "OUTBOX_SETTLE_MARGIN_SECONDS": "2",
    "OUTBOX_DRAIN_SECONDS": "10",
}


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request as the receiver saw it; `at` is in monotonic seconds."""

    at: float
    path: str
    event_id: UUID
    body_id: str
    event_type: str
    workspace_id: str
    attempt_no: int
    standard_ok: bool
    own_ok: bool
    changed_refused: bool
    headers_expected: int
    headers_seen: int
    body_sha256: str
    status: int

    @property
    def accepted(self) -> bool:
        return 200 <= self.status <= 299


@dataclass(frozen=True, slots=True)
class Worker:
    process: subprocess.Popen[str]
    log: Path

    def check(self) -> None:
        """Raise OutboxError if it has ended."""
        if self.process.poll() is not None:
            raise died("a worker", self.process, self.log)


class Receiver:
    """The receiver process, and everything that it has reported."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log
        self.port = 0
        self.arrivals: list[Arrival] = []
        self.answered: Counter[tuple[str, bool]] = Counter()  # by path and whether 2xx
        self.changed = threading.Condition()
        self._told = 0
        self._on_arrival: Callable[[Arrival], None] = lambda _arrival: None
        self._reader = threading.Thread(target=self._read, name="receiver", daemon=True)
        self._reader.start()

    def tell(self, script: Mapping[str, Mapping[str, Any]]) -> None:
        """Give these paths a new script; it holds when this returns."""
        before = self._told
        stdin = cast("IO[str]", self.process.stdin)
        stdin.write(json.dumps(script) + "\n")
        stdin.flush()
        self.wait(lambda: self._told > before)

    def wait(self, reported: Callable[[], bool]) -> None:
        with self.changed:
            if not self.changed.wait_for(reported, REPORT_SECONDS):
                raise died("the receiver", self.process, self.log)

    def on_arrival(self, listener: Callable[[Arrival], None]) -> None:
        self._on_arrival = listener

    def accepted(self, path: str) -> set[UUID]:
        """Give the events that this path answered with 2xx."""
        return {
            arrival.event_id for arrival in list(self.arrivals) if arrival.path == path and arrival.accepted
        }

    def _read(self) -> None:
        for line in cast("IO[str]", self.process.stdout):
            said = json.loads(line)
            with self.changed:
                if "port" in said:
                    self.port = said["port"]
                elif "told" in said:
                    self._told += 1
                else:
                    arrival = Arrival(**said | {"event_id": UUID(said["event_id"])})
                    self.arrivals.append(arrival)
                    self.answered[arrival.path, arrival.accepted] += 1
                    self._on_arrival(arrival)
                self.changed.notify_all()


@contextmanager
def receiving(folder: Path) -> Iterator[Receiver]:
    log = folder / "receiver.log"
    # As a file, not a module: it is the customer's program and imports nothing of ours.
    program = Path(__file__).with_name("receiver.py")
    with child([str(program)], {}, log, stdout=subprocess.PIPE) as process:
        receiver = Receiver(process, log)
        receiver.wait(lambda: receiver.port > 0)
        yield receiver


@contextmanager
def working(place: Place, number: int) -> Iterator[Worker]:
    """Run one worker: `outbox-worker run`, in an environment with its settings and no others."""
    package = str(Path(outbox_worker.__file__).resolve().parents[1])
    settings = {
        **place.environment,
        **WORKER_SETTINGS,
        "OUTBOX_DATABASE_URL": place.logins["worker"],
        "OUTBOX_VAULT_KEY_FILE": str(place.key_file.resolve()),
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
    }
    log = place.folder / f"worker-{number}.log"
    command = ["-m", "outbox_worker", "run", "--processes", "1", "--until-stdin-ends"]
    with child(command, settings, log) as process:
        yield Worker(process, log)


@contextmanager
def child(
    words: list[str], environment: dict[str, str], log: Path, stdout: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run Python with these words, its output in the log; in the end terminate it, and kill it if it stays."""
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    with log.open("w") as output:
        process = subprocess.Popen(  # noqa: S603  (our own interpreter and our own words)
            [sys.executable, "-P", *words],
            stdin=subprocess.PIPE,
            stdout=stdout or output,
            stderr=output,
            text=True,
            env=passed_on | environment,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_SECONDS)
            finally:
                process.kill()
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    with suppress(BrokenPipeError):
                        if pipe is not None:
                            pipe.close()


def died(name: str, process: subprocess.Popen[str], log: Path) -> OutboxError:
    """Say what became of a child, with the end of its log."""
    code = process.poll()
    state = "does not answer" if code is None else f"ended with exit code {code}"
    said = log.read_text(errors="replace")[-800:].strip() or "nothing"
    return OutboxError(f"running {name} of the demo: it {state}; it said: {said}. The whole log is {log}.")
