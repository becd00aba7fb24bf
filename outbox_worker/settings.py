"""Settings: the environment, read once, checked, frozen.

Reads: OUTBOX_* variables (each secret also as OUTBOX_…_FILE). Writes: nothing.
Guarantee: an unknown OUTBOX_ variable, a value out of range and a contradiction are refused by name (ConfigError).
If it dies: nothing was started yet.
"""

from __future__ import annotations

import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from outbox_worker.errors import ConfigError

PREFIX = "OUTBOX_"
DATABASE_URL = f"{PREFIX}DATABASE_URL"


def split(text: object) -> object:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if isinstance(text, str) else text


Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(split)]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    database_url: SecretStr = Field(
        description="Database the worker and the commands use (role outbox_worker or better)."
    )
    owner_database_url: SecretStr | None = Field(
        None,
        description="Login that may become outbox_owner: for migrate, keygen, rekey, index. Default: OUTBOX_DATABASE_URL.",
    )
    vault_key: SecretStr | None = Field(
        None, description="The private vault keys themselves, armored, one after the other."
    )
    vault_key_file: Path | None = Field(
        None, description="File or folder with the private vault keys (outbox-worker keygen)."
    )
    poll_only: bool = Field(
        False, description="No LISTEN and no prepared statements: behind a transaction pooler."
    )
    poll_ms: int = Field(250, ge=10, le=60_000, description="Longest wait between two looks at the queue.")
    processes: int = Field(1, ge=1, le=64, description="Worker processes that `run` starts.")
    max_in_flight: int = Field(1000, ge=1, le=20_000, description="Most requests at once in one process.")
    endpoint_max_in_flight: int = Field(
        128,
        ge=1,
        le=10_000,
        description="Most requests at once to one endpoint, where its row names no limit.",
    )
    host_max_in_flight: int = Field(
        256, ge=1, le=20_000, description="Most requests at once to one host in one process."
    )
    suspect_share: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Share of the slots that all endpoints that time out or answer slowly may hold together.",
    )
    connect_timeout_seconds: float = Field(
        5, ge=0.1, le=60, description="Deadline for lookup, connection and TLS together."
    )
    request_timeout_seconds: float = Field(
        15, ge=0.1, le=60, description="Deadline for the whole exchange; an endpoint's own may be lower."
    )
    lease_seconds: float = Field(
        60, ge=1, le=3600, description="Time a claim is good for; at least 4 times the request timeout."
    )
    settle_margin_seconds: float = Field(
        5,
        ge=0.1,
        le=60,
        description="Time kept for recording: no request starts with less lease than its deadline and this.",
    )
    database_timeout_seconds: float = Field(10, ge=0.5, le=300, description="Deadline of one database call.")
    max_response_bytes: int = Field(
        16_384, ge=0, le=1_048_576, description="Bytes of a response body that are read and kept."
    )
    deny_networks: Networks = Field(
        (), description="Networks never connected to, beside the built-in list: your database, your VPC."
    )
    allow_networks: Networks = Field(
        (),
        description="Private networks that may be connected to in spite of the built-in list; never a metadata address.",
    )
    ca_file: Path | None = Field(None, description="Additional certificate authorities for endpoints, PEM.")
    drain_seconds: float = Field(
        20, ge=0, le=600, description="Longest wait for requests in flight after SIGTERM."
    )
    ready_file: Path | None = Field(
        None,
        description="File that exists while the worker is ready: it takes work and was not told to stop.",
    )
    log_level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="Least severe level that is logged."
    )

    @model_validator(mode="after")
    def relations(self) -> Self:
        if self.lease_seconds < 4 * self.request_timeout_seconds:
            raise ValueError(
                f"OUTBOX_LEASE_SECONDS is {self.lease_seconds:g}, less than 4 times OUTBOX_REQUEST_TIMEOUT_SECONDS "
                f"({self.request_timeout_seconds:g}): a lease must outlive its request"
            )
        if self.request_timeout_seconds + self.settle_margin_seconds >= self.lease_seconds / 2:
            raise ValueError(
                f"OUTBOX_SETTLE_MARGIN_SECONDS is {self.settle_margin_seconds:g}: with OUTBOX_REQUEST_TIMEOUT_SECONDS "
                f"({self.request_timeout_seconds:g}) it must stay below half of OUTBOX_LEASE_SECONDS ({self.lease_seconds:g})"
            )
        if self.drain_seconds < self.request_timeout_seconds + self.settle_margin_seconds:
            raise ValueError(
                f"OUTBOX_DRAIN_SECONDS is {self.drain_seconds:g}: an orderly stop needs OUTBOX_REQUEST_TIMEOUT_SECONDS "
                f"({self.request_timeout_seconds:g}) and OUTBOX_SETTLE_MARGIN_SECONDS ({self.settle_margin_seconds:g}) at least"
            )
        if self.vault_key is not None and self.vault_key_file is not None:
            raise ValueError("OUTBOX_VAULT_KEY and OUTBOX_VAULT_KEY_FILE are both set: keep one of them")
        return self

    @property
    def owner_url(self) -> str:
        return (self.owner_database_url or self.database_url).get_secret_value()


def load() -> Settings:
    """Settings from the environment, or ConfigError with every fault in it."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    secrets = {name for name in known if name in {DATABASE_URL, f"{PREFIX}OWNER_DATABASE_URL"}}
    given = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    from_files = {}
    for name in secrets:
        path = given.pop(f"{name}_FILE", None)
        if path is not None:
            from_files[name[len(PREFIX) :].lower()] = secret_from(name, path)
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigError(
            f"read the environment: {', '.join(unknown)} is not a setting of outbox-worker. "
            "Check the spelling against the README's table, or unset it."
        )
    try:
        return Settings(**from_files)  # type: ignore[arg-type]  # pydantic turns text into what each field is
    except ValidationError as error:
        faults = "; ".join(
            describe(fault["loc"], fault["msg"], fault["type"]) for fault in error.errors(include_input=False)
        )
        raise ConfigError(f"read the environment: {faults}. See the README's table of settings.") from None


def database_url_if_given() -> str | None:
    """For the demo, which brings a database of its own where none is named."""
    return (
        load().database_url.get_secret_value()
        if {DATABASE_URL, f"{DATABASE_URL}_FILE"} & set(os.environ)
        else None
    )


def secret_from(name: str, path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ConfigError(f"read {name}_FILE: {path}: {error.strerror}. Give a readable file.") from None


def describe(location: tuple[int | str, ...], message: str, kind: str) -> str:
    if not location:
        return message.removeprefix("Value error, ")
    variable = PREFIX + str(location[0]).upper()
    return f"{variable} is not set" if kind == "missing" else f"{variable}: {message[0].lower()}{message[1:]}"
