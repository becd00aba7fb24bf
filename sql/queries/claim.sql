-- claim: lease due deliveries, round the endpoints asked for, urgent before bulk without starving it.
-- params:  endpoint_ids uuid[], rooms int[], busy int[] (in flight now), marks0, marks1, marks2 timestamptz[] (low-water mark per priority),
--          turns0, turns1, turns2 int[] (what each priority has used), weights int[] (what one delivery of each uses);
--          lease_token uuid, worker_no int, lease_seconds float
-- index:   open_deliveries_due_idx (endpoint_id, priority, (ordering_key is null), next_attempt_at): keyed ones are not walked
-- hazard:  the CTE must be the one that locks: rows locked by another session are skipped, never waited for. Lease
--          columns are in no index, so the update is HOT. Without the turns of earlier claims an endpoint with little room
--          would never get to what is less urgent. The update goes where the row lies, not through the key again: a row that
--          another session changed after this statement began is locked but not seen there, and left for the next claim.
with picked as materialized (
    select d.place, a.version
    from (
        select u.endpoint_id, greatest(least(u.room, e.max_in_flight - u.busy), 0) as room, u.mark0, u.mark1, u.mark2,
               u.turn0, u.turn1, u.turn2, e.version
        from unnest(%(endpoint_ids)s::uuid[], %(rooms)s::int[], %(busy)s::int[], %(marks0)s::timestamptz[], %(marks1)s::timestamptz[],
                    %(marks2)s::timestamptz[], %(turns0)s::int[], %(turns1)s::int[], %(turns2)s::int[])
             as u (endpoint_id, room, busy, mark0, mark1, mark2, turn0, turn1, turn2)
        join lateral (select e.version, e.max_in_flight from outbox.endpoints e
                      where e.endpoint_id = u.endpoint_id and e.state = 'active' and e.hold_reason is null
                      limit 1) e on true) a
    cross join lateral (
        select k.place
        from (values (0::smallint, a.turn0, a.mark0), (1::smallint, a.turn1, a.mark1), (2::smallint, a.turn2, a.mark2))
             w (priority, turn, mark)
        cross join lateral (
            select l.place,
                   w.turn + row_number() over (order by l.next_attempt_at) * (%(weights)s::int[])[w.priority + 1] as turn
            from (
                select d.ctid as place, d.next_attempt_at
                from outbox.open_deliveries d
                where d.endpoint_id = a.endpoint_id and d.priority = w.priority and d.ordering_key is null
                  and d.next_attempt_at >= w.mark and d.next_attempt_at <= now() and d.lease_expires_at is null
                order by d.next_attempt_at
                limit a.room
                for update skip locked) l) k
        order by k.turn
        limit a.room) d
), leased as (
    update outbox.open_deliveries d
    set leased_by = %(worker_no)s::int, lease_token = %(lease_token)s::uuid,
        lease_expires_at = clock_timestamp() + make_interval(secs => %(lease_seconds)s::float8)
    from picked p
    where d.ctid = p.place
    returning d.event_id, d.endpoint_id, d.workspace_id, d.priority, d.next_attempt_at, d.attempt_count, d.failed_count,
              p.version
)
select l.event_id, l.endpoint_id, l.workspace_id, l.priority, l.next_attempt_at, l.attempt_count, l.failed_count, l.version,
       e.event_type, e.body, e.traceparent, e.created_at, null::text as ordering_key, clock_timestamp() as claimed_at
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
