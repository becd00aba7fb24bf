-- report_endpoints: append what the owner of some endpoints knows about them.
-- params:  worker_no int, reports text (jsonb array)
-- index:   none: append-only
-- hazard:  rows are never updated: a counter that everybody updates collects dead versions.
insert into outbox.endpoint_minutes (endpoint_id, workspace_id, worker_no, attempts, successes, timeouts, latency_counts,
                                     in_flight, in_flight_limit, circuit, waits_for)
select r.endpoint_id, r.workspace_id, %(worker_no)s::int, r.attempts, r.successes, r.timeouts, r.latency_counts,
       r.in_flight, r.in_flight_limit, r.circuit, r.waits_for
from jsonb_to_recordset(%(reports)s::text::jsonb) as r (endpoint_id uuid, workspace_id text, attempts int, successes int,
     timeouts int, latency_counts int[], in_flight int, in_flight_limit int, circuit text, waits_for text)
