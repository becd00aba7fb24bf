-- Views of the present: what is waiting and why, who works, who is slow, who is failing.
-- Health is read from the append-only minute rollups, never from the attempts.

create or replace function outbox.hold_of(state text, state_reason text, hold_reason text) returns text
language sql immutable parallel safe
return case
    when state = 'active' and hold_reason = 'origin_changed' then 'origin changed: renew secret and headers'
    when state = 'active' and hold_reason = 'secret_unreadable' then 'secret unreadable'
    when state = 'active' then hold_reason
    else 'endpoint ' || state || case when state = 'disabled' and state_reason is not null then ': ' || state_reason else '' end
end;
comment on function outbox.hold_of(text, text, text) is
    'Why an endpoint''s deliveries are held, in words (paused, disabled, deleted, or its secrets not usable); null when they are not.';

create or replace function outbox.latency_percentile(counts bigint[], fraction double precision) returns integer
language sql immutable strict parallel safe
as $$
    select (2 ^ (b.place - 1))::integer
    from (select u.place, u.total, sum(u.amount) over (order by u.place) as running
          from (select c.place, c.amount, sum(c.amount) over () as total
                from unnest(counts) with ordinality as c (amount, place)) u) b
    where b.total > 0 and b.running >= b.total * fraction
    order by b.place
    limit 1
$$;
comment on function outbox.latency_percentile(bigint[], double precision) is
    'Upper bound in milliseconds of the bucket that holds a percentile; 65536 stands for longer than 32768.';

-- What holds an endpoint, by its row, its shard and its owner's newest report. Internal.
create or replace view outbox.endpoint_reports as
select n.endpoint_id, n.workspace_id,
       outbox.hold_of(n.state, n.state_reason, n.hold_reason) as hold,
       case when w.worker_no is null then 'no worker'
            when m.at > statement_timestamp() - interval '3 minutes' then m.waits_for end as waits_for,
       w.name as worker, m.at as reported_at, m.circuit, m.in_flight_limit,
       case when m.at > statement_timestamp() - interval '3 minutes' then m.in_flight else 0 end as in_flight
from outbox.endpoints n
left join outbox.shards s on s.shard = n.shard
left join outbox.worker_processes w
       on w.worker_no = s.worker_no and w.stopped_at is null and w.expires_at > statement_timestamp()
left join lateral (
    select e.at, e.circuit, e.in_flight, e.in_flight_limit, e.waits_for
    from outbox.endpoint_minutes e
    where e.endpoint_id = n.endpoint_id and e.at > statement_timestamp() - interval '1 day'
    order by e.at desc limit 1) m on true;
comment on view outbox.endpoint_reports is 'What holds each endpoint, and its owner''s newest report. Internal; read outbox.endpoint_health.';

create or replace view outbox.delivery_log as
select d.event_id, d.endpoint_id, d.workspace_id, e.event_type,
       case when d.state <> 'pending' then d.state
            when d.lease_expires_at > statement_timestamp() then 'leased'
            when r.hold is not null then 'held'
            when d.next_attempt_at <= statement_timestamp() and r.waits_for is not null then 'held'
            else 'pending' end as state,
       case when d.state <> 'pending' then d.reason
            when d.lease_expires_at > statement_timestamp() then null
            when r.hold is not null then r.hold
            when d.next_attempt_at > statement_timestamp() then case when d.failed_count > 0 then 'retry' else 'scheduled' end
            when r.waits_for is not null then r.waits_for
            when d.lease_expires_at is not null then 'lease lost'
            when d.ordering_key is not null and exists (
                    select from outbox.open_deliveries o, outbox.settings s
                    where o.event_id = d.event_id and o.endpoint_id = d.endpoint_id and o.workspace_id = d.workspace_id
                      and (exists (select from outbox.open_deliveries b
                                   where b.endpoint_id = o.endpoint_id and b.ordering_key = o.ordering_key
                                     and b.ordering_seq < o.ordering_seq
                                     and (b.failed_count = 0 or b.lease_expires_at is not null
                                          or b.next_attempt_at <= statement_timestamp()
                                          or b.created_at > statement_timestamp() - s.ordered_skip_after))
                        or exists (select from outbox.fan_out_queue q
                                   where q.workspace_id = o.workspace_id and q.ordering_key = o.ordering_key
                                     and q.seq < o.ordering_seq)))
                then 'earlier event of its ordering key'
            else 'due' end as why,
       d.attempt_count, d.failed_count, d.lost_count, d.replay_count, d.last_status, d.last_error, d.next_attempt_at, d.priority,
       d.ordering_key, outbox.shown_url(n.url) as url, w.name as worker, d.lease_expires_at, e.event_created_at, d.created_at,
       d.finished_at,
       case when d.state = 'delivered'
            then (extract(epoch from d.finished_at - greatest(e.event_created_at, e.deliver_at)) * 1000)::bigint end as total_ms
