"""rekey: seal what the vault holds for the active key, so that earlier private keys can be retired.

Reads: the keyring, outbox.vault_keys, outbox.endpoint_vault. Writes: outbox.endpoint_vault, one endpoint a transaction.
Guarantee: nothing is sealed for a public key that is not of a private key here; a blob gives way only to one of the
same content that was opened again, and only if nobody has changed it meanwhile; no content is printed.
If it dies: run it again; what is sealed for the active key already is left alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from outbox_worker.cli.failures import CONFIGURATION
from outbox_worker.cli.output import AsJson, Output
from outbox_worker.cli.session import Connection, one, owner_session, rows
from outbox_worker.errors import ConfigError, Unreadable
from outbox_worker.settings import load

if TYPE_CHECKING:
    from outbox_worker.vault import Keyring

_PAGE = 200
_TOLD_EVERY = 500  # endpoints, where no progress bar can be drawn
_KINDS = {"secret": "secret", "previous_secret": "secret", "headers": "headers"}
_READ = """
select v.endpoint_id, v.workspace_id, v.secret, v.previous_secret, v.headers, e.url,
       coalesce(v.previous_expires_at < now(), false) as previous_ended,
       coalesce(e.hold_reason = 'secret_unreadable', false) as held
from outbox.endpoint_vault v
join outbox.endpoints e on e.endpoint_id = v.endpoint_id and e.workspace_id = v.workspace_id
"""
_STORE = """
with stored as (
    update outbox.endpoint_vault v
    set secret = %(new_secret)s::bytea, previous_secret = %(new_previous_secret)s::bytea, headers = %(new_headers)s::bytea,
        previous_expires_at = case when %(new_previous_secret)s::bytea is not null then v.previous_expires_at end
    where v.endpoint_id = %(endpoint_id)s::uuid and v.workspace_id = %(workspace_id)s::text
      and v.secret = %(secret)s::bytea and v.previous_secret is not distinct from %(previous_secret)s::bytea
      and v.headers is not distinct from %(headers)s::bytea
      and exists (select from outbox.vault_keys k where k.active and k.key_id = %(key_id)s::text)
    returning v.endpoint_id, v.workspace_id
), released as (
    update outbox.endpoints e set sealed_at = clock_timestamp()  -- which ends the hold
    from stored s
    where %(opens)s::boolean and e.endpoint_id = s.endpoint_id and e.workspace_id = s.workspace_id
)
select count(*) from stored
"""


@dataclass
class Tally:
    endpoints: int = 0
    sealed_again: int = 0
    released: int = 0
    unreadable: int = 0


@dataclass
class Rekeying:
    connection: Connection
    keyring: "Keyring"
    key_id: str
    output: Output
    tally: Tally = field(default_factory=Tally)

    def endpoint(self, row: dict[str, Any]) -> None:
        """Bring one endpoint's blobs to the active key; again, if it was changed meanwhile."""
        while not self.stored(row):
            if active_key(self.connection)["key_id"] != self.key_id:
                raise ConfigError(
                    f"sealing for key {self.key_id}: another key was made the active one meanwhile. Run rekey again."
                )
            found = rows(self.connection, f"{_READ} where v.endpoint_id = %s", [row["endpoint_id"]])
            if not found:  # deleted
                return
            row = found[0]
        self.tally.endpoints += 1

    def stored(self, row: dict[str, Any]) -> bool:
        problems: dict[str, str] = {}
        fresh = {f"new_{blob}": self.fresh(row, blob, problems) for blob in _KINDS}
        changes = any(fresh[f"new_{blob}"] != row[blob] for blob in _KINDS)
        opens = row["held"] and self.opens(row)
        if (changes or opens) and not one(
            self.connection, _STORE, {**row, **fresh, "opens": opens, "key_id": self.key_id}
        ):
            return False
        for blob, problem in problems.items():
            self.tell_unreadable(row, blob, problem)
        self.tally.sealed_again += changes
        self.tally.released += opens
        return True

    def fresh(self, row: dict[str, Any], blob: str, problems: dict[str, str]) -> bytes | None:
        from outbox_worker.vault import recipient  # noqa: PLC0415  (as in keys.py)

        sealed: bytes | None = row[blob]
        if sealed is None or (blob == "previous_secret" and row["previous_ended"]):
            return None
        if recipient(sealed) == self.key_id:
            return sealed
        try:
            return self.keyring.seal_again(sealed, _KINDS[blob], self.key_id)
        except Unreadable as error:
            problems[blob] = str(error)
            return sealed

    def opens(self, row: dict[str, Any]) -> bool:
        """Whether a worker with this keyring could use the endpoint that workers have held."""
        from outbox_worker.vault import SealedFor  # noqa: PLC0415  (as in keys.py)

        expected = SealedFor(row["workspace_id"], row["endpoint_id"], row["url"])
        try:
            for blob in ("secret", "headers"):
                if row[blob] is not None:
                    self.keyring.open(row[blob], _KINDS[blob], expected)
        except Unreadable:
            return False
        return True

    def tell_unreadable(self, row: dict[str, Any], blob: str, problem: str) -> None:
        self.tally.unreadable += 1
        told = {"endpoint_id": row["endpoint_id"], "workspace_id": row["workspace_id"], "blob": blob}
        if self.output.as_json:
            self.output.json({**told, "problem": problem})
        else:
            self.output.say(f"left as it is: {blob} of endpoint {row['endpoint_id']}: {problem}", "red")


