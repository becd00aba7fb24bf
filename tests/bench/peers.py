"""peers: the same useful work by procrastinate, pgqueuer and graphile-worker, in the same run, beside ours.

Reads: PyPI and npm once, into a folder that is kept. Writes: a database for each peer on one server.
Guarantee: the same receiver, the same number of deliveries of about 500 bytes, an HMAC and a POST each; rounds take
turns; each peer's best of the numbers in flight counts. What each leaves out stands beside its figure.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from subprocess import PIPE
from threading import Timer
from typing import TYPE_CHECKING

from tests.bench import load
from tests.bench.figures import Figure, Plan, Report, median, say, spread
from tests.bench.place import open_place
from tests.bench.receiver import running
from tests.bench.throughput import drain

if TYPE_CHECKING:
    from tests.bench.place import Place

PEERS = Path(__file__).with_name("peers")
IN_FLIGHT = (64, 256)
ROUNDS = 3
LEAVES_OUT = {
    "graphile-worker": "no attempt log (a finished job is deleted), no fan-out, no fencing token, no fairness",
    "pgqueuer": "no request or response kept (one log row a transition), no fan-out, no fencing token",
    "procrastinate": "no attempt log (finished jobs are deleted), no fan-out, no fencing token",
}
SIZES = {"graphile-worker": 1.0, "pgqueuer": 1.0, "procrastinate": 0.1}
"""Share of the deliveries: a peer that takes ten times as long gets a tenth."""
TIMEOUT = 600


def run(plan: Plan) -> Report:
    deliveries = int(plan.seconds(default=200, short=40) * 150)
    commands = installed()
    ours: list[dict[str, float]] = []
    theirs: dict[str, dict[int, list[dict[str, float]]]] = {
        name: {c: [] for c in IN_FLIGHT} for name in commands
    }
    with open_place(plan) as place:
        load.make_endpoints(place, place.receiver.url)
        for _ in range(ROUNDS):
            with place.worker() as worker:
                load.warm_up(place)
                ours.append(drain(place, worker, deliveries // load.MATCHING))
            for name, command in commands.items():
                for in_flight in IN_FLIGHT:
                    found = one_drain(place, command, int(deliveries * SIZES[name]), in_flight)
                    theirs[name][in_flight].append(found)
                    say(f"{name}, {in_flight} in flight: {found['per_second']:.0f}/s")
    rates = rates_of(ours)
    our_rate = median(rates)
    size = f"{deliveries:,} deliveries"
    figures = [Figure("outbox-worker", our_rate, "deliveries/s", "", f"{spread(rates)}; {size}; all of it")]
    figures.append(cpu_of("outbox-worker", ours))
    for name, by_number in theirs.items():
        best = max(by_number, key=lambda number: median(rates_of(by_number[number])))
        rates = rates_of(by_number[best])
        note = f"{spread(rates)}; {best} in flight; {LEAVES_OUT[name]}"
        figures.append(Figure(name, median(rates), "jobs/s", "", note))
        figures.append(cpu_of(name, by_number[best]))
        reach = "≥ 1.25" if name == "graphile-worker" else ""
        figures.append(Figure(f"outbox-worker against {name}", our_rate / median(rates), "", reach))
    detail = {"ours": ours, **{name: {str(c): r for c, r in found.items()} for name, found in theirs.items()}}
    return Report("peers", plan.seed, figures, detail)


def rates_of(rounds: list[dict[str, float]]) -> list[float]:
    return [one["per_second"] for one in rounds]


def cpu_of(name: str, rounds: list[dict[str, float]]) -> Figure:
    of_worker, of_server = (
        median([one[key] for one in rounds]) for key in ("worker_cpu_per_1000", "server_cpu_per_1000")
    )
    note = f"{of_worker:.4f} of its process, {of_server:.4f} of PostgreSQL"
    return Figure(f"{name}, CPU without the receiver", of_worker + of_server, "s per 1,000", "", note)


def one_drain(place: Place, command: list[str], jobs: int, in_flight: int) -> dict[str, float]:
    """Give the jobs per second of one peer on a fresh database of its own, and what CPU they took."""
    place.db.execute("drop database if exists peer with (force)")
    place.db.execute("create database peer")
    place.db.execute("checkpoint")
    environment = {
        **os.environ,
        "DSN": place.server.dsn("peer"),
        "URL": f"{place.receiver.url}/hook",
        "JOBS": str(jobs),
        "IN_FLIGHT": str(in_flight),
        "NO_LOG_SUCCESS": "1",
    }
    before = place.receiver.count()
    with running(command, env=environment, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) as process:
        late = Timer(TIMEOUT, process.kill)
        late.start()
        began = process.stdout.readline() == "draining\n"  # its jobs are in the database
        server_cpu = place.server_cpu_seconds()
        said, complaint = process.communicate("go\n")
        late.cancel()
    lines = said.strip().splitlines()
    if process.returncode or not began or not lines:
        raise RuntimeError(
            f"ran the peer {command[-1]}: it ended with {process.returncode}: {complaint[-1500:]}"
        )
    server_cpu = place.server_cpu_seconds() - server_cpu
    arrived = place.receiver.count() - before
    if arrived != jobs:
        raise RuntimeError(f"counted the requests of {command[-1]}: {arrived} arrived, {jobs} were due")
    told = json.loads(lines[-1])
    return {
        "per_second": jobs / told["drain_seconds"],
        "worker_cpu_per_1000": told["cpu_seconds"] / jobs * 1000,
        "server_cpu_per_1000": server_cpu / jobs * 1000,
    }


def installed() -> dict[str, list[str]]:
    """Install what is missing; a peer that cannot be installed is left out, and that is said."""
    folder = Path(tempfile.gettempdir()) / f"outbox-bench-peers-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"installing the peers in {folder}: somebody else made it. Remove it.")
    commands = {}
    python = folder / "venv" / "bin" / "python"
    if attempt(folder / "venv.done", "procrastinate and pgqueuer", lambda: make_venv(folder)):
        commands["procrastinate"] = [str(python), str(PEERS / "procrastinate_drain.py")]
        commands["pgqueuer"] = [str(python), str(PEERS / "pgqueuer_drain.py")]
    if shutil.which("npm") and attempt(folder / "node.done", "graphile-worker", lambda: make_node(folder)):
        shutil.copy(PEERS / "graphile_drain.mjs", folder / "node")
        commands["graphile-worker"] = ["node", str(folder / "node" / "graphile_drain.mjs")]
    return commands


def attempt(mark: Path, name: str, make) -> bool:
    wanted = "".join(sorted(path.read_text() for path in PEERS.iterdir() if path.suffix in {".txt", ".json"}))
    if mark.exists() and mark.read_text() == wanted:
        return True
    try:
        make()
    except (OSError, subprocess.SubprocessError) as error:
        say(f"LEFT OUT: {name} could not be installed ({error})")
        return False
    mark.write_text(wanted)
    return True


def make_venv(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip = [folder / "venv" / "bin" / "python", "-m", "pip", "install", "-q", "-r", PEERS / "requirements.txt"]
    subprocess.run(pip, check=True)


def make_node(folder: Path) -> None:
    (folder / "node").mkdir(exist_ok=True)
    shutil.copy(PEERS / "package.json", folder / "node")
    subprocess.run(["npm", "install", "--silent", "--no-fund", "--no-audit"], cwd=folder / "node", check=True)
