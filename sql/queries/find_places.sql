-- find_places: which priorities and buckets of the fan-out's queue hold events, from each of some places on.
-- params:  priorities smallint[], buckets smallint[] (a place each: what comes behind it is looked at), looks int (most places each)
-- index:   fan_out_queue_fair_idx (priority, bucket, seq): one probe a place, however many events it holds
-- hazard:  dead entries that an old snapshot keeps are walked: the caller looks less often when it takes long.
select s.start::int as start, f.priority, f.bucket
from unnest(%(priorities)s::smallint[], %(buckets)s::smallint[]) with ordinality as s (priority, bucket, start)
cross join lateral (
    with recursive places as (
        select 1 as place, n.priority, n.bucket
        from (select q.priority, q.bucket from outbox.fan_out_queue q
              where (q.priority, q.bucket, q.seq) > (s.priority, s.bucket, 9223372036854775807)
              order by q.priority, q.bucket, q.seq
              limit 1) n
        union all
        select p.place + 1, n.priority, n.bucket
        from places p
        cross join lateral (
            select q.priority, q.bucket from outbox.fan_out_queue q
            where (q.priority, q.bucket, q.seq) > (p.priority, p.bucket, 9223372036854775807)
            order by q.priority, q.bucket, q.seq
            limit 1) n
        where p.place < %(looks)s::int
    )
    select p.place, p.priority, p.bucket from places p) f
order by s.start, f.place
