"""check: the doctor. Everything a worker needs, looked at one by one, each with what to do about it.

Reads: settings, keyring, the database as the worker's login. Writes: nothing.
Guarantee: one failing check does not hide the others; the exit code is that of the first FAIL; no secret is printed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import typer
from pydantic import SecretStr
from rich.text import Text

from outbox_worker.cli import database_checks, worker_checks
from outbox_worker.cli.failures import explain
from outbox_worker.cli.findings import Finding, Level, Patient, fail, ok
from outbox_worker.cli.output import AsJson, Output, clean, styled
from outbox_worker.cli.session import connected, parsed
from outbox_worker.errors import OutboxError
from outbox_worker.settings import Settings, load

Check = Callable[[Patient], Iterator[Finding]]
CHECKS: dict[str, Check] = {
    "server": database_checks.server,
    "schema": database_checks.schema,
    "home": database_checks.home,
    "role": database_checks.role,
    "vault": worker_checks.vault,
    "clock": worker_checks.clock,
    "listen": worker_checks.listen,
    "egress": worker_checks.egress,
    "endpoints": database_checks.endpoints,
    "partitions": database_checks.partitions,
    "decryption": database_checks.decryption,
    "open files": worker_checks.open_files,
    "durability": database_checks.durability,
    "old snapshots": database_checks.old_snapshots,
    "owner": database_checks.owner,
}


def check(as_json: AsJson = False) -> None:
    """Examine settings, database, schema, rights, vault key, clock, LISTEN and egress. Exit 0 if nothing FAILs.

    Run it where the workers run and with their environment. The exit code is that of the first FAIL:
    2 configuration, 3 database, 4 schema.
    """
    output = Output(as_json=as_json)
    first = 0
    for finding in findings():
        if finding.level is Level.FAIL and not first:
            first = finding.exit_code
        show(output, finding)
    raise typer.Exit(first)


def findings() -> Iterator[Finding]:
    try:
        settings = load()
    except OutboxError as error:
        yield failed("settings", error)
        return
    yield ok("settings", effective(settings))
    try:
        with connected(settings.database_url.get_secret_value(), poll_only=settings.poll_only) as connection:
            patient = Patient(settings, connection)
            for name, examine in CHECKS.items():
                yield from survived(name, examine, patient)
    except OutboxError as error:
        yield failed("server", error)


def survived(name: str, examine: Check, patient: Patient) -> Iterator[Finding]:
    """Give what a check finds, or its failure as a finding, so that the others go on."""
    try:
        yield from examine(patient)
    except (OutboxError, psycopg.Error) as error:
        yield failed(name, error)


def failed(name: str, error: Exception) -> Finding:
    code, message = explain(error)
    found, _, advice = message.rpartition(". ")
    return fail(name, found or message, advice if found else "", exit_code=code)


def effective(settings: Settings) -> str:
    return ", ".join(f"{name}={shown(value)}" for name, value in settings if value not in (None, ()))


def shown(value: Any) -> str:
    """Give a setting's value; of a connection string where it leads, of any other secret nothing."""
    if isinstance(value, SecretStr):
        parts = parsed(value.get_secret_value()) or {}
        return "/".join(str(parts[name]) for name in ("host", "port", "dbname") if parts.get(name)) or "***"
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def show(output: Output, finding: Finding) -> None:
    if output.as_json:
        output.json(
            {"check": finding.check, "level": finding.level, "found": finding.found, "advice": finding.advice}
        )
    elif output.terminal:
        line = Text.assemble(styled("level", f"{finding.level}"), " " * (5 - len(finding.level)))
        line.append(clean(f"{finding.check}: {finding.found}"))
        if finding.advice:
            line.append(f"\n     {clean(finding.advice)}", "bold")
        output.screen.print(line)
    else:
        output.say(
            f"{finding.level}\t{finding.check}\t{finding.found}"
            + (f"\t{finding.advice}" if finding.advice else "")
        )
