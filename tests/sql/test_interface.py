"""The SQL interface that other programs are written against: functions, columns, errors.

Reads: the catalogue of a fresh database. Writes: nothing that stays.
Guarantee: what an app, an operator or a dashboard names has that name, type and default.
If it fails: somebody's program breaks at the next migrate; a public signature changes in a major release only.
"""

from __future__ import annotations

FUNCTIONS = {
    "publish": "workspace_id text, event_type text, payload jsonb, idempotency_key text DEFAULT NULL::text,"
    " ordering_key text DEFAULT NULL::text, priority smallint DEFAULT 1,"
    " deliver_at timestamp with time zone DEFAULT NULL::timestamp with time zone,"
    " traceparent text DEFAULT NULL::text -> uuid",
    "publish_many": "workspace_id text, event_type text, payloads jsonb[], priority smallint DEFAULT 2 -> SETOF uuid",
    "register_event_type": "name text, description text, schema jsonb DEFAULT NULL::jsonb,"
    " example jsonb DEFAULT NULL::jsonb -> void",
    "create_endpoint": "workspace_id text, url text, event_types text[], description text DEFAULT ''::text,"
    " headers jsonb DEFAULT '{}'::jsonb, filter jsonpath DEFAULT NULL::jsonpath, ordered boolean DEFAULT false,"
    " max_in_flight integer DEFAULT NULL::integer, max_per_second numeric DEFAULT NULL::numeric,"
    " timeout interval DEFAULT NULL::interval, retry_schedule interval[] DEFAULT NULL::interval[]"
    " -> TABLE(endpoint_id uuid, secret text)",
    "update_endpoint": "endpoint_id uuid, url text DEFAULT NULL::text, event_types text[] DEFAULT NULL::text[],"
    " description text DEFAULT NULL::text, headers jsonb DEFAULT NULL::jsonb, filter jsonpath DEFAULT NULL::jsonpath,"
    " ordered boolean DEFAULT NULL::boolean, max_in_flight integer DEFAULT NULL::integer,"
    " max_per_second numeric DEFAULT NULL::numeric, timeout interval DEFAULT NULL::interval,"
    " retry_schedule interval[] DEFAULT NULL::interval[] -> void",
    "set_endpoint_headers": "endpoint_id uuid, headers jsonb -> void",
    "rotate_secret": "endpoint_id uuid, overlap interval DEFAULT '24:00:00'::interval -> text",
    "pause_endpoint": "endpoint_id uuid -> void",
    "resume_endpoint": "endpoint_id uuid -> void",
    "delete_endpoint": "endpoint_id uuid -> void",
    "send_test_event": "endpoint_id uuid -> uuid",
    "replay": "event_id uuid, endpoint_id uuid DEFAULT NULL::uuid -> integer",
    "replay_endpoint": "endpoint_id uuid, since timestamp with time zone,"
    " until timestamp with time zone DEFAULT now(), states text[] DEFAULT '{dead}'::text[] -> bigint",
    "cancel": "event_id uuid, endpoint_id uuid DEFAULT NULL::uuid -> integer",
    "explain_delivery": "event_id uuid, endpoint_id uuid -> text",
}
COLUMNS = {
    "events": "event_id uuid, workspace_id text, event_type text, payload jsonb, ordering_key text, priority smallint,"
    " deliver_at timestamp with time zone, traceparent text, created_at timestamp with time zone",
    "deliveries": "event_id uuid, endpoint_id uuid, workspace_id text, state text, attempt_count integer,"
    " next_attempt_at timestamp with time zone, last_status smallint, last_error text,"
    " created_at timestamp with time zone, finished_at timestamp with time zone",
    "attempts": "event_id uuid, endpoint_id uuid, attempt_no integer, workspace_id text,"
    " started_at timestamp with time zone, duration_ms integer, url text, request_headers jsonb, request_body text,"
    " status smallint, response_headers jsonb, response_body text, error text, worker text",
}
VIEWS = (
    *("event_log", "delivery_log", "attempt_log", "dead_letters"),
    *("endpoint_health", "backlog", "workers", "partitions"),
)


def test_a_public_function_has_the_signature_that_programs_call(db):
    """Names, types, order and defaults; and one function of the name, or calls would be ambiguous."""
    found = db.execute(
        "select p.proname, pg_get_function_arguments(p.oid) || ' -> ' || pg_get_function_result(p.oid) from pg_proc p"
        " where p.pronamespace = 'outbox'::regnamespace and p.proname = any (%s)",
        [list(FUNCTIONS)],
    ).fetchall()
    assert sorted(found) == sorted(FUNCTIONS.items())


def test_a_table_that_people_see_has_the_columns_that_programs_name(db):
    """Others may follow; these come first, in this order, with these types."""
    for name, columns in COLUMNS.items():
        (found,) = db.execute(
            "select string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' order by a.attnum)"
            " from pg_attribute a where a.attrelid = ('outbox.' || %s)::regclass and a.attnum > 0 and not a.attisdropped",
            [name],
        ).fetchone()
        assert f"{found}, ".startswith(f"{columns}, "), name


def test_a_reader_may_read_every_view(connect):
    """What a DBA or a dashboard is told to look at is open to outbox_reader."""
    reader = connect("reader_login")
    for view in VIEWS:
        reader.execute(f"select * from outbox.{view} limit 1")