from outbox.deliveries d
left join lateral (
    select min(k.event_type) as event_type, min(k.created_at) as event_created_at, min(k.deliver_at) as deliver_at
    from outbox.known_events k
    where k.event_id = d.event_id and k.workspace_id = d.workspace_id) e on true
left join outbox.endpoints n on n.endpoint_id = d.endpoint_id and n.workspace_id = d.workspace_id
left join outbox.worker_processes w on w.worker_no = d.leased_by and d.lease_expires_at > statement_timestamp()
left join lateral (
    select p.hold, p.waits_for from outbox.endpoint_reports p
    where d.state = 'pending' and p.endpoint_id = d.endpoint_id and p.workspace_id = d.workspace_id limit 1) r on true;
comment on view outbox.delivery_log is
    'Every delivery, with what it waits for. To find deliveries by state alone read outbox.dead_letters, outbox.backlog or outbox.deliveries.';

create or replace view outbox.backlog as
select n.endpoint_id, n.workspace_id, outbox.shown_url(n.url) as url, o.waiting, o.due, o.leased,
       case when r.hold is not null then o.waiting - o.leased when r.waits_for is not null then o.due else 0 end as held,
       coalesce(r.hold, case when o.due > 0 then coalesce(r.waits_for, 'due')
                             when o.leased > 0 then 'leased' else 'retry or schedule' end) as why,
       o.oldest_due_at, o.next_attempt_at
from outbox.endpoints n
cross join lateral (
    select count(*) as waiting,
           count(*) filter (where d.lease_expires_at > statement_timestamp()) as leased,
           count(*) filter (where d.next_attempt_at <= statement_timestamp()
                              and (d.lease_expires_at > statement_timestamp()) is not true) as due,
           min(d.next_attempt_at) filter (where d.next_attempt_at <= statement_timestamp()
                              and (d.lease_expires_at > statement_timestamp()) is not true) as oldest_due_at,
           min(d.next_attempt_at) as next_attempt_at
    from outbox.open_deliveries d
    where d.endpoint_id = n.endpoint_id and d.workspace_id = n.workspace_id) o
left join outbox.endpoint_reports r on r.endpoint_id = n.endpoint_id and r.workspace_id = n.workspace_id
where o.waiting > 0;
comment on view outbox.backlog is 'What waits at each endpoint, and for what. One endpoint or workspace is an index range; all of them is a count of all.';

create or replace view outbox.fan_out_backlog as
select q.workspace_id, q.priority, count(*) as waiting,
       outbox.event_id_time(min(q.event_id::text collate "C")::uuid) as oldest_created_at
from outbox.fan_out_queue q
group by q.workspace_id, q.priority;
comment on view outbox.fan_out_backlog is 'Events that are not fanned out yet, by workspace and priority.';

create or replace view outbox.workers as
select w.worker_no, w.name, w.version,
       case when w.stopped_at is not null then 'stopped'
            when w.expires_at > statement_timestamp() then 'live' else 'expired' end as state,
       (select count(*) from outbox.shards s where s.worker_no = w.worker_no) as shards,
       w.in_flight, w.capacity, w.started_at, w.seen_at, w.expires_at, w.stopped_at
from outbox.worker_processes w;
comment on view outbox.workers is 'Worker processes, live and past, with the shards they own.';

create or replace view outbox.endpoint_health as
select n.endpoint_id, n.workspace_id, outbox.shown_url(n.url) as url, n.description, n.state, n.state_reason, n.hold_reason,
       n.filter_error, n.failing_since, r.in_flight, r.in_flight_limit, n.max_in_flight, n.max_per_second, r.circuit,
       h.attempts, h.successes, h.timeouts, h.successes::numeric(12, 4) / nullif(h.attempts, 0) as success_rate, h.per_second,
       outbox.latency_percentile(l.counts, 0.5) as p50_ms,
       outbox.latency_percentile(l.counts, 0.95) as p95_ms,
       outbox.latency_percentile(l.counts, 0.99) as p99_ms,
       o.waiting, o.oldest_waiting_at,
       coalesce(r.hold, case when q.due then coalesce(r.waits_for, 'due')
                             when exists (select from outbox.open_deliveries x
                                          where x.endpoint_id = n.endpoint_id and x.workspace_id = n.workspace_id)
                             then 'retry, schedule or lease' end) as why,
       r.worker, r.reported_at, n.ordered, n.state_changed_at, n.created_at
