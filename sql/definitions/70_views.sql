-- Views over the history, for outbox_reader: what happened to an event, what was sent, what came back, what died.
-- They run with the owner's rights, grow by appended columns only, and show URLs masked.
-- A column that costs a look-up is a subquery of its own or an aggregate: nobody pays for a column that is not selected.

create or replace function outbox.readable(content bytea) returns text
language plpgsql immutable strict set search_path = pg_catalog, pg_temp
as $$
begin
    return convert_from(content, 'UTF8');
exception
    when others then  -- not UTF-8, a NUL byte, or a character that this database's encoding lacks
        return '\x' || encode(content, 'hex');
end
$$;
comment on function outbox.readable(bytea) is
    'The bytes as text if they are valid UTF-8, else \x and their hexadecimal form. Never raises.';

create or replace function outbox.shown_url(url text) returns text
language sql stable parallel safe
return case when pg_has_role(current_user, 'outbox_secrets', 'usage') then url else outbox.mask_url(url) end;
comment on function outbox.shown_url(text) is
    'The URL as the present role may see it: whole for members of outbox_secrets, else without path and query.';

create or replace function outbox.sent_headers(
    event_id uuid, attempt_no int, started_at timestamptz, traceparent text, signature_header text, header_names text[])
returns jsonb
language sql immutable parallel safe
return jsonb_build_object(
        'content-type', 'application/json',
        'user-agent', 'outbox-worker/1 (+https://www.standardwebhooks.com)',
        'webhook-id', event_id,
        'webhook-timestamp', floor(extract(epoch from started_at))::bigint::text,
        'webhook-attempt', attempt_no::text,
        'webhook-signature', 'v1,***')
    || case when traceparent is not null then jsonb_build_object('traceparent', traceparent) else '{}' end
    || case when signature_header is not null
            then jsonb_build_object(signature_header, 't=' || floor(extract(epoch from started_at))::bigint || ',v1=***')
            else '{}' end
    || coalesce((select jsonb_object_agg(h.name, '***') from unnest(header_names) as h (name)), '{}');
comment on function outbox.sent_headers(uuid, int, timestamptz, text, text, text[]) is
    'The request headers of an attempt, made again from what is stored; signatures and custom values are ***.';

-- The history with what outlived its partition. Internal: nobody is granted these.
create or replace view outbox.known_events as
select event_id, workspace_id, event_type, payload, ordering_key, priority, deliver_at, traceparent, created_at,
       null::timestamptz as payload_gone_at
from outbox.events
union all
select event_id, workspace_id, event_type, payload, ordering_key, priority, deliver_at, traceparent, created_at, null::timestamptz
from outbox.kept_events
union all
select event_id, workspace_id, event_type, payload, null::text, priority, deliver_at, traceparent, created_at, payload_gone_at
from outbox.bare_events;
comment on view outbox.known_events is
    'Events, with those of the kept dead letters and those whose payload is gone. Internal; read outbox.event_log.';

create or replace view outbox.known_attempts as
select event_id, endpoint_id, attempt_no, workspace_id, endpoint_version, started_at, duration_ms, worker_no, status, error,
       response_headers, response_body, null::timestamptz as response_gone_at
from outbox.recorded_attempts
union all
select event_id, endpoint_id, attempt_no, workspace_id, endpoint_version, started_at, duration_ms, worker_no, status, error,
       response_headers, response_body, null::timestamptz
from outbox.kept_attempts
union all
select event_id, endpoint_id, attempt_no, workspace_id, endpoint_version, started_at, duration_ms, worker_no, status, error,
       null::jsonb, null::bytea, response_gone_at
from outbox.bare_attempts;
comment on view outbox.known_attempts is
    'Attempts, with those of the kept dead letters and those whose response is gone. Internal; read outbox.attempts.';

create or replace view outbox.attempts as
select a.event_id, a.endpoint_id, a.attempt_no, a.workspace_id, a.started_at, a.duration_ms,
       outbox.shown_url(v.url) as url,
       outbox.sent_headers(a.event_id, a.attempt_no, a.started_at,
                           (select e.traceparent from outbox.known_events e
                            where e.event_id = a.event_id and e.workspace_id = a.workspace_id limit 1),
                           v.signature_header, v.header_names) as request_headers,
       (select convert_from(outbox.event_body(e.event_id, e.event_type, e.created_at, e.workspace_id, e.payload), 'UTF8')
        from outbox.known_events e
        where e.event_id = a.event_id and e.workspace_id = a.workspace_id limit 1) as request_body,
       a.status, a.response_headers, outbox.readable(a.response_body) as response_body, a.error,
       coalesce(w.name, 'worker ' || a.worker_no) as worker,
       a.endpoint_version, a.response_gone_at
