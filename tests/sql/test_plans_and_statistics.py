"""The worker's statements walk their indexes whatever the statistics say.

Reads: plans of the statements as a worker's session prepares them. Writes: queues that fill, empty and fill again.
Guarantee: generic plans, made once and kept for hours, do not sort or collect what waits, and find a delivery by its key.
If it fails: a plan made while a queue was empty reads all of a burst in each round, or all that waits at an endpoint for
each of its deliveries, until somebody analyzes the table.
"""

from __future__ import annotations

import re
from itertools import takewhile

import pytest

from outbox_worker import sqlfiles
from outbox_worker.database import SESSION

ARGUMENTS = {
    "fan_out": {
        "fair": "{fair}", "mark": "0", "batch": "400", "priorities": "'{{1}}'", "buckets": "'{{5}}'", "marks": "'{{0}}'",
        "quotas": "'{{1}}'", "shards": "'{{}}'", "rooms": "'{{}}'", "default_room": "8", "room": "100", "careful": "false",
        "lease_token": "gen_random_uuid()", "worker_no": "1", "lease_seconds": "60",
    },
    "find_places": {"priorities": "'{{-1}}'", "buckets": "'{{0}}'", "looks": "256"},
    "claim": {
        "endpoint_ids": "array[gen_random_uuid()]", "rooms": "'{{8}}'", "busy": "'{{0}}'",
        **{f"marks{n}": "'{{epoch}}'" for n in range(3)}, **{f"turns{n}": "'{{0}}'" for n in range(3)},
        "weights": "'{{1,2,8}}'", "lease_token": "gen_random_uuid()", "worker_no": "1", "lease_seconds": "60",
    },
    "claim_ordered": {
        "endpoint_ids": "array[gen_random_uuid()]", "rooms": "'{{8}}'", "busy": "'{{0}}'", "after_keys": "'{{\"\"}}'", "look": "500",
        "lease_token": "gen_random_uuid()", "worker_no": "1", "lease_seconds": "60",
    },
    "find_due": {"shards": "'{{1}}'", "look": "300", "marks": "'{{}}'"},
    "reap": {"endpoint_ids": "array[gen_random_uuid()]", "look": "300"},
    "release": dict.fromkeys(("event_ids", "endpoint_ids", "workspace_ids", "lease_tokens"), "null"),
    "settle": {
        **dict.fromkeys(("event_ids", "endpoint_ids", "workspace_ids", "lease_tokens", "attempt_nos", "versions", "event_types", "verdicts", "retry_seconds", "started_ats", "durations", "statuses", "errors", "response_headers", "response_bodies"), "null"),
        "worker_no": "1",
    },
}  # fmt: skip
QUEUES = ("fan_out_queue", "open_deliveries")
FILL = """
set session_replication_role = replica;
insert into outbox.fan_out_queue (bucket, priority, event_id, workspace_id)
select n % 20, 1, gen_random_uuid(), 'ws_' || n % 20 from generate_series(1, 20000) n;
insert into outbox.open_deliveries (event_id, endpoint_id, workspace_id, priority, next_attempt_at)
select gen_random_uuid(), ('00000000-0000-7000-8000-' || lpad((n % 20)::text, 12, '0'))::uuid, 'ws_' || n % 20, 1, now()
from generate_series(1, 20000) n;
set session_replication_role = origin;
"""
STATISTICS = {
    "never taken": "select 1",
    "of empty queues": "vacuum analyze outbox.fan_out_queue, outbox.open_deliveries",
    "of full ones": FILL + "analyze outbox.fan_out_queue, outbox.open_deliveries",
    "of such as were full": FILL
    + "vacuum analyze outbox.fan_out_queue, outbox.open_deliveries;"
    + "delete from outbox.fan_out_queue; delete from outbox.open_deliveries;"
    + "analyze outbox.fan_out_queue, outbox.open_deliveries",
    "of such as were almost emptied": FILL
    + "delete from outbox.open_deliveries where event_id not in (select event_id from outbox.open_deliveries limit 20);"
    + "analyze outbox.open_deliveries",
    "of many endpoints": """
        set session_replication_role = replica;
        insert into outbox.endpoints (workspace_id, url, event_types)
        select 'ws_' || n % 500, 'https://example.com/' || n, '{*}' from generate_series(1, 1000) n;
        set session_replication_role = origin;
        vacuum analyze outbox.endpoints""",
    "of a few endpoints and cancellations": """
        set session_replication_role = replica;
        insert into outbox.endpoints (workspace_id, url, event_types)
        select 'ws_' || n, 'https://example.com/' || n, '{*}' from generate_series(1, 3) n;
        insert into outbox.canceled_events (event_id, workspace_id) select gen_random_uuid(), 'ws_1' from generate_series(1, 3);
        set session_replication_role = origin;
        vacuum analyze outbox.endpoints, outbox.canceled_events""",
    "of no endpoints and cancellations": "vacuum analyze outbox.endpoints, outbox.canceled_events",
    "of such as were emptied and cut off": FILL
    + "delete from outbox.fan_out_queue; delete from outbox.open_deliveries;"
    + "vacuum analyze outbox.fan_out_queue, outbox.open_deliveries",
}


