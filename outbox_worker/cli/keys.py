"""keygen: the vault's key pair. The private key goes to a file for the workers, the public key to the database.

Reads: randomness. Writes: a new file of mode 0600, and outbox.vault_keys.
Guarantee: no file is overwritten; the private key reaches the disk before the database seals anything for it.
If it dies: at worst a key file that nothing is sealed for.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from outbox_worker.cli.output import AsJson, Output
from outbox_worker.cli.session import one, owner_session
from outbox_worker.errors import ConfigError
from outbox_worker.settings import load


def keygen(
    out: Annotated[
        Path,
        typer.Option("--out", help="File for the private key: created with mode 0600, never overwritten."),
    ],
    install: Annotated[
        bool,
        typer.Option(
            "--install/--no-install", help="Make its public key the one that new secrets are sealed with."
        ),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Make a vault key: workers open secrets with it, the database can only seal for it.

    Keep every old key beside it (OUTBOX_VAULT_KEY_FILE may be a folder): what was sealed for an old key
    can be opened with that key only. Back it up: without it every endpoint needs a new secret.
    """
    from outbox_worker import vault  # noqa: PLC0415  (its OpenPGP library is slow to load)

    settings = load() if install else None
    private, public = vault.generate_key()
    write_secret(out, private)
    key_id = None
    if settings is not None:
        with owner_session(settings) as connection:
            key_id = one(connection, "select outbox.install_vault_key(%s)", [public])
    output = Output(as_json=as_json)
    if as_json:
        output.json({"file": str(out), "installed": install, "key_id": key_id})
        return
    output.say(
        f"private key: {out} (mode 0600). Back it up, and give it to the workers: OUTBOX_VAULT_KEY_FILE={out}"
    )
    if key_id:
        output.say(f"public key {key_id} installed: new secrets and headers are sealed for it")
    else:
        output.say("public key not installed: nothing is sealed for it yet")


def write_secret(path: Path, text: str) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(
            f"writing the private key: {path} exists already and may hold a key in use. Choose another --out."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"writing the private key: {path}: {error.strerror}. Choose a writable place with --out."
        ) from None
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
