-- find_due: which endpoints of some shards have work, since when, and whether expired leases lie among it.
-- params:  shards smallint[], look int (rows looked at per endpoint and priority, twice: with and without key),
--          marks jsonb ({endpoint: [timestamptz of each priority]}: what lies before is not looked at; it has no ordering key)
-- index:   endpoints_shard_idx (shard); open_deliveries_due_idx (endpoint_id, priority, (ordering_key is null), next_attempt_at)
-- hazard:  without marks, all that is dead is walked while an old snapshot keeps it. A front of `look` leased rows hides what waits behind: it counts as due now, the claim finds out. Without key
--          leased rows lie in front, so the look for expired ones ends soon after the first row that waits.
select e.endpoint_id, e.shard, d.next_due, d.expired, d.keyed, e.max_in_flight, e.max_per_second::float8 as max_per_second,
       clock_timestamp() as found_at, e.state_changed_at, d.fronts
from outbox.endpoints e
cross join lateral (
    select min(case when w.place is not null then w.next_attempt_at when l.seen >= %(look)s::int then now() end) as next_due,
           coalesce(bool_or(l.expired), false) as expired, coalesce(bool_or(not o.unordered and l.seen > 0), false) as keyed,
           max(l.seen) as seen, array[min(w.next_attempt_at) filter (where o.unordered and p.priority = 0),
                                      min(w.next_attempt_at) filter (where o.unordered and p.priority = 1),
                                      min(w.next_attempt_at) filter (where o.unordered and p.priority = 2)] as fronts
    from (values (0::smallint), (1::smallint), (2::smallint)) p (priority)
    cross join (values (true), (false)) o (unordered)
    cross join lateral (
        select case when o.unordered
                    then coalesce((%(marks)s::jsonb -> e.endpoint_id::text ->> p.priority::int)::timestamptz, '-infinity')
                    else '-infinity' end as mark) m
    left join lateral (
        select g.place, g.next_attempt_at
        from (select row_number() over (order by d.next_attempt_at) as place, d.next_attempt_at, d.lease_expires_at
              from outbox.open_deliveries d
              where d.endpoint_id = e.endpoint_id and d.priority = p.priority and (d.ordering_key is null) = o.unordered
                and d.next_attempt_at >= m.mark
              order by d.next_attempt_at
              limit %(look)s::int) g
        where g.lease_expires_at is null
        limit 1) w on true
    cross join lateral (
        select count(*) as seen, bool_or(g.lease_expires_at < now()) as expired
        from (select d.lease_expires_at
              from outbox.open_deliveries d
              where d.endpoint_id = e.endpoint_id and d.priority = p.priority and (d.ordering_key is null) = o.unordered
                and d.next_attempt_at >= m.mark
              order by d.next_attempt_at
              limit case when o.unordered then least(w.place + 15, %(look)s::int) else %(look)s::int end) g) l) d
where e.shard = any (%(shards)s::smallint[]) and e.state = 'active' and e.hold_reason is null and d.seen > 0
