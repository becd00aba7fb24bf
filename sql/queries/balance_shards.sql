-- balance_shards: release the shards given, take the free ones that fall to this worker, say who owns and who should own.
-- params:  worker_no int, released smallint[]
-- index:   shards_pkey (shard); worker_processes_live_idx (worker_no) where stopped_at is null
-- hazard:  run behind lock_shards in one transaction: two workers that see different peers must not take one shard.
with live as materialized (
    select w.worker_no from outbox.worker_processes w where w.stopped_at is null and w.expires_at > clock_timestamp()
), wanted as materialized (
    select s.shard, s.worker_no as owner,
           (select l.worker_no from live l order by hashtextextended(s.shard || ':' || l.worker_no, 0) limit 1) as heir
    from outbox.shards s
), decided as materialized (
    select w.shard, w.heir, w.owner,
           case when w.owner = %(worker_no)s::int and w.shard = any (%(released)s::smallint[]) then null
                when w.owner is null or w.owner not in (select l.worker_no from live l)
                    then case when w.heir = %(worker_no)s::int then w.heir end
                else w.owner end as new_owner
    from wanted w
), changed as (
    update outbox.shards s set worker_no = d.new_owner
    from decided d
    where s.shard = d.shard and d.new_owner is distinct from d.owner
)
select d.shard, d.new_owner as owner, d.heir from decided d