from outbox.known_attempts a
left join outbox.endpoint_versions v
       on v.endpoint_id = a.endpoint_id and v.version = a.endpoint_version and v.workspace_id = a.workspace_id
left join outbox.worker_processes w on w.worker_no = a.worker_no;
comment on view outbox.attempts is
    'Every HTTP request, with the request itself: made again from the event and the endpoint''s version, byte for byte but for what is masked.';

create or replace view outbox.attempt_log as
select a.event_id, a.endpoint_id, a.attempt_no, a.workspace_id,
       (select e.event_type from outbox.known_events e
        where e.event_id = a.event_id and e.workspace_id = a.workspace_id limit 1) as event_type,
       a.started_at, a.duration_ms, a.status, a.error,
       substring(a.url from '^https?://(\[[^]]*\]|[^/:?#]+)') as url_host,
       a.url, a.request_headers, a.request_body, a.response_headers, a.response_body, a.worker, a.endpoint_version,
       a.response_gone_at
from outbox.attempts a;
comment on view outbox.attempt_log is 'outbox.attempts with the event''s type and the host that was asked.';

create or replace view outbox.event_log as
select e.event_id, e.workspace_id, e.event_type, e.payload, e.ordering_key, e.priority, e.deliver_at, e.traceparent, e.created_at,
       d.deliveries, d.delivered, d.dead, d.canceled, d.pending, c.canceled_at, c.canceled_by, e.payload_gone_at
from outbox.known_events e
left join lateral (
    select count(*) as deliveries,
           count(*) filter (where k.state = 'delivered') as delivered,
           count(*) filter (where k.state = 'dead') as dead,
           count(*) filter (where k.state = 'canceled') as canceled,
           count(*) filter (where k.state = 'pending') as pending
    from outbox.deliveries k
    where k.event_id = e.event_id and k.workspace_id = e.workspace_id) d on true
left join outbox.canceled_events c on c.event_id = e.event_id;
comment on view outbox.event_log is 'Every event, with how its deliveries stand.';

create or replace view outbox.dead_letters as
select d.event_id, d.endpoint_id, d.workspace_id, e.event_type, d.reason, d.attempt_count, d.last_status, d.last_error,
       d.finished_at, d.replay_count, d.lost_count, n.state as endpoint_state, outbox.shown_url(n.url) as url,
       (select p.payload from outbox.known_events p
        where p.event_id = d.event_id and p.workspace_id = d.workspace_id limit 1) as payload,
       e.event_created_at
from outbox.deliveries d
left join lateral (
    select min(k.event_type) as event_type, min(k.created_at) as event_created_at
    from outbox.known_events k
    where k.event_id = d.event_id and k.workspace_id = d.workspace_id) e on true
left join outbox.endpoints n on n.endpoint_id = d.endpoint_id and n.workspace_id = d.workspace_id
where d.state = 'dead';
comment on view outbox.dead_letters is
    'Deliveries that were given up, also those kept beyond their partition. outbox.replay(event_id, endpoint_id) sends one again.';

create or replace view outbox.lost_lease_log as
select l.event_id, l.endpoint_id, l.workspace_id, l.attempt_no, coalesce(w.name, 'worker ' || l.worker_no) as worker,
       l.expired_at, l.recorded_at, r.started_at as late_started_at, r.status as late_status, r.error as late_error
from outbox.lost_leases l
left join outbox.worker_processes w on w.worker_no = l.worker_no
left join lateral (
    select t.started_at, t.status, t.error from outbox.late_results t
    where t.event_id = l.event_id and t.endpoint_id = l.endpoint_id and t.lease_token = l.lease_token
    order by t.recorded_at limit 1) r on true;
comment on view outbox.lost_lease_log is
    'Leases that expired unsettled: the request may have been made. If its result arrived too late to count, it is shown here.';

create or replace view outbox.operation_log as
select o.operation_id, o.kind, o.state, o.workspace_id, o.event_id, o.endpoint_id, o.parameters, o.affected, o.reason,
       o.requested_by, o.created_at
