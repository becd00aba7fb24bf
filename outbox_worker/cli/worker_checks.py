"""What `check` looks at around the worker: vault key, clock, wake-up, egress, descriptors.

Reads: keyring, outbox.vault_keys, outbox.settings, this process's limits. Writes: nothing.
Guarantee: of keys only their ids are told.
"""

import os
import resource
from collections.abc import Iterator
from datetime import UTC, datetime

from outbox_worker.cli.failures import CONFIGURATION
from outbox_worker.cli.findings import Finding, Patient, fail, ok, warn
from outbox_worker.cli.session import one, rows

_MOST_SKEW_SECONDS = 2
_NOTIFY_SECONDS = 3
_SPARE_DESCRIPTORS = 100  # beside one for each request in flight; as worker.check_open_files


def vault(patient: Patient) -> Iterator[Finding]:
    from outbox_worker.vault import load_keyring  # noqa: PLC0415  (as in keys.py)

    keyring = load_keyring(patient.settings)
    installed = rows(
        patient.connection, "select key_id, public_key, active from outbox.vault_keys order by key_id"
    )
    active = next((row for row in installed if row["active"]), None)
    if active is None:
        yield fail(
            "vault",
            "no public key is installed",
            "Run: outbox-worker keygen --out FILE",
            exit_code=CONFIGURATION,
        )
        return
    key_id = active["key_id"]
    if key_id not in keyring.key_ids:
        yield fail(
            "vault",
            f"the database seals for key {key_id}, which is not in the keyring ({', '.join(keyring.key_ids)})",
            "Give the workers that private key (OUTBOX_VAULT_KEY_FILE), or find out who installed it.",
            exit_code=CONFIGURATION,
        )
    elif bytes(active["public_key"]) != keyring.public_key(key_id):
        yield fail(
            "vault",
            f"the public key in outbox.vault_keys is not that of the private key {key_id}: it was substituted",
            "Whoever did it can read every secret sealed since. Install the right key, then rotate those secrets.",
            exit_code=CONFIGURATION,
        )
    else:
        yield ok("vault", f"the database seals for key {key_id}, which this worker can open")
    for row in installed:
        if not row["active"] and row["key_id"] not in keyring.key_ids:
            yield warn(
                "vault",
                f"the keyring lacks the earlier key {row['key_id']}",
                "Endpoints sealed for it are held: add the key, or rotate them.",
            )


def clock(patient: Patient) -> Iterator[Finding]:
    before = datetime.now(UTC)
    database = one(patient.connection, "select clock_timestamp()")
    after = datetime.now(UTC)
    skew = (database - (before + (after - before) / 2)).total_seconds()
    if abs(skew) > _MOST_SKEW_SECONDS:
        yield warn(
            "clock",
            f"the database's clock is {skew:+.1f} s from this machine's",
            "Run an NTP client on both; signatures use the database's clock.",
        )
    else:
        yield ok("clock", f"{skew * 1000:+.0f} ms from the database's")


def listen(patient: Patient) -> Iterator[Finding]:
    if patient.settings.poll_only:
        yield ok("listen", f"poll only, every {patient.settings.poll_ms} ms (OUTBOX_POLL_ONLY)")
        return
    channel = f"outbox_check_{os.getpid()}"
    connection = patient.connection
    connection.execute(f"listen {channel}".encode())
    connection.execute("select pg_notify(%s, '')", [channel])
    heard = list(connection.notifies(timeout=_NOTIFY_SECONDS, stop_after=1))
    connection.execute(f"unlisten {channel}".encode())
    if heard:
        yield ok("listen", "notifications arrive")
    else:
        yield fail(
            "listen",
            f"a notification did not arrive within {_NOTIFY_SECONDS} s: a transaction pooler stands between",
            "Connect directly, or set OUTBOX_POLL_ONLY=true.",
            exit_code=CONFIGURATION,
        )


def egress(patient: Patient) -> Iterator[Finding]:
    row = rows(
        patient.connection, "select allow_plain_http, allow_ip_literals, allowed_ports from outbox.settings"
    )[0]
    loud = {
        "allow_plain_http": "PLAIN HTTP is allowed: payloads and headers can be read on the way",
        "allow_ip_literals": "IP ADDRESSES are allowed as hosts",
    }
    found = [text for name, text in loud.items() if row[name]]
    for text in found:
        yield warn("egress", text, "For a demo only. Let the owner turn it off in outbox.settings.")
    if patient.settings.allow_networks:
        networks = ", ".join(map(str, patient.settings.allow_networks))
        yield warn(
            "egress",
            f"PRIVATE NETWORKS may be connected to: {networks}",
            "Customers' URLs reach them. Unset OUTBOX_ALLOW_NETWORKS unless you mean it.",
        )
    if not found and not patient.settings.allow_networks:
        ports = ", ".join(map(str, row["allowed_ports"]))
        denied = (
            ", ".join(map(str, patient.settings.deny_networks))
            or "nothing of your own (OUTBOX_DENY_NETWORKS)"
        )
        yield ok(
            "egress", f"https to public names on ports {ports}; denied beside the built-in list: {denied}"
        )


def open_files(patient: Patient) -> Iterator[Finding]:
    needed = patient.settings.max_in_flight + _SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        yield fail(
            "open files",
            f"the limit is {hard}, OUTBOX_MAX_IN_FLIGHT={patient.settings.max_in_flight} needs {needed}",
            "Raise it (ulimit -n, LimitNOFILE=), or lower the setting.",
            exit_code=CONFIGURATION,
        )
    else:
        raised = (
            f"; the worker raises {soft} to {needed}"
            if soft != resource.RLIM_INFINITY and soft < needed
            else ""
        )
        yield ok(
            "open files",
            f"{needed} needed, {'no limit' if hard == resource.RLIM_INFINITY else hard} allowed{raised}",
        )
