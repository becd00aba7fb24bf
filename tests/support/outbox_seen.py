"""What a session sees of the schema, and the model in the same words.

Reads: every table that the property test touches. Writes: nothing.
Guarantee: a row that is in two places, or in none, is seen as that.
If it is wrong: the property test looks away.
"""

from __future__ import annotations

from tests.support.outbox_model import LATER

TABLES = [
    "fan_out_queue",
    "canceled_events",
    "idempotency_keys",
    "open_deliveries",
    "finished_deliveries",
    "kept_deliveries",
    "recorded_attempts",
    "late_results",
    "lost_leases",
    "operations",
    "endpoint_vault",
    "endpoint_versions",
    "endpoints",
    "events",
]
SEEN = """
select 'delivery', jsonb_build_array(d.event_id, d.endpoint_id), jsonb_build_array(d.state, d.attempt_count, d.failed_count,
       d.lost_count, d.replay_count, d.priority, d.last_status, case when d.state = 'dead' then d.reason end,
       case when d.lease_expires_at > clock_timestamp() then 'live' when d.lease_expires_at is not null then 'expired' end,
       o.lease_token, d.state = 'pending' and d.next_attempt_at > clock_timestamp() + interval '30 minutes',
       d.ordering_key)
from outbox.deliveries d left join outbox.open_deliveries o on o.event_id = d.event_id and o.endpoint_id = d.endpoint_id
union all
select 'event', jsonb_build_array(e.event_id), jsonb_build_array(e.workspace_id, e.priority)
from outbox.events e join outbox.event_types y on y.name = e.event_type and not y.operational
union all
select 'queued', jsonb_build_array(q.event_id), jsonb_build_array()
from outbox.fan_out_queue q join outbox.events e on e.event_id = q.event_id
join outbox.event_types y on y.name = e.event_type and not y.operational
union all
select 'canceled', jsonb_build_array(c.event_id), jsonb_build_array() from outbox.canceled_events c
union all
select 'endpoint', jsonb_build_array(p.endpoint_id),
       jsonb_build_array(p.state, p.version, p.failing_since is not null, v.previous_secret is not null)
from outbox.endpoints p left join outbox.endpoint_vault v on v.endpoint_id = p.endpoint_id
union all
select 'attempt', jsonb_build_array(a.event_id, a.endpoint_id, a.attempt_no), jsonb_build_array(a.status)
from outbox.recorded_attempts a
union all
select 'late', jsonb_build_array(l.event_id, l.endpoint_id), jsonb_build_array(l.attempt_no, l.lease_token, l.status)
from outbox.late_results l
union all
select 'lost', jsonb_build_array(l.event_id, l.endpoint_id, l.lease_token, l.attempt_no), jsonb_build_array()
from outbox.lost_leases l
"""


def shown(kind, key, row):
    """A row of the model in the words of SEEN."""
    if kind == "late":
        return key[1:], row
    if kind == "lost":
        return (*key, row), ()
    values = {
        "delivery": (
            [
                "state",
                "attempts",
                "failed",
                "lost",
                "replays",
                "priority",
                "status",
                "reason",
                "lease",
                "token",
            ],
            row,
        ),
        "event": (["workspace", "priority"], row),
        "endpoint": (["state", "version", "failing", "rotated"], row),
    }
    if kind == "attempt":
        return key, (row[0],)
    names, of = values.get(kind, ((), None))
    found = tuple(getattr(of, name) for name in names)
    if kind == "delivery":
        return key, (*found, row.due == LATER, row.order and row.order[0])
    return key, found
