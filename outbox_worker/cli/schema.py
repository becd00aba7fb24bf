"""migrate: bring the schema to what this release needs, or print the SQL that would do it."""

from typing import Annotated

import typer

from outbox_worker import migrate as migration
from outbox_worker.cli.output import Output
from outbox_worker.cli.session import check_conninfo
from outbox_worker.settings import load


def migrate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the SQL and change nothing.")] = False,
) -> None:
    """Create or update the schema outbox. Safe to run twice, and by two at once.

    Uses OUTBOX_OWNER_DATABASE_URL where it is set: a login that is or may become outbox_owner.
    """
    settings = load()
    check_conninfo(settings.owner_url, "OUTBOX_OWNER_DATABASE_URL or OUTBOX_DATABASE_URL")
    output = Output()
    if dry_run:
        for text in migration.plan(settings.owner_url):
            output.line(text)
        return
    applied = migration.migrate(settings.owner_url, report=output.say)
    output.say(
        "the schema outbox is up to date"
        + (f": {len(applied)} files applied" if applied else ", nothing to apply")
    )
