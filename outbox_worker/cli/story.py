"""The story of one event: its facts, its deliveries and attempts, who did not get it and why, what people did.

Reads: the views for outbox_reader, outbox.explain_delivery. Writes: nothing.
Guarantee: bounded: at most `endpoints` explanations, however many endpoints a workspace has.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from outbox_worker.cli.session import Connection, one, rows
from outbox_worker.errors import ConfigError

Story = dict[str, Any]


def story_of(connection: Connection, event_id: UUID, *, endpoints: int) -> Story:
    event = event_row(connection, event_id)
    deliveries = rows(
        connection,
        """
        select d.endpoint_id, d.url, d.state, d.why, d.attempt_count, d.failed_count, d.lost_count, d.replay_count, d.last_status,
               d.last_error, d.next_attempt_at, d.worker, d.lease_expires_at, d.created_at, d.finished_at, d.total_ms
        from outbox.delivery_log d where d.event_id = %s order by d.created_at, d.endpoint_id
        """,
        [event_id],
    )
    attempts = rows(
        connection,
        """
        select a.endpoint_id, a.attempt_no, a.started_at, a.duration_ms, a.url, a.status, a.error, a.worker, a.endpoint_version,
               a.request_headers, a.response_headers, a.response_body, a.response_gone_at
        from outbox.attempt_log a where a.event_id = %s order by a.endpoint_id, a.attempt_no
        """,
        [event_id],
    )
    lost = rows(
        connection,
        """
        select l.endpoint_id, l.attempt_no, l.worker, l.expired_at, l.recorded_at, l.late_started_at, l.late_status, l.late_error
        from outbox.lost_lease_log l where l.event_id = %s order by l.recorded_at
        """,
        [event_id],
    )
    for delivery in deliveries:
        delivery["attempts"] = of_endpoint(attempts, delivery["endpoint_id"])
        delivery["lost_leases"] = of_endpoint(lost, delivery["endpoint_id"])
    return {
        **event,
        "deliveries": deliveries,
        **not_delivered(connection, event, limit=endpoints),
        "operations": operations(connection, event, deliveries),
    }


def of_endpoint(found: list[dict[str, Any]], endpoint_id: UUID) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name != "endpoint_id"}
        for row in found
        if row["endpoint_id"] == endpoint_id
    ]


def event_row(connection: Connection, event_id: UUID) -> Story:
    found = rows(
        connection,
        """
        select e.event_id, e.workspace_id, e.event_type, e.created_at, e.deliver_at, e.priority, e.ordering_key, e.traceparent,
               e.canceled_at, e.canceled_by, e.payload, e.payload_gone_at,
               convert_from(outbox.event_body(e.event_id, e.event_type, e.created_at, e.workspace_id, e.payload),
                            'UTF8') as request_body
        from outbox.event_log e where e.event_id = %s
        """,
        [event_id],
    )
    if not found:
        made = (
            one(connection, "select outbox.event_id_time(%s::uuid)", [event_id])
            if event_id.version == 7
            else None
        )
        raise ConfigError(
            f"looking for event {event_id}: this database has none"
            + (f" (by its id it was made at {made:%Y-%m-%d %H:%M:%S %Z})" if made else "")
            + ". It was rolled back, is older than the retention, or lies in another database."
        )
    return found[0]


def not_delivered(connection: Connection, event: Story, *, limit: int) -> Story:
    """Explain the endpoints of the workspace that have no delivery of the event."""
    found = rows(
        connection,
        """
        select n.endpoint_id, h.url, n.state from outbox.endpoints n
        left join outbox.endpoint_health h on h.endpoint_id = n.endpoint_id and h.workspace_id = n.workspace_id
        where n.workspace_id = %(workspace)s::text and (n.state <> 'deleted' or n.state_changed_at > %(at)s::timestamptz)
          and not exists (select from outbox.deliveries d where d.event_id = %(event)s::uuid and d.endpoint_id = n.endpoint_id)
        order by n.created_at
        """,
        {"workspace": event["workspace_id"], "at": event["created_at"], "event": event["event_id"]},
    )
    for endpoint in found[:limit]:
        says = one(
            connection,
            "select outbox.explain_delivery(%s::uuid, %s::uuid)",
            [event["event_id"], endpoint["endpoint_id"]],
        )
        endpoint["why"] = says.split("Not sent. ", 1)[-1]
    return {"not_delivered": found[:limit], "not_delivered_count": len(found)}


def operations(
    connection: Connection, event: Story, deliveries: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """List what people did to the event, alone or in a list, and replays of its endpoints that may have taken it along,
    begun between its first and its last attempt there.
    """
    replayed = [delivery for delivery in deliveries if delivery["replay_count"]]
    return rows(
        connection,
        """
        select o.operation_id, o.kind, o.state, o.endpoint_id, o.created_at, o.requested_by, o.reason, o.affected,
               o.event_id is null as of_many
        from outbox.operation_log o
        where o.event_id = %(event)s::uuid
           or (o.event_id is null and o.parameters ? 'since' and o.kind = 'replay' and o.affected > 0
               and exists (select from unnest(%(endpoints)s::uuid[], %(firsts)s::timestamptz[], %(lasts)s::timestamptz[])
                                       as r (endpoint_id, first_at, last_at)
                           where r.endpoint_id = o.endpoint_id and o.created_at > r.first_at
                             and (r.last_at is null or o.created_at < r.last_at)))
           or o.operation_id in (select l.operation_id from outbox.operation_events l
                                 where l.event_id = %(event)s::uuid and l.replayed_at is not null)
        order by o.created_at
        """,
        {
            "event": event["event_id"],
            "endpoints": [delivery["endpoint_id"] for delivery in replayed],
            "firsts": [first_moment(delivery) for delivery in replayed],
            "lasts": [last_moment(delivery) for delivery in replayed],
        },
    )


def first_moment(delivery: dict[str, Any]) -> datetime:
    """Before it, nothing could have been replayed."""
    moment: datetime = (
        delivery["attempts"][0]["started_at"] if delivery["attempts"] else delivery["created_at"]
    )
    return moment


def last_moment(delivery: dict[str, Any]) -> datetime | None:
    """After it, no replay has moved it: null while it is open, or was closed without an attempt."""
    if not delivery["attempts"] or delivery["finished_at"] is None or delivery["state"] == "canceled":
        return None
    moment: datetime = delivery["attempts"][-1]["started_at"]
    return moment
