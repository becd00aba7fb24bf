-- register_worker: a number for this process; its presence lasts until expires_at.
-- params:  name text, version text, capacity int, presence_seconds float
-- index:   worker_processes_pkey (worker_no)
-- hazard:  a process that let its presence expire takes a new number; the old one is never used again. No row means that
--          this database is a restored copy, and held: outbox.why_held says why.
insert into outbox.worker_processes (name, version, capacity, expires_at)
select %(name)s::text, %(version)s::text, %(capacity)s::int,
       clock_timestamp() + make_interval(secs => %(presence_seconds)s::float8)
from (select outbox.move_in() as why offset 0) m
where m.why is null
returning worker_no
