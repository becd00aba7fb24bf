-- Views for tenants: the workspaces that tenant_logins gives the login role, and nothing else.
-- By session_user, which neither SET ROLE nor a session variable changes. Response headers and bodies and the words of
-- an error stay away: they would turn a request to an inner address into a way to read its answer.

create or replace view outbox.tenant_events with (security_barrier) as
select e.event_id, e.workspace_id, e.event_type, e.payload, e.ordering_key, e.priority, e.deliver_at, e.traceparent, e.created_at,
       e.payload_gone_at
from outbox.tenant_logins t
join outbox.known_events e on e.workspace_id = t.workspace_id
where t.login_role = session_user;
comment on view outbox.tenant_events is 'The events of the login''s workspaces.';

create or replace view outbox.tenant_endpoints with (security_barrier) as
select n.endpoint_id, n.workspace_id, outbox.mask_url(n.url) as url, n.event_types, n.description, n.filter, n.ordered,
       n.max_in_flight, n.max_per_second, n.timeout, n.retry_schedule, n.header_names, n.state,
       case when n.state = 'disabled' then n.state_reason end as state_reason, n.hold_reason, n.failing_since, n.created_at, n.updated_at
from outbox.tenant_logins t
join outbox.endpoints n on n.workspace_id = t.workspace_id
where t.login_role = session_user;
comment on view outbox.tenant_endpoints is 'The endpoints of the login''s workspaces.';

create or replace view outbox.tenant_deliveries with (security_barrier) as
select d.event_id, d.endpoint_id, d.workspace_id,
       (select e.event_type from outbox.known_events e
        where e.event_id = d.event_id and e.workspace_id = d.workspace_id limit 1) as event_type,
       d.state, d.reason, d.attempt_count, d.next_attempt_at, d.last_status,
       substring(d.last_error from '^[a-z_]+') as last_error, d.created_at, d.finished_at
from outbox.tenant_logins t
join outbox.endpoints n on n.workspace_id = t.workspace_id
join outbox.deliveries d on d.endpoint_id = n.endpoint_id and d.workspace_id = n.workspace_id
where t.login_role = session_user;
comment on view outbox.tenant_deliveries is 'The deliveries to the endpoints of the login''s workspaces.';

create or replace view outbox.tenant_attempts with (security_barrier) as
select a.event_id, a.endpoint_id, a.attempt_no, a.workspace_id, a.started_at, a.duration_ms, outbox.mask_url(v.url) as url,
       outbox.sent_headers(a.event_id, a.attempt_no, a.started_at,
                           (select e.traceparent from outbox.known_events e
                            where e.event_id = a.event_id and e.workspace_id = a.workspace_id limit 1),
                           v.signature_header, v.header_names) as request_headers,
       (select convert_from(outbox.event_body(e.event_id, e.event_type, e.created_at, e.workspace_id, e.payload), 'UTF8')
        from outbox.known_events e
        where e.event_id = a.event_id and e.workspace_id = a.workspace_id limit 1) as request_body,
       a.status, substring(a.error from '^[a-z_]+') as error
from outbox.tenant_logins t
join outbox.known_attempts a on a.workspace_id = t.workspace_id
left join outbox.endpoint_versions v
       on v.endpoint_id = a.endpoint_id and v.version = a.endpoint_version and v.workspace_id = a.workspace_id
where t.login_role = session_user;
comment on view outbox.tenant_attempts is 'The requests made to the endpoints of the login''s workspaces, without what came back but the status.';

do $$
declare
    meanings constant jsonb := '{
        "event_id": "The event; the webhook-id.",
        "endpoint_id": "The endpoint.",
        "workspace_id": "The workspace.",
        "event_type": "What happened.",
        "payload": "The event''s payload; null when it is gone.",
        "payload_gone_at": "When the payload went; null while it is there.",
        "ordering_key": "Events of one key go to ordered endpoints one at a time, in order.",
        "priority": "0 urgent, 1 normal, 2 bulk.",
        "deliver_at": "Not before this moment; null is at once.",
        "traceparent": "W3C trace context that the event carries.",
        "created_at": "When it was recorded.",
        "url": "Origin of the URL; path and query are masked.",
        "event_types": "The subscription.",
        "description": "Free text for people.",
        "filter": "jsonpath predicate on the payload; null takes everything.",
        "ordered": "Whether the events of one ordering key are delivered one at a time, in order.",
        "max_in_flight": "Most requests at once; null leaves it to the adaptive limit.",
        "max_per_second": "Most requests a second; null is no limit.",
        "timeout": "Deadline of the whole exchange; null takes the default.",
        "retry_schedule": "Delays after each failed attempt; null takes the default.",
        "header_names": "Names of the custom headers.",
        "state": "State of the delivery: pending, delivered, dead or canceled.",
        "state_reason": "Why it is disabled: gone or failing.",
        "hold_reason": "Why deliveries wait although the endpoint is active.",
        "failing_since": "First failure since the last success; null while it answers.",
        "updated_at": "When it last changed.",
        "reason": "Why it is dead (exhausted, gone, crash_loop) or canceled.",
        "attempt_count": "Attempts made, over all replays.",
        "next_attempt_at": "When the next attempt is due; of a finished delivery, when the last one was.",
        "last_status": "HTTP status of the last attempt; null when it got none.",
        "last_error": "Kind of the last attempt''s failure.",
        "finished_at": "When the delivery reached its final state.",
        "attempt_no": "Number of the attempt, from 1.",
        "started_at": "When the request began.",
        "duration_ms": "Whole exchange in milliseconds.",
        "request_headers": "Request headers; signatures and custom values are masked.",
        "request_body": "Request body, byte for byte.",
        "status": "HTTP status; null when none arrived.",
        "error": "Kind of the failure; null when there was none."}';
    one record;
begin
    for one in
        select c.relname, a.attname from pg_catalog.pg_class c join pg_catalog.pg_attribute a on a.attrelid = c.oid
        where c.relnamespace = 'outbox'::regnamespace and a.attnum > 0
          and c.relname = any ('{tenant_events,tenant_endpoints,tenant_deliveries,tenant_attempts}'::text[]) loop
        execute format('comment on column outbox.%I.%I is %L', one.relname, one.attname, meanings ->> one.attname::text);
    end loop;
end
$$;
comment on column outbox.tenant_endpoints.state is 'active, paused, disabled or deleted.';
