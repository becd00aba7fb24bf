"""The exceptions of outbox-worker: our own infrastructure and configuration, never a remote endpoint.

OutboxError
 ├ ConfigError             exit 2: names the variable, what was found, what is accepted
 │  └ RestoredCopy         the database is a restored copy, held until a person decides
 ├ DatabaseUnavailable     exit 3: only from start-up; inside the loops it is waited for and logged
 ├ SchemaError             exit 4
 │  ├ SchemaTooOld         the database is older than this release needs
 │  ├ MigrationDrift       an applied migration file has changed
 │  └ MigrationFailed      a migration could not be applied
 ├ EgressRefused           a connection that the guard does not allow; becomes an Outcome
 └ Unreadable              a sealed blob that cannot be opened or belongs elsewhere; holds the endpoint

What an endpoint can do is a value (`model.Outcome`), not an exception.
"""


class OutboxError(Exception):
    """What was attempted, what was found, what to do: all three in the message."""

    exit_code = 1


class ConfigError(OutboxError):
    exit_code = 2


class RestoredCopy(ConfigError):
    def __init__(self, why: str) -> None:
        super().__init__(
            f"starting to send: {why}. What waits in it may have been sent by others since. "
            "See it with: outbox-worker restored. Then let the workers start with --release or --cancel-until."
        )


class DatabaseUnavailable(OutboxError):
    exit_code = 3


class SchemaError(OutboxError):
    exit_code = 4


class SchemaTooOld(SchemaError): ...


class MigrationDrift(SchemaError): ...


class MigrationFailed(SchemaError): ...


class EgressRefused(OutboxError):
    """The address or URL is not one that this worker may connect to; not one byte was sent."""


class Unreadable(OutboxError):
    """A sealed blob could not be opened, or was sealed for another workspace, endpoint or origin."""
