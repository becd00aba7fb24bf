"""Endpoints, events and settings in a given state, made through the product's own SQL.

Reads: nothing. Writes: the test's database.
Guarantee: what a test does not name has a value that the demo could have.
"""

from __future__ import annotations

import json
from datetime import timedelta
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

from outbox_worker import vault
from outbox_worker.settings import Settings

if TYPE_CHECKING:
    from uuid import UUID

    import psycopg

LOOPBACK = (ip_network("127.0.0.0/8"),)
SHORT = [timedelta(milliseconds=50)] * 7


def allow_loopback(db: psycopg.Connection, *ports: int) -> None:
    """What a demo needs and production must not have."""
    db.execute(
        "update outbox.settings set allow_plain_http = true, allow_ip_literals = true, allowed_ports = allowed_ports || %s::int[]",
        [list(ports)],
    )


def install_key(db: psycopg.Connection, key: tuple[str, bytes]) -> str:
    return db.execute("select outbox.install_vault_key(%s)", [key[1]]).fetchone()[0]


def worker_settings(dsn: str, key: tuple[str, bytes], **changes: Any) -> Settings:
    values = {
        "database_url": dsn,
        "vault_key": key[0],
        "allow_networks": LOOPBACK,
        "poll_ms": 100,
        "request_timeout_seconds": 2.0,
        "lease_seconds": 10.0,
        "settle_margin_seconds": 0.5,
        "max_in_flight": 100,
        "drain_seconds": 5.0,
    }
    return Settings(**{**values, **changes})


def make_endpoint(
    db: psycopg.Connection, url: str, event_types: list[str] | None = None, **options: Any
) -> tuple[UUID, str]:
    """Create an endpoint; give its id and secret."""
    names = {"workspace_id": "ws_1", "url": url, "event_types": event_types or ["message.*"], **options}
    arguments = ", ".join(f"{name} => %({name})s{CASTS.get(name, '')}" for name in names)
    values = {name: json.dumps(value) if name == "headers" else value for name, value in names.items()}
    row = db.execute(
        f"select endpoint_id, secret from outbox.create_endpoint({arguments})", values
    ).fetchone()
    return row[0], row[1]


CASTS = {
    "headers": "::jsonb",
    "filter": "::jsonpath",
    "retry_schedule": "::interval[]",
    "timeout": "::interval",
}


def publish(
    db: psycopg.Connection, event_type: str = "message.received", payload: dict | None = None, **options: Any
) -> UUID:
    names = {
        "workspace_id": "ws_1",
        "event_type": event_type,
        "payload": json.dumps(payload or {"n": 1}),
        **options,
    }
    casts = {"payload": "::jsonb", "priority": "::smallint", "deliver_at": "::timestamptz"}
    arguments = ", ".join(f"{name} => %({name})s{casts.get(name, '')}" for name in names)
    return db.execute(f"select outbox.publish({arguments})", names).fetchone()[0]


def state_of(db: psycopg.Connection, event_id: UUID, endpoint_id: UUID | None = None) -> str | None:
    row = db.execute(
        "select state from outbox.deliveries where event_id = %s and (%s::uuid is null or endpoint_id = %s)",
        [event_id, endpoint_id, endpoint_id],
    ).fetchone()
    return row[0] if row else None


def new_key() -> tuple[str, bytes]:
    return vault.generate_key()