from outbox.endpoints n
left join outbox.endpoint_reports r on r.endpoint_id = n.endpoint_id and r.workspace_id = n.workspace_id
left join lateral (
    select coalesce(sum(m.attempts), 0) as attempts, coalesce(sum(m.successes), 0) as successes,
           coalesce(sum(m.timeouts), 0) as timeouts,
           round(coalesce(sum(m.attempts) filter (where m.at > statement_timestamp() - interval '5 minutes'), 0) / 300.0, 2) as per_second
    from outbox.endpoint_minutes m
    where m.endpoint_id = n.endpoint_id and m.at > statement_timestamp() - interval '1 hour') h on true
left join lateral (
    select array_agg(b.amount order by b.place) as counts
    from (select u.place, sum(u.amount) as amount
          from outbox.endpoint_minutes m, unnest(m.latency_counts) with ordinality as u (amount, place)
          where m.endpoint_id = n.endpoint_id and m.at > statement_timestamp() - interval '1 hour'
          group by u.place) b) l on true
left join lateral (
    select count(*) as waiting, min(d.created_at) as oldest_waiting_at
    from outbox.open_deliveries d
    where d.endpoint_id = n.endpoint_id and d.workspace_id = n.workspace_id) o on true
left join lateral (
    select count(*) filter (where f.next_attempt_at <= statement_timestamp()) > 0 as due
    from (values (0::smallint), (1::smallint), (2::smallint)) as p (priority)
    cross join (values (true), (false)) as u (unordered)
    cross join lateral (
        select d.next_attempt_at from outbox.open_deliveries d
        where d.endpoint_id = n.endpoint_id and d.priority = p.priority and (d.ordering_key is null) = u.unordered
          and (d.lease_expires_at is null or d.lease_expires_at <= statement_timestamp())
        order by d.next_attempt_at limit 1) f) q on true
where n.state <> 'deleted';
comment on view outbox.endpoint_health is
    'Each endpoint now and in the last hour: state, limits, circuit, success, latency, what waits and why. Leave waiting and oldest_waiting_at out when millions wait.';

create or replace view outbox.latency_by_hour as
select h.hour, l.deliveries, l.p50_ms, l.p95_ms, l.p99_ms, l.max_ms
from outbox.settings s
cross join lateral generate_series(date_trunc('hour', statement_timestamp() - least(s.delivery_retention, s.event_retention)),
                                   statement_timestamp(), interval '1 hour') as h (hour)
cross join lateral (
    select count(*) as deliveries,
           percentile_disc(0.5) within group (order by t.total_ms) as p50_ms,
           percentile_disc(0.95) within group (order by t.total_ms) as p95_ms,
           percentile_disc(0.99) within group (order by t.total_ms) as p99_ms,
           max(t.total_ms) as max_ms
    from (select (extract(epoch from d.finished_at - greatest(e.created_at, e.deliver_at)) * 1000)::bigint as total_ms
          from outbox.finished_deliveries d
          join outbox.known_events e on e.event_id = d.event_id and e.workspace_id = d.workspace_id
          where d.event_id >= outbox.event_id_floor(h.hour) and d.event_id < outbox.event_id_floor(h.hour + interval '1 hour')
            and e.event_id >= outbox.event_id_floor(h.hour) and e.event_id < outbox.event_id_floor(h.hour + interval '1 hour')
            and d.state = 'delivered' and d.replay_count = 0) t) l
where l.deliveries > 0;
comment on view outbox.latency_by_hour is
    'From commit (or deliver_at) to delivery, retries included, replays not, by hour of the event. Ask for a range of hours: each costs its own deliveries.';