def generic_plan(connection, name, fair):
    """The plan that a worker's session makes once, as lines."""
    text = sqlfiles.read(f"queries/{name}.sql").decode()
    arguments = ARGUMENTS[name]
    for number, parameter in enumerate(arguments, 1):
        text = text.replace(f"%({parameter})s", f"${number}")
    values = ", ".join(arguments.values()).format(fair=fair)
    connection.execute(f"prepare planned as {text}".encode())
    lines = [row[0] for row in connection.execute(f"explain (costs off) execute planned({values})".encode())]
    connection.execute("deallocate planned")
    return lines


def sorted_or_collected(lines):
    """Nodes that read a queue otherwise than by walking an index in its order, from the first row that is wanted."""
    bad = []
    for above, line in zip(["", *lines], lines, strict=False):
        if not re.search(rf" on ({'|'.join(QUEUES)})\b", line) or re.match(
            r"\s*(->\s*)?(Update|Insert|Delete) on ", line
        ):
            continue
        if "Bitmap" in line or "Seq Scan" in line or "Sort Key" in above:
            bad += [above.strip(), line.strip()]
    return bad


def looked_through(lines):
    """Nodes that look for a delivery, endpoint or cancellation by its key in an index of something else, or in a whole one."""
    bad = []
    for place, line in enumerate(lines):
        if not (table := re.search(r"Scan .*\bon (open_deliveries|endpoints|canceled_events)\b", line)):
            continue
        details = list(takewhile(lambda one: not one.lstrip().startswith("->"), lines[place + 1 :]))
        filtered = any(re.search("Filter: .*(event|endpoint)_id ", one) for one in details)
        whole = not any(" Cond: " in one for one in details)
        if table[1] == "endpoints":  # by its id, in an index where that comes second
            whole = whole or (
                any(" Cond: (endpoint_id " in one for one in details) and "endpoints_pkey" not in line
            )
        if filtered or whole:
            bad += [line.strip(), *(one.strip() for one in details)]
    return bad


def looped(lines):
    """Joins that read a whole working set again for each row of another."""
    bad = []
    for place, line in enumerate(lines):
        if "Nested Loop" not in line or "Join Filter" not in lines[place + 1]:
            continue
        child = " " * (line.index("Nested Loop") + 2) + "->"
        inner = [number for number in range(place, len(lines)) if lines[number].startswith(child)][1]
        if "CTE Scan" in lines[inner] or ("Materialize" in lines[inner] and "CTE Scan" in lines[inner + 1]):
            bad += [line.strip(), lines[place + 1].strip(), lines[inner].strip()]
    return bad


@pytest.mark.parametrize("statistics", STATISTICS)
def test_a_plan_that_is_kept_walks_its_index_whatever_the_statistics_said(db, statistics):
    for statement in STATISTICS[statistics].split(";"):
        if statement.strip():
            db.execute(statement.encode())
    for name, value in SESSION.items():
        db.execute("select set_config(%s, %s, false)", [name, value])
    bad = {
        (name, fair): found
        for name in ARGUMENTS
        for fair in ("true", "false")
        for lines in [generic_plan(db, name, fair)]
        if (found := sorted_or_collected(lines) + looked_through(lines) + looped(lines))
    }
    assert bad == {}