def rekey(
    *,
    activate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Make the key in this file the active one before anything else."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Seal all secrets and headers again for the active vault key.

    Needs the owner's login (OUTBOX_OWNER_DATABASE_URL) and a keyring with the new private key and the earlier ones.
    It may be stopped and run again at any time. Exit 2 if something could not be opened; that is listed and left.
    """
    from outbox_worker.vault import load_keyring  # noqa: PLC0415  (as in keys.py)

    settings = load()
    keyring = load_keyring(settings)
    output = Output(as_json=as_json)
    with owner_session(settings) as connection:
        connection.execute("set role outbox_owner")
        if activate is not None:
            make_active(connection, keyring, activate)
        active = active_key(connection)
        require_private_half(keyring, active)
        run = Rekeying(connection, keyring, active["key_id"], output)
        total = one(connection, "select count(*) from outbox.endpoint_vault")
        columns = (TextColumn("sealing again"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=output.screen, disable=not output.terminal) as progress:
            bar = progress.add_task("rekey", total=total)
            for number, row in enumerate(everything(connection), 1):
                run.endpoint(row)
                progress.update(bar, completed=number)
                if number % _TOLD_EVERY == 0 and not output.terminal:
                    tell_progress(output, number, total)
    tell_end(output, run)


def make_active(connection: Connection, keyring: "Keyring", file: Path) -> None:
    from outbox_worker.vault import keyring_in  # noqa: PLC0415  (as in keys.py)

    key_ids = keyring_in(file).key_ids
    if len(key_ids) != 1 or key_ids[0] not in keyring.key_ids:
        raise ConfigError(
            f"making the key in {file} the active one: found {', '.join(key_ids)}, and {', '.join(keyring.key_ids)} in the "
            "keyring. Give a file with one key, and add it to OUTBOX_VAULT_KEY_FILE of every worker first."
        )
    one(connection, "select outbox.install_vault_key(%s)", [keyring.public_key(key_ids[0])])


def active_key(connection: Connection) -> dict[str, Any]:
    found = rows(connection, "select k.key_id, k.public_key from outbox.vault_keys k where k.active")
    if not found:
        raise ConfigError(
            "looking for the active vault key: none is installed. Run: outbox-worker keygen --out FILE"
        )
    return found[0]


def require_private_half(keyring: "Keyring", active: dict[str, Any]) -> None:
    """Raise ConfigError for a public key that somebody else may hold the private key of."""
    key_id = active["key_id"]
    if key_id not in keyring.key_ids:
        raise ConfigError(
            f"sealing for key {key_id}, the active one: its private key is not in the keyring ({', '.join(keyring.key_ids)}). "
            "Add it to OUTBOX_VAULT_KEY_FILE, or find out who installed it."
        )
    if bytes(active["public_key"]) != keyring.public_key(key_id):
        raise ConfigError(
            f"sealing for key {key_id}: the public key in outbox.vault_keys is not that of the private key here, it was "
            "substituted. Install a key of your own (outbox-worker keygen), then rotate the secrets that were made since."
        )


def everything(connection: Connection) -> Iterator[dict[str, Any]]:
    after = None
    while True:
        page = rows(
            connection,
            f"{_READ} where %(after)s::uuid is null or v.endpoint_id > %(after)s::uuid"
            " order by v.endpoint_id limit %(limit)s::int",
            {"after": after, "limit": _PAGE},
        )
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1]["endpoint_id"]


def tell_progress(output: Output, number: int, total: int) -> None:
    if output.as_json:
        output.json({"looked_at": number, "total": total})
    else:
        output.say(f"{number} of {total} endpoints looked at")


def tell_end(output: Output, run: Rekeying) -> None:
    tally = run.tally
    if output.as_json:
        output.json({"key_id": run.key_id, **vars(tally)})
    else:
        output.say(
            f"{tally.sealed_again} of {tally.endpoints} endpoints sealed again for key {run.key_id}, "
            f"{tally.released} holds ended, {tally.unreadable} blobs left that could not be opened"
        )
    if tally.unreadable:
        if not output.as_json:
            output.say(
                "Add the key they were sealed for to the keyring and run rekey again, or renew them: "
                "outbox-worker endpoint rotate, outbox-worker endpoint headers"
            )
        raise typer.Exit(CONFIGURATION)
    if not output.as_json:
        output.say(
            "Workers need no earlier key any more; keep those as long as you keep backups of that time."
        )
