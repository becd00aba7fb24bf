-- fan_out: turn queued events into deliveries, once each; hand over leased what this worker has room for.
-- params:  fair bool, mark bigint, batch int; priorities smallint[], buckets smallint[], marks bigint[], quotas int[] (fair);
--          shards smallint[] (owned), rooms jsonb ({endpoint: [room, in flight]}), default_room int, room int, careful bool, lease_token uuid, worker_no int, lease_seconds float
-- index:   fan_out_queue_pkey (seq); fan_out_queue_fair_idx (priority, bucket, seq); endpoints_workspace_idx (workspace_id)
-- hazard:  the taken rows are locked before anything is inserted, so two workers never fan out one event. A delivery that
--          a replay made already is a unique violation: once more, with careful.
--          A delivery's key is compared as a row: see settle.sql.
with plain as (
    select q.ctid as place, q.seq, q.bucket, q.priority, q.event_id, q.workspace_id, q.ordering_key
    from outbox.fan_out_queue q
    where not %(fair)s::bool and q.seq > %(mark)s::bigint
    order by q.seq
    limit %(batch)s::int
    for update skip locked
), fair as (
    select k.place, k.seq, k.bucket, k.priority, k.event_id, k.workspace_id, k.ordering_key
    from unnest(%(priorities)s::smallint[], %(buckets)s::smallint[], %(marks)s::bigint[], %(quotas)s::int[])
         as a (priority, bucket, mark, quota)
    cross join lateral (
        select q.ctid as place, q.seq, q.bucket, q.priority, q.event_id, q.workspace_id, q.ordering_key
        from outbox.fan_out_queue q
        -- Not bucket = …: the primary key could serve what is left of the order, past every other bucket's rows. Nor a row
        -- for an upper bound: the walk would not end where the bucket does.
        where q.priority = a.priority and (q.bucket, q.seq) > (a.bucket, a.mark) and q.bucket <= a.bucket
        order by q.bucket, q.seq
        limit a.quota
        for update skip locked) k
    where %(fair)s::bool
), taken as materialized (
    select p.place, p.seq, p.bucket, p.priority, p.event_id, p.workspace_id, p.ordering_key from plain p
    union all
    select f.place, f.seq, f.bucket, f.priority, f.event_id, f.workspace_id, f.ordering_key from fair f
), known as materialized (
    select t.seq, t.priority, t.ordering_key, e.event_id, e.workspace_id, e.event_type, e.payload, e.deliver_at,
           e.traceparent, e.created_at, y.patterns
    from taken t
    cross join lateral (  -- most events are of workspaces that have no endpoint: those are not even read
        select from outbox.endpoints p where p.workspace_id = t.workspace_id and p.state <> 'deleted' limit 1) heard
    cross join lateral (
        select e.event_id, e.workspace_id, e.event_type, e.payload, e.deliver_at, e.traceparent, e.created_at
        from outbox.events e
        where e.event_id = t.event_id and e.workspace_id = t.workspace_id
        limit 1) e
    join outbox.event_types y on y.name = e.event_type
    where not exists (select from outbox.canceled_events c where c.event_id = t.event_id offset 0)
), judged as materialized (
    select k.seq, k.priority, k.event_id, k.workspace_id, k.deliver_at, p.endpoint_id, p.shard, p.version,
           case when p.ordered then k.ordering_key end as ordering_key,
           p.state = 'active' and p.hold_reason is null and p.max_per_second is null
               and not (p.ordered and k.ordering_key is not null)
               and (k.deliver_at is null or k.deliver_at <= now())
               and p.shard = any (%(shards)s::smallint[]) as ready,
           coalesce(p.max_in_flight, 10000) as cap, p.max_per_second, p.state_changed_at,
           %(rooms)s::jsonb -> p.endpoint_id::text as known_room,
           case when p.filter is null then 't'
                when p.filter_error is not null then 'f'
                else outbox.filter_outcome(k.payload, p.filter) end as filter_says
    from known k
    cross join lateral (
        select p.endpoint_id, p.shard, p.version, p.ordered, p.state, p.hold_reason, p.max_per_second, p.max_in_flight,
               p.state_changed_at, p.filter, p.filter_error
        from outbox.endpoints p
        where p.workspace_id = k.workspace_id and p.state <> 'deleted' and p.event_types && k.patterns
        offset 0) p
    where not %(careful)s::bool
       or not exists (select from outbox.open_deliveries d
                      where (d.event_id, d.endpoint_id, d.workspace_id)
                            between (k.event_id, p.endpoint_id, k.workspace_id) and (k.event_id, p.endpoint_id, k.workspace_id))
), roomed as materialized (
    select j.seq, j.priority, j.event_id, j.workspace_id, j.deliver_at, j.endpoint_id, j.shard, j.version, j.ordering_key, j.cap, j.max_per_second,
           j.state_changed_at,
           j.ready and row_number() over (partition by j.endpoint_id order by j.priority, j.seq)
                       <= least(coalesce((j.known_room ->> 0)::int, %(default_room)s::int),
                                j.cap - coalesce((j.known_room ->> 1)::int, 0)) as fits
    from judged j
    where j.filter_says = 't'
), placed as materialized (
    select m.seq, m.priority, m.event_id, m.workspace_id, m.endpoint_id, m.shard, m.version, m.ordering_key, m.cap, m.max_per_second,
           m.state_changed_at,
           greatest(m.deliver_at, clock_timestamp()) as next_attempt_at,
           m.fits and row_number() over w <= %(room)s::int as handed_over,
           m.seq is distinct from lag(m.seq) over w as first_of_event
    from roomed m
    window w as (partition by m.fits order by m.priority, m.seq)
), inserted as (
    insert into outbox.open_deliveries (event_id, endpoint_id, workspace_id, priority, next_attempt_at,
                                        leased_by, lease_token, lease_expires_at, ordering_key, ordering_seq)
    select p.event_id, p.endpoint_id, p.workspace_id, p.priority, p.next_attempt_at,
           case when p.handed_over then %(worker_no)s::int end,
           case when p.handed_over then %(lease_token)s::uuid end,
           case when p.handed_over then clock_timestamp() + make_interval(secs => %(lease_seconds)s::float8) end,
           p.ordering_key, case when p.ordering_key is not null then p.seq end
    from placed p
), failed as (
    insert into outbox.filter_failures (event_id, endpoint_id, workspace_id, error)
    select j.event_id, j.endpoint_id, j.workspace_id, j.filter_says
    from judged j
    where j.filter_says not in ('t', 'f')
), done as (  -- where they lie, since nobody updates them: a join by seq could walk all that waits in between
    delete from outbox.fan_out_queue q where q.ctid = any (array(select t.place from taken t))
)
-- Each delivery; and events that make none, as their number: in a fair round by place. The condition says that there is a delivery so
-- that the planner does not see it: inner joins of these three, which it takes for small, it would loop over.
select t.seq, t.bucket, t.priority, 1 as events, d.endpoint_id, d.shard, d.handed_over, d.next_attempt_at, k.event_id, k.workspace_id,
       k.event_type, d.version,
       case when d.handed_over and d.first_of_event then outbox.event_body(k.event_id, k.event_type, k.created_at, k.workspace_id, k.payload) end as body,
       k.traceparent, k.created_at, clock_timestamp() as claimed_at, d.cap, d.max_per_second::float8 as max_per_second, d.state_changed_at
from taken t
left join placed d on d.seq = t.seq
left join known k on k.seq = t.seq
where coalesce(d.seq, 0) > 0
union all
select max(n.seq), n.bucket, n.priority, count(*)::int,
       null, null, null, null, null, null, null, null, null, null, null, clock_timestamp(), null, null, null
from (select u.seq, max(u.bucket) as bucket, max(u.priority) as priority
      from (select t.seq, case when %(fair)s::bool then t.bucket else 0 end as bucket, case when %(fair)s::bool then t.priority else 0 end as priority,
                   false as made
            from taken t
            union all
            select d.seq, null, null, true from placed d) u
      group by u.seq
      having not bool_or(u.made)) n
group by n.bucket, n.priority
