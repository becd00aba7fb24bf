-- try_filters: evaluate the filters of some endpoints on the events at the head of the queue.
-- params:  endpoint_ids uuid[], batch int
-- index:   fan_out_queue_pkey (seq); events_pkey (event_id, workspace_id)
-- hazard:  run under a short statement_timeout: which half runs into it is what bisection asks.
select count(outbox.filter_outcome(e.payload, p.filter)) as evaluated
from (select q.event_id, q.workspace_id from outbox.fan_out_queue q order by q.seq limit %(batch)s::int) w
cross join lateral (select e.payload from outbox.events e
                    where e.event_id = w.event_id and e.workspace_id = w.workspace_id limit 1) e
join outbox.endpoints p on p.workspace_id = w.workspace_id and p.endpoint_id = any (%(endpoint_ids)s::uuid[])
