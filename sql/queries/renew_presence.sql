-- renew_presence: this process still works; no row means that others took it for dead, or that the database is held.
-- params:  worker_no int, in_flight int, presence_seconds float
-- index:   worker_processes_pkey (worker_no)
-- hazard:  an expired presence is not revived: its shards may have a new owner already.
update outbox.worker_processes w
set seen_at = clock_timestamp(), in_flight = %(in_flight)s::int,
    expires_at = clock_timestamp() + make_interval(secs => %(presence_seconds)s::float8)
where w.worker_no = %(worker_no)s::int and w.stopped_at is null and w.expires_at > clock_timestamp()
  and outbox.why_held() is null
returning w.worker_no
