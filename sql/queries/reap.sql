-- reap: record expired leases as lost and make their deliveries due again; too many for one delivery are a crash loop.
-- params:  endpoint_ids uuid[], look int (rows looked at per endpoint and priority, twice: with and without key)
-- index:   open_deliveries_due_idx (endpoint_id, priority, (ordering_key is null), next_attempt_at)
-- hazard:  the token stays: until the next claim its holder may still settle. Not an attempt: the budget is untouched.
--          A delivery's key is compared as a row: see settle.sql.
with history as materialized (  -- once, not once a row
    select outbox.history_floor() as floor
), expired as materialized (
    select d.event_id, d.endpoint_id, d.workspace_id, d.priority, d.next_attempt_at, d.attempt_count, d.failed_count, d.lost_count,
           d.replay_count, d.last_status, d.last_error, d.leased_by, d.lease_token, d.lease_expires_at, d.ordering_key, d.ordering_seq,
           d.created_at, d.lost_count + 1 >= s.max_lost_leases as hopeless, f.floor
    from unnest(%(endpoint_ids)s::uuid[]) as a (endpoint_id)
    cross join outbox.settings s
    cross join history f
    cross join (values (0::smallint), (1::smallint), (2::smallint)) p (priority)
    cross join (values (true), (false)) o (unordered)
    cross join lateral (
        select g.event_id, g.endpoint_id, g.workspace_id
        from (select d.event_id, d.endpoint_id, d.workspace_id, d.lease_expires_at
              from outbox.open_deliveries d
              where d.endpoint_id = a.endpoint_id and d.priority = p.priority and (d.ordering_key is null) = o.unordered
              order by d.next_attempt_at
              limit %(look)s::int) g
        where g.lease_expires_at < now()) g
    cross join lateral (
        select d.event_id, d.endpoint_id, d.workspace_id, d.priority, d.next_attempt_at, d.attempt_count, d.failed_count, d.lost_count,
               d.replay_count, d.last_status, d.last_error, d.leased_by, d.lease_token, d.lease_expires_at, d.ordering_key,
               d.ordering_seq, d.created_at
        from outbox.open_deliveries d
        where (d.event_id, d.endpoint_id, d.workspace_id)
              between (g.event_id, g.endpoint_id, g.workspace_id) and (g.event_id, g.endpoint_id, g.workspace_id)
          and d.lease_expires_at < now()
        limit 1 for update skip locked) d
), lost as (
    insert into outbox.lost_leases (event_id, endpoint_id, workspace_id, attempt_no, lease_token, worker_no, expired_at)
    select x.event_id, x.endpoint_id, x.workspace_id, x.attempt_count + 1, x.lease_token, x.leased_by, x.lease_expires_at
    from expired x
), put_back as (
    update outbox.open_deliveries d
    set lease_expires_at = null, lost_count = d.lost_count + 1, next_attempt_at = clock_timestamp()
    from expired x
    where not x.hopeless and (d.event_id, d.endpoint_id, d.workspace_id)
          between (x.event_id, x.endpoint_id, x.workspace_id) and (x.event_id, x.endpoint_id, x.workspace_id)
), removed as (
    delete from outbox.open_deliveries d using expired x
    where x.hopeless and (d.event_id, d.endpoint_id, d.workspace_id)
          between (x.event_id, x.endpoint_id, x.workspace_id) and (x.event_id, x.endpoint_id, x.workspace_id)
), finished as (
    insert into outbox.finished_deliveries (event_id, endpoint_id, workspace_id, state, reason, priority, attempt_count, failed_count,
        lost_count, replay_count, last_status, last_error, next_attempt_at, ordering_key, ordering_seq, created_at)
    select x.event_id, x.endpoint_id, x.workspace_id, 'dead', 'crash_loop', x.priority, x.attempt_count, x.failed_count,
           x.lost_count + 1, x.replay_count, x.last_status, x.last_error, x.next_attempt_at, x.ordering_key, x.ordering_seq, x.created_at
    from expired x
    where x.hopeless and x.event_id >= x.floor
), kept as (
    insert into outbox.kept_deliveries (event_id, endpoint_id, workspace_id, state, reason, priority, attempt_count, failed_count,
        lost_count, replay_count, last_status, last_error, next_attempt_at, ordering_key, ordering_seq, created_at)
    select x.event_id, x.endpoint_id, x.workspace_id, 'dead', 'crash_loop', x.priority, x.attempt_count, x.failed_count,
           x.lost_count + 1, x.replay_count, x.last_status, x.last_error, x.next_attempt_at, x.ordering_key, x.ordering_seq, x.created_at
    from expired x
    where x.hopeless and x.event_id < x.floor
), told as (
    insert into outbox.events (workspace_id, event_type, payload, priority)
    select x.workspace_id, 'delivery.dead',
           jsonb_build_object(
               'event_id', x.event_id, 'event_type', y.event_type, 'endpoint_id', x.endpoint_id, 'attempts', x.attempt_count,
               'last_status', x.last_status, 'last_error', substring(x.last_error from '^[a-z_]+'), 'reason', 'crash_loop'), 1
    from expired x
    cross join lateral (
        select e.event_type from outbox.events e where e.event_id = x.event_id and e.workspace_id = x.workspace_id
        union all
        select k.event_type from outbox.kept_events k where k.event_id = x.event_id and k.workspace_id = x.workspace_id
        limit 1) y
    where x.hopeless
      and exists (select from outbox.endpoints n where n.workspace_id = x.workspace_id and 'delivery.dead' = any (n.event_types) offset 0)
      and not exists (select from outbox.event_types t where t.name = y.event_type and t.operational)
)
select x.event_id, x.endpoint_id, x.workspace_id, x.leased_by, x.lost_count + 1 as lost_count, x.hopeless
from expired x
