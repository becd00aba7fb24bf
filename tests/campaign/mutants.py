"""python -m tests.campaign.mutants: break the worker or its SQL on purpose; each time a named invariant must fail.

Reads: this tree. Writes: a copy of it with one fault in it, for each mutant; a table on standard output.
Guarantee: exit code 0 if and only if every mutant failed one of its invariants and the unchanged tree none.
If it is wrong: a green campaign says nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 280


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    faults: tuple[str, ...]
    fails: tuple[str, ...]  # any of these invariants


MUTANTS = (
    Mutant(
        "no token in the settle", "sql/queries/settle.sql",
        "          and d.lease_token = i.lease_token\n", "",
        ("zombies_among_failures",) * 4, ("tokens_fence",),
    ),
    Mutant(
        "settled before it is sent", "outbox_worker/deliver.py",
        "    outcome = await send(request)\n",
        "    __import__('asyncio').get_running_loop().create_task(send(request))\n    outcome = Outcome(200, None, '', (), b'', 1.0)\n",
        ("calm",), ("every_status_was_journalled",),
    ),
    Mutant(
        "a claim that is not committed", "outbox_worker/store.py",
        "borrow(self.pool, self.deadline) as connection:\n            cursor = psycopg.AsyncRawCursor(connection)",
        "borrow(self.pool, self.deadline) as connection, connection.transaction(force_rollback=name == 'claim'):\n"
        "            cursor = psycopg.AsyncRawCursor(connection)",
        ("calm",), ("duplicates_are_explained", "nothing_lost"),
    ),
    Mutant(
        "a lease shorter than the deadline", "sql/queries/fan_out.sql",
        "make_interval(secs => %(lease_seconds)s::float8)", "make_interval(secs => %(lease_seconds)s::float8 / 10)",
        ("receivers late",), ("lost_leases_have_a_cause", "duplicates_are_explained"),
    ),
    Mutant(
        "polling by id > the last one seen", "outbox_worker/reader.py",
        "        if now - self.swept_at >= self.sweep_pause and now >= self.sweep_from:\n", "        if False:\n",
        ("calm", "calm", "calm"), ("nothing_lost",),
    ),
    Mutant(
        "started requests given back on SIGTERM", "outbox_worker/worker.py",
        "    flights.draining = True\n",
        "    flights.draining = True\n    flights.unstarted.extend(getattr(flights, 'flying', []))\n    flights.settle_wanted.set()\n",
        ("sigterm_while_receivers_are_late",), ("orderly_ends_duplicate_nothing",),
    ),
    Mutant(
        "a body rendered anew at each try", "sql/definitions/50_publish.sql",
        "to_char(created_at at time zone", "to_char(clock_timestamp() at time zone",
        ("calm",), ("every_try_is_the_same",),
    ),
    Mutant(
        "a text column for the response's body", "sql/queries/settle.sql",
        "h.response_headers::jsonb, h.response_body", "h.response_headers::jsonb, convert_to(convert_from(h.response_body, 'UTF8'), 'UTF8')",
        ("calm",), ("lost_leases_have_a_cause",),
    ),
    Mutant(
        "NOTIFY trusted without polling", "outbox_worker/fan_out.py",
        "        pause = poll_seconds * jitter if", "        pause = 3600.0\n        _ = poll_seconds * jitter if",
        ("database half-open",) * 3, ("nothing_lost", "workers_recover"),  # a worker that is awake then is not struck
    ),
    Mutant(
        "lost leases leave no trace", "sql/queries/reap.sql",
        "    from expired x\n), put_back", "    from expired x where false\n), put_back",
        ("dies at: sent", "sigkill_all", "dies at: sent"), ("every_request_is_accounted_for", "duplicates_are_explained"),
    ),
    Mutant(
        "retries before their time", "sql/queries/settle.sql",
        "make_interval(secs => h.retry_in)", "make_interval(secs => h.retry_in / 2)",
        ("calm",), ("nobody_retries_early",),
    ),
    Mutant(
        "signed by the worker's clock", "outbox_worker/flights.py",
        "leased.claimed_at + timedelta(seconds=now - received)",
        "leased.claimed_at.fromtimestamp(time.time(), leased.claimed_at.tzinfo)",
        ("clock_off_by_an_hour",), ("every_signature_is_valid",),
    ),
    Mutant(
        "an own header keyed like the standard one", "outbox_worker/signing.py",
        "hmac.digest(secret.encode(), own", "hmac.digest(decode_secret(secret), own",
        ("calm",), ("every_signature_is_valid",),
    ),
    Mutant(
        "filters that match everything", "sql/queries/fan_out.sql",
        "else outbox.filter_outcome(k.payload, p.filter) end", "else 't' end",
        ("calm",), ("nothing_else",),
    ),
    Mutant(
        "a worker that ends with its database", "outbox_worker/database.py",
        "        except AWAY as error:\n", "        except psycopg.errors.DeadlockDetected as error:\n",
        ("backends_terminated",), ("workers_leave_only_when_asked",),
    ),
    Mutant(
        "a claim that is not on disk", "outbox_worker/database.py",
        '"synchronous_commit": "on"', '"synchronous_commit": "off"',
        ("power_cut", "standby_promoted", "power_cut"), ("every_request_is_accounted_for", "duplicates_are_explained"),
    ),
    Mutant(
        "everybody owns every shard", "outbox_worker/presence.py",
        "mine = {shard: heir for shard, owner, heir in rows if owner == store.worker_no}",
        "mine = {shard: store.worker_no for shard, _, _ in rows}",
        ("calm", "calm", "calm"), ("limits_hold",),
    ),
)  # fmt: skip
FLYING = ("outbox_worker/flights.py", "        received = time.monotonic()\n",
          "        received = time.monotonic()\n        self.__dict__.setdefault('flying', []).append(leased.delivery)\n")  # fmt: skip


def grow(mutant: Mutant | None, folder: Path) -> None:
    """A copy of this tree with the mutation in it; a text that is not there is an error, not a survivor."""
    for name in ("outbox_worker", "sql", "tests/campaign", "tests/support"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    if mutant is None:
        return
    changes = [(mutant.file, mutant.old, mutant.new)]
    if "flying" in mutant.new:
        changes.append(FLYING)
    for file, old, new in changes:
        path = folder / file
        text = path.read_text()
        if old not in text:
            raise SystemExit(
                f"growing the mutant {mutant.name!r}: {file} has no {old!r} any more; correct the mutant"
            )
        path.write_text(text.replace(old, new))


def violated(tree: Path, faults: tuple[str, ...], seed: int) -> dict[str, list[str]]:
    words = [
        sys.executable,
        "-m",
        "tests.campaign",
        "--json",
        "--seed",
        str(seed),
        "--no-operators",
        "--drain-seconds",
        "25",
    ]
    for fault in faults:
        words += ["--fault", fault]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        words, cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    try:
        return json.loads(done.stdout)["violations"]
    except (json.JSONDecodeError, KeyError):
        raise SystemExit(
            f"running the campaign in {tree}: no report (exit {done.returncode}): {done.stderr[-1500:]}"
        ) from None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.mutants", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="mutants with these words in their name")
    given = parser.parse_args()
    chosen = [one for one in MUTANTS if given.only is None or given.only in one.name]
    everything = tuple(sorted({fault for one in chosen for fault in one.faults}))
    survived = 0
    print(f"{'mutant':<42} {'result':<9} invariants that failed", flush=True)  # noqa: T201
    for mutant in (None, *chosen):
        with tempfile.TemporaryDirectory(prefix="outbox-mutant-") as made:
            Path(made).chmod(0o711)
            grow(mutant, Path(made))
            found = violated(Path(made), mutant.faults if mutant else everything, given.seed)
        good = bool(set(mutant.fails) & set(found)) if mutant else not found
        survived += not good
        result = ("killed" if good else "SURVIVED") if mutant else ("holds" if good else "FAILS")
        name = mutant.name if mutant else "none: the tree as it is"
        print(f"{name:<42} {result:<9} {', '.join(found) or '-'}", flush=True)  # noqa: T201
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