from outbox.operations o;
comment on view outbox.operation_log is 'Replays, cancellations and erasures: who, when, why, and how many deliveries, or events erased.';

-- One word for one thing: a column of the same name means the same in every view.
do $$
declare
    meanings constant jsonb := '{
        "event_id": "The event; the webhook-id.",
        "endpoint_id": "The endpoint.",
        "workspace_id": "The tenant.",
        "event_type": "A name in outbox.event_types.",
        "payload": "The event''s payload; null when it is gone.",
        "payload_gone_at": "When the payload went (settings.payload_retention); null while it is there.",
        "response_gone_at": "When the response went (settings.response_retention); null while it is kept.",
        "ordering_key": "Deliveries of one key go to ordered endpoints one at a time, in order.",
        "priority": "0 urgent, 1 normal, 2 bulk.",
        "deliver_at": "Not before this moment; null is at once.",
        "traceparent": "W3C trace context that the event carries.",
        "created_at": "When it was recorded.",
        "event_created_at": "When the event was recorded.",
        "state": "pending, delivered, dead or canceled.",
        "reason": "Why it is dead (exhausted, gone, crash_loop) or canceled.",
        "attempt_count": "Attempts made, over all replays.",
        "lost_count": "Lost leases since the last replay.",
        "replay_count": "How often the delivery was replayed.",
        "last_status": "HTTP status of the last attempt; null when it got none.",
        "last_error": "Why the last attempt failed.",
        "finished_at": "When the delivery reached its final state.",
        "attempt_no": "Number of the attempt, from 1, over all replays.",
        "endpoint_version": "Version of the endpoint that the request was made with.",
        "started_at": "When the request began, by the database clock.",
        "duration_ms": "Whole exchange in milliseconds.",
        "worker_no": "Number of the worker (outbox.workers).",
        "worker": "Worker: host and process id.",
        "status": "HTTP status; null when none arrived.",
        "error": "Why there is no status, or why the status is a failure.",
        "url": "URL; its path and query are masked unless outbox_secrets reads.",
        "url_host": "Host of the URL.",
        "request_headers": "Request headers; signatures and custom values are masked.",
        "request_body": "Request body, byte for byte.",
        "response_headers": "Response headers, bounded.",
        "response_body": "First bytes of the response body: text where it is UTF-8, else hexadecimal.",
        "deliveries": "Deliveries of the event: 0 before the fan-out, or when no endpoint matched.",
        "delivered": "Of these, answered with 2xx.",
        "dead": "Of these, dead letters.",
        "canceled": "Of these, canceled.",
        "pending": "Of these, still owed.",
        "canceled_at": "When the whole event was canceled before its fan-out.",
        "canceled_by": "Login role that canceled it.",
        "endpoint_state": "State of the endpoint now.",
        "expired_at": "When the lease ended.",
        "recorded_at": "When that was found.",
        "late_started_at": "When the request began, if its result arrived late.",
        "late_status": "HTTP status of the late result.",
        "late_error": "Error of the late result.",
        "operation_id": "Identifier, time-ordered.",
        "kind": "replay, cancel or erase.",
        "parameters": "What else was asked for.",
        "affected": "Deliveries touched; of an erase, events that had something to erase.",
        "requested_by": "Login role that asked."}';
    one record;
begin
    for one in
        select c.relname, a.attname from pg_catalog.pg_class c join pg_catalog.pg_attribute a on a.attrelid = c.oid
        where c.relnamespace = 'outbox'::regnamespace and a.attnum > 0
          and c.relname = any ('{known_events,known_attempts,attempts,attempt_log,event_log,dead_letters,
                                 lost_lease_log,operation_log}'::text[]) loop
        execute format('comment on column outbox.%I.%I is %L', one.relname, one.attname, meanings ->> one.attname::text);
    end loop;
end
$$;
comment on column outbox.operation_log.state is 'running while workers carry it on in slices, then done; or canceled.';
comment on column outbox.operation_log.reason is 'Why, in the words of who asked.';
comment on column outbox.operation_log.event_id is 'The event, when only one is touched.';
comment on column outbox.operation_log.endpoint_id is 'The endpoint, when only one is touched.';
comment on column outbox.operation_log.workspace_id is 'The tenant, when only one is touched.';
comment on column outbox.operation_log.created_at is 'When it was asked for.';
comment on column outbox.lost_lease_log.attempt_no is 'Number the attempt would have had.';
