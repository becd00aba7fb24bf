-- stop_worker: this process has ended in order; its shards are free.
-- params:  worker_no int
-- index:   worker_processes_pkey (worker_no); shards_pkey (shard)
-- hazard:  only after the last request ended: the next owner starts at once.
with stopped as (
    update outbox.worker_processes w
    set stopped_at = clock_timestamp(), expires_at = clock_timestamp(), in_flight = 0
    where w.worker_no = %(worker_no)s::int
), freed as (
    update outbox.shards s set worker_no = null where s.worker_no = %(worker_no)s::int
)
select pg_notify('outbox_wake', 'balance')
