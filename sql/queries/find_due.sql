-- find_due: which endpoints of some shards have work, since when, and whether expired leases lie among it.
-- params:  shards smallint[], look int (rows looked at per endpoint and priority)
-- index:   endpoints_shard_idx (shard, endpoint_id); open_deliveries_due_idx (endpoint_id, priority, next_attempt_at)
-- hazard:  a front of `look` leased rows hides what waits behind: it counts as due now, the claim finds out.
select e.endpoint_id, e.shard, coalesce(d.next_due, case when d.most >= %(look)s::int then now() end) as next_due,
       coalesce(d.expired, false) as expired, coalesce(d.keyed, false) as keyed, e.max_in_flight, e.max_per_second::float8 as max_per_second,
       clock_timestamp() as found_at
from outbox.endpoints e
cross join lateral (
    select min(f.next_due) as next_due, bool_or(f.expired) as expired, bool_or(f.keyed) as keyed, max(f.seen) as most
    from (values (0::smallint), (1::smallint), (2::smallint)) p (priority)
    cross join lateral (
        select min(g.next_attempt_at) filter (where g.lease_expires_at is null) as next_due,
               bool_or(g.lease_expires_at < now()) as expired, bool_or(g.ordering_key is not null) as keyed, count(*) as seen
        from (select d.next_attempt_at, d.lease_expires_at, d.ordering_key
              from outbox.open_deliveries d
              where d.endpoint_id = e.endpoint_id and d.priority = p.priority
              order by d.next_attempt_at
              limit %(look)s::int) g) f) d
where e.shard = any (%(shards)s::smallint[]) and e.state = 'active' and e.hold_reason is null and d.most > 0
