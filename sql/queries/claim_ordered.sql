-- claim_ordered: of each ordering key of the endpoints asked for, lease the head, if it is due and nothing older can come.
-- params:  endpoint_ids uuid[], rooms int[], busy int[] (in flight now); lease_token uuid, worker_no int, lease_seconds float
-- index:   open_deliveries_ordered_idx (endpoint_id, ordering_key, ordering_seq); fan_out_queue_ordering_idx
-- hazard:  an event of the key that waits in fan_out_queue with a lower seq was published before: the key waits for it.
--          A head that has failed for settings.ordered_skip_after no longer holds its key back.
with recursive asked as materialized (
    select u.endpoint_id, greatest(least(u.room, e.max_in_flight - u.busy), 0) as room, e.version, e.workspace_id
    from unnest(%(endpoint_ids)s::uuid[], %(rooms)s::int[], %(busy)s::int[]) as u (endpoint_id, room, busy)
    join lateral (select e.version, e.workspace_id, e.max_in_flight from outbox.endpoints e
                  where e.endpoint_id = u.endpoint_id and e.state = 'active' and e.hold_reason is null
                  limit 1) e on true
), keys as (
    select a.endpoint_id, (select min(d.ordering_key) from outbox.open_deliveries d
                           where d.endpoint_id = a.endpoint_id and d.ordering_key is not null) as ordering_key
    from asked a
    union all
    select k.endpoint_id, (select min(d.ordering_key) from outbox.open_deliveries d
                           where d.endpoint_id = k.endpoint_id and d.ordering_key > k.ordering_key)
    from keys k
    where k.ordering_key is not null
), heads as materialized (
    select a.room, a.version, a.workspace_id, h.event_id, h.endpoint_id, h.ordering_key, h.ordering_seq, h.next_attempt_at
    from keys k
    join asked a on a.endpoint_id = k.endpoint_id
    cross join lateral (
        select d.event_id, d.endpoint_id, d.ordering_key, d.ordering_seq, d.next_attempt_at, d.lease_expires_at
        from outbox.open_deliveries d, outbox.settings s
        where d.endpoint_id = k.endpoint_id and d.ordering_key = k.ordering_key
          and (d.failed_count = 0 or d.lease_expires_at is not null or d.next_attempt_at <= now()
               or d.created_at > clock_timestamp() - s.ordered_skip_after)
        order by d.ordering_seq
        limit 1) h
    where k.ordering_key is not null and h.lease_expires_at is null and h.next_attempt_at <= now()
      and not exists (select from outbox.open_deliveries b
                      where b.endpoint_id = k.endpoint_id and b.ordering_key = k.ordering_key and b.lease_expires_at is not null)
      and not exists (select from outbox.fan_out_queue q
                      where q.workspace_id = a.workspace_id and q.ordering_key = k.ordering_key and q.seq < h.ordering_seq)
), ranked as materialized (
    select h.event_id, h.endpoint_id, h.workspace_id, h.version
    from (select h.event_id, h.endpoint_id, h.workspace_id, h.version, h.room,
                 row_number() over (partition by h.endpoint_id order by h.next_attempt_at) as place
          from heads h) h
    where h.place <= h.room
), picked as materialized (
    select d.event_id, d.endpoint_id, d.workspace_id, r.version
    from ranked r
    cross join lateral (
        select d.event_id, d.endpoint_id, d.workspace_id
        from outbox.open_deliveries d
        where d.event_id = r.event_id and d.endpoint_id = r.endpoint_id and d.workspace_id = r.workspace_id
          and d.lease_expires_at is null
        for update skip locked) d
), leased as (
    update outbox.open_deliveries d
    set leased_by = %(worker_no)s::int, lease_token = %(lease_token)s::uuid,
        lease_expires_at = clock_timestamp() + make_interval(secs => %(lease_seconds)s::float8)
    from picked p
    where d.event_id = p.event_id and d.endpoint_id = p.endpoint_id and d.workspace_id = p.workspace_id
    returning d.event_id, d.endpoint_id, d.workspace_id, d.priority, d.next_attempt_at, d.attempt_count, d.failed_count,
              p.version, d.ordering_key
)
select l.event_id, l.endpoint_id, l.workspace_id, l.priority, l.next_attempt_at, l.attempt_count, l.failed_count, l.version,
       e.event_type, e.body, e.traceparent, e.created_at, l.ordering_key, clock_timestamp() as claimed_at
from leased l
cross join lateral (
    select x.event_type, outbox.event_body(l.event_id, x.event_type, x.created_at, l.workspace_id, x.payload) as body,
           x.traceparent, x.created_at
    from (select e.event_type, e.payload, e.traceparent, e.created_at from outbox.events e
          where e.event_id = l.event_id and e.workspace_id = l.workspace_id
          union all
          select k.event_type, k.payload, k.traceparent, k.created_at from outbox.kept_events k
          where k.event_id = l.event_id and k.workspace_id = l.workspace_id) x
    limit 1) e