do $$
declare
    meanings constant jsonb := '{
        "event_id": "The event; the webhook-id.",
        "endpoint_id": "The endpoint.",
        "workspace_id": "The tenant.",
        "event_type": "A name in outbox.event_types.",
        "state": "active, paused (by a person) or disabled (gone or failing).",
        "why": "What the waiting deliveries wait for; null when nothing waits.",
        "attempt_count": "Attempts made, over all replays.",
        "failed_count": "Failed attempts since the last replay.",
        "lost_count": "Lost leases since the last replay.",
        "replay_count": "How often the delivery was replayed.",
        "last_status": "HTTP status of the last attempt; null when it got none.",
        "last_error": "Why the last attempt failed.",
        "next_attempt_at": "When the next attempt is due.",
        "priority": "0 urgent, 1 normal, 2 bulk.",
        "ordering_key": "Deliveries of one key go to ordered endpoints one at a time, in order.",
        "url": "URL; its path and query are masked unless outbox_secrets reads.",
        "worker": "Worker that owns the endpoint''s shard; null when none does.",
        "lease_expires_at": "End of the lease; null when nobody holds one.",
        "event_created_at": "When the event was recorded.",
        "created_at": "When it was recorded.",
        "finished_at": "When the delivery reached its final state.",
        "total_ms": "From the event, or its deliver_at, to the delivery, in milliseconds; after a replay too.",
        "hold": "Why all deliveries of the endpoint are held; null when they are not.",
        "waits_for": "What due deliveries wait for: slots (its own limit), rate, circuit, host or suspects (slots shared with others), claim (its deliveries could not be claimed), no worker; null when nothing holds them up.",
        "reported_at": "When the owner last reported.",
        "circuit": "closed, open or half_open, as last reported.",
        "in_flight": "Requests in flight, as reported within the last 3 minutes.",
        "in_flight_limit": "Most requests at once, as adapted.",
        "waiting": "Deliveries still owed.",
        "due": "Of these, due now and not leased.",
        "leased": "Of these, leased to a worker.",
        "held": "Of these, held by the endpoint''s state or a limit.",
        "oldest_due_at": "Since when the oldest due one is due.",
        "oldest_waiting_at": "When the oldest of them was fanned out.",
        "oldest_created_at": "When the oldest of them was recorded.",
        "worker_no": "Number of the process; never used twice.",
        "name": "Host and process id.",
        "version": "Release of outbox-worker.",
        "shards": "Shards it owns, of 64.",
        "capacity": "Most requests at once.",
        "started_at": "When it started.",
        "seen_at": "When it last renewed its presence.",
        "expires_at": "Until then its shards are its own.",
        "stopped_at": "When it stopped in order, or was found expired.",
        "description": "Free text for people.",
        "state_reason": "Why the state is not active: gone, failing, or what a person gave.",
        "hold_reason": "Why deliveries wait although the endpoint is active.",
        "filter_error": "The filter ran past its deadline and matches nothing until it is changed.",
        "failing_since": "First failure since the last success; null while it answers.",
        "max_in_flight": "Most requests at once, as configured; null leaves it to the adaptive limit.",
        "max_per_second": "Most requests a second; null is no limit.",
        "attempts": "Attempts of the last hour.",
        "successes": "Of these, answered with 2xx.",
        "timeouts": "Of these, timeouts and connection failures.",
        "success_rate": "Successes by attempts of the last hour, from 0 to 1; null without attempts.",
        "per_second": "Attempts a second over the last 5 minutes.",
        "p50_ms": "Half took at most this long, in milliseconds.",
        "p95_ms": "95 % took at most this long, in milliseconds.",
        "p99_ms": "99 % took at most this long, in milliseconds.",
        "max_ms": "The longest, in milliseconds.",
        "ordered": "Whether the events of one ordering key are delivered one at a time, in order.",
        "state_changed_at": "When the state last changed.",
        "hour": "Beginning of the hour in which the events were recorded.",
        "deliveries": "Deliveries of these events that succeeded."}';
    one record;
begin
    for one in
        select c.relname, a.attname from pg_catalog.pg_class c join pg_catalog.pg_attribute a on a.attrelid = c.oid
        where c.relnamespace = 'outbox'::regnamespace and a.attnum > 0
          and c.relname = any ('{endpoint_reports,delivery_log,backlog,fan_out_backlog,workers,endpoint_health,latency_by_hour}'::text[]) loop
        execute format('comment on column outbox.%I.%I is %L', one.relname, one.attname, meanings ->> one.attname::text);
    end loop;
end
$$;
comment on column outbox.delivery_log.state is 'pending, leased (under a live lease), held (see why), delivered, dead or canceled.';
comment on column outbox.delivery_log.why is
    'What an open delivery waits for: its endpoint''s state or secrets, a limit, its schedule, its ordering key, a worker; or why it is dead or canceled.';
comment on column outbox.delivery_log.worker is 'Worker that holds the lease.';
comment on column outbox.delivery_log.created_at is 'When the event was fanned out to this endpoint.';
comment on column outbox.delivery_log.next_attempt_at is 'When the next attempt is due; of a finished delivery, when the last one was.';
comment on column outbox.backlog.next_attempt_at is 'The earliest next attempt.';
comment on column outbox.fan_out_backlog.waiting is 'Events not fanned out yet.';
comment on column outbox.workers.state is 'live, expired (its presence ran out) or stopped.';
comment on column outbox.workers.in_flight is 'Requests in flight at the last renewal.';
comment on column outbox.endpoint_health.created_at is 'When the endpoint was created.';
