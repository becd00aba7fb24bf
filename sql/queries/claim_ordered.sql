-- claim_ordered: go round the ordering keys of the endpoints asked for, some each time, and lease each key's head, if it is
--          due and nothing older can come. A row without event is the place where the round stopped; key null: at the end.
-- params:  endpoint_ids uuid[], rooms int[], busy int[] (in flight now), after_keys text[] ('' is the beginning), look int (keys
--          looked at per endpoint); lease_token uuid, worker_no int, lease_seconds float
-- index:   open_deliveries_ordered_idx (endpoint_id, ordering_key, ordering_seq); fan_out_queue_ordering_idx
-- hazard:  an event of the key that waits in fan_out_queue with a lower seq was published before: the key waits for it.
--          A head that has failed and is older than settings.ordered_skip_after no longer holds its key back.
--          A delivery's key is compared as a row: see settle.sql.
with walked as materialized (
    select a.endpoint_id, a.version, w.place, w.ordering_key, w.event_id, w.workspace_id
    from (
        select u.endpoint_id, greatest(least(u.room, e.max_in_flight - u.busy), 0) as room, u.after_key, e.version, e.workspace_id
        from unnest(%(endpoint_ids)s::uuid[], %(rooms)s::int[], %(busy)s::int[], %(after_keys)s::text[])
             as u (endpoint_id, room, busy, after_key)
        join lateral (select e.version, e.workspace_id, e.max_in_flight from outbox.endpoints e
                      where e.endpoint_id = u.endpoint_id and e.state = 'active' and e.hold_reason is null
                      limit 1) e on true) a
    cross join lateral (
        -- The limit ends the recursion: no key is looked at beyond the room.
        with recursive keys as (
            select 1 as place, (select min(d.ordering_key) from outbox.open_deliveries d
                                where d.endpoint_id = a.endpoint_id and d.ordering_key > a.after_key) as ordering_key
            union all
            select k.place + 1, (select min(d.ordering_key) from outbox.open_deliveries d
                                 where d.endpoint_id = a.endpoint_id and d.ordering_key > k.ordering_key)
            from keys k
            where k.ordering_key is not null and k.place < %(look)s::int
        )
        select k.place, k.ordering_key, h.event_id, h.workspace_id
        from keys k
        left join lateral (
            select h.event_id, h.workspace_id
            from (
                select d.event_id, d.workspace_id, d.ordering_seq, d.next_attempt_at, d.lease_expires_at
                from outbox.open_deliveries d, outbox.settings s
                where d.endpoint_id = a.endpoint_id and d.ordering_key = k.ordering_key
                  and (d.failed_count = 0 or d.lease_expires_at is not null or d.next_attempt_at <= now()
                       or d.created_at > clock_timestamp() - s.ordered_skip_after)
                order by d.ordering_seq
                limit 1) h
            where h.lease_expires_at is null and h.next_attempt_at <= now()
              and not exists (select from outbox.open_deliveries b
                              where b.endpoint_id = a.endpoint_id and b.ordering_key = k.ordering_key
                                and b.lease_expires_at is not null)
              and not exists (select from outbox.fan_out_queue q
                              where q.workspace_id = a.workspace_id and q.ordering_key = k.ordering_key
                                and q.seq < h.ordering_seq)) h on true
        where h.event_id is not null or k.ordering_key is null or k.place = %(look)s::int
        limit a.room) w
), picked as materialized (
    select d.event_id, d.endpoint_id, d.workspace_id, r.version
    from walked r
    cross join lateral (
        select d.event_id, d.endpoint_id, d.workspace_id
        from outbox.open_deliveries d
        where (d.event_id, d.endpoint_id, d.workspace_id)
              between (r.event_id, r.endpoint_id, r.workspace_id) and (r.event_id, r.endpoint_id, r.workspace_id)
          and d.lease_expires_at is null
        limit 1 for update skip locked) d
), leased as (
    update outbox.open_deliveries d
    set leased_by = %(worker_no)s::int, lease_token = %(lease_token)s::uuid,
        lease_expires_at = clock_timestamp() + make_interval(secs => %(lease_seconds)s::float8)
    from picked p
    where (d.event_id, d.endpoint_id, d.workspace_id)
          between (p.event_id, p.endpoint_id, p.workspace_id) and (p.event_id, p.endpoint_id, p.workspace_id)
    returning d.event_id, d.endpoint_id, d.workspace_id, d.priority, d.next_attempt_at, d.attempt_count, d.failed_count,
              p.version, d.ordering_key
)
select l.event_id, w.endpoint_id, l.workspace_id, l.priority, l.next_attempt_at, l.attempt_count, l.failed_count, l.version,
       e.event_type, e.body, e.traceparent, e.created_at, w.ordering_key, clock_timestamp() as claimed_at
from walked w
left join leased l on l.event_id = w.event_id and l.endpoint_id = w.endpoint_id and l.workspace_id = w.workspace_id
left join lateral (
    select x.event_type, outbox.event_body(l.event_id, x.event_type, x.created_at, l.workspace_id, x.payload) as body,
           x.traceparent, x.created_at
    from (select e.event_type, e.payload, e.traceparent, e.created_at from outbox.events e
          where e.event_id = l.event_id and e.workspace_id = l.workspace_id
          union all
          select k.event_type, k.payload, k.traceparent, k.created_at from outbox.kept_events k
          where k.event_id = l.event_id and k.workspace_id = l.workspace_id) x
    limit 1) e on true
order by w.endpoint_id, w.place
