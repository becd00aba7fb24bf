"""Every verb that a role may not use, tried by a login with that role.

Reads: a database of its own, which the refusals leave as it is. Writes: nothing.
Guarantee: PostgreSQL itself refuses, whatever the caller's code does.
If it fails: a role can do what another is trusted with.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, closing

import psycopg
import pytest
from psycopg import errors

PUBLISHES = (
    "insert into outbox.events (workspace_id, event_type, payload) values ('ws_1', 'message.received', '{}')"
)
CHOOSES_AN_ID = (
    "insert into outbox.events (event_id, workspace_id, event_type, payload)"
    " values (outbox.uuid7(), 'ws_1', 'message.received', '{}')"
)
CHOOSES_A_TIME = (
    "insert into outbox.events (created_at, workspace_id, event_type, payload)"
    " values (now(), 'ws_1', 'message.received', '{}')"
)
MAKES_AN_ENDPOINT = (
    "insert into outbox.endpoints (workspace_id, url, event_types) values ('w', 'https://e.com/', '{}')"
)
MAKES_A_TRIGGER = (
    "create trigger mine before insert on outbox.events for each row execute function outbox.keep_event()"
)
FORBIDDEN = {
    "app_login": [
        "select event_id from outbox.events",
        CHOOSES_AN_ID,
        CHOOSES_A_TIME,
        "update outbox.events set payload = '{}'",
        "delete from outbox.events",
        "truncate outbox.events",
        "copy outbox.events to stdout",
        "select url from outbox.endpoint_health",
        "update outbox.endpoints set url = 'https://example.com/'",
        MAKES_AN_ENDPOINT,
        "delete from outbox.endpoints",
        "select shard from outbox.endpoints",
        "select url from outbox.endpoint_versions",
        "select secret from outbox.endpoint_vault",
        "insert into outbox.event_types (name, description, patterns) values ('a.b', 'c', '{}')",
        "select event_id from outbox.deliveries",
        "select event_id from outbox.attempts",
        "select event_id from outbox.idempotency_keys",
        "select max_payload_bytes from outbox.settings",
        "select outbox.replay(outbox.uuid7())",
        "select outbox.cancel(outbox.uuid7())",
        "select outbox.explain_delivery(outbox.uuid7(), outbox.uuid7())",
    ],
    "operator_login": [
        "update outbox.deliveries set attempt_count = 0",
        "update outbox.deliveries set last_error = ''",
        "insert into outbox.deliveries (event_id) values (gen_random_uuid())",
        "delete from outbox.deliveries",
        "update outbox.open_deliveries set next_attempt_at = now()",
        "update outbox.open_deliveries set lease_token = null",
        "select lease_token from outbox.open_deliveries",
        "update outbox.finished_deliveries set state = 'dead'",
        "delete from outbox.finished_deliveries",
        "update outbox.endpoints set state = 'active'",
        "update outbox.endpoints set hold_reason = null",
        "update outbox.endpoints set header_names = '{}'",
        "update outbox.endpoints set sealed_at = now()",
        "update outbox.endpoints set workspace_id = 'other'",
        "update outbox.endpoints set failing_since = null",
        "delete from outbox.endpoints",
        "select url from outbox.endpoints",
        "select secret from outbox.endpoint_vault",
        "update outbox.endpoint_vault set secret_origin = 'https://example.com:443'",
        "update outbox.vault_keys set active = true",
        PUBLISHES,
        "insert into outbox.operations (kind) values ('replay')",
        "update outbox.settings set allow_plain_http = true",
        "insert into outbox.tenant_logins values ('operator_login', 'ws_1')",
        MAKES_A_TRIGGER,
        "select outbox.rotate_secret(gen_random_uuid())",
        "select outbox.set_endpoint_headers(gen_random_uuid(), '{}')",
        "select outbox.hold_endpoint(gen_random_uuid(), 1)",
    ],
    "reader_login": [
        "select secret from outbox.endpoint_vault",
        "select public_key from outbox.vault_keys",
        "select url from outbox.endpoints",
        "select url from outbox.endpoint_versions",
        "select lease_token from outbox.lost_leases",
        "select login_role from outbox.tenant_logins",
        "select error from outbox.known_attempts",
        "update outbox.deliveries set state = 'pending'",
        "update outbox.endpoints set description = ''",
        "update outbox.settings set allow_plain_http = true",
        PUBLISHES,
        "delete from outbox.events",
        "select outbox.replay(gen_random_uuid())",
        "select outbox.cancel(gen_random_uuid())",
        "select outbox.pause_endpoint(gen_random_uuid())",
        "select outbox.publish('ws_1', 'message.received', '{}')",
    ],
    "worker_login": [
        "delete from outbox.events",
        "update outbox.events set payload = '{}'",
        CHOOSES_AN_ID,
        "truncate outbox.open_deliveries",
        "update outbox.open_deliveries set workspace_id = 'other'",
        "update outbox.finished_deliveries set state = 'delivered'",
        "delete from outbox.finished_deliveries",
        "update outbox.recorded_attempts set status = 200",
        "delete from outbox.recorded_attempts",
        "select response_body from outbox.recorded_attempts",
        "delete from outbox.lost_leases",
        "update outbox.endpoints set url = 'https://example.com/'",
        "update outbox.endpoints set hold_reason = null",
        "delete from outbox.endpoints",
        "update outbox.endpoint_vault set secret_origin = 'https://example.com:443'",
        "insert into outbox.vault_keys (key_id, public_key) values ('0123456789ABCDEF', '')",
        "update outbox.settings set allow_ip_literals = true",
        "delete from outbox.worker_processes",
        "insert into outbox.operations (kind) values ('replay')",
        "create table outbox.mine ()",
        "drop table outbox.shards",
        MAKES_A_TRIGGER,
        "select outbox.create_endpoint('ws_1', 'https://example.com/', '{*}')",
        "select outbox.rotate_secret(gen_random_uuid())",
        "select outbox.publish('ws_1', 'message.received', '{}')",
    ],
}
OWNERS_ALONE = (
    r"select outbox.install_vault_key('\x00')",
    "select outbox.seal('ws_1', gen_random_uuid(), 'https://example.com:443', 'secret', '{}')",
    "select outbox.store_secret(null, '', '0 s')",
    "select outbox.store_headers(null, '', '{}')",
    "select outbox.seal_secret(null, '')",
    "select outbox.seal_headers(null, '{}')",
    "select outbox.new_secret()",
    "select outbox.install_event_types('[]')",
    "select outbox.endpoint_of(gen_random_uuid())",
    "select outbox.explain_missing(null, null)",
    "alter function outbox.url_problem(text, int[], boolean, boolean) rename to mine",
    "alter table outbox.events disable trigger all",
    "set role outbox_owner",
    "set role outbox_secrets",
)
ALL_FORBIDDEN = [(login, statement) for login, statements in FORBIDDEN.items() for statement in statements]
ALL_FORBIDDEN += [(login, statement) for login in FORBIDDEN for statement in OWNERS_ALONE]


@pytest.fixture(scope="module")
def shared(cluster, template):
    """One database and one connection a role for all refusals, which change nothing."""
    name = f"outbox_grants_{os.getpid()}"
    with cluster.database(name, template=template), ExitStack() as stack:
        yield {
            login: stack.enter_context(closing(psycopg.connect(cluster.dsn(name, login), autocommit=True)))
            for login in FORBIDDEN
        }


@pytest.mark.parametrize(("login", "statement"), ALL_FORBIDDEN)
def test_a_forbidden_verb_is_refused(shared, login, statement):
    """Each role is refused what the others may do, by PostgreSQL itself."""
    with pytest.raises(errors.InsufficientPrivilege):
        shared[login].execute(statement)
