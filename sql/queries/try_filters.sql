-- try_filters: evaluate the filters of some endpoints on some events.
-- params:  endpoint_ids uuid[]; event_ids uuid[], workspace_ids text[] (an entry each an event)
-- index:   events_pkey (event_id, workspace_id); endpoints_workspace_idx (workspace_id)
-- hazard:  run under a short statement_timeout: which half runs into it is what bisection asks. So it does not read the
--          queue: what an old snapshot keeps there would be every filter's fault.
select count(outbox.filter_outcome(e.payload, p.filter)) as evaluated
from unnest(%(event_ids)s::uuid[], %(workspace_ids)s::text[]) as w (event_id, workspace_id)
cross join lateral (select e.payload from outbox.events e
                    where e.event_id = w.event_id and e.workspace_id = w.workspace_id limit 1) e
join outbox.endpoints p on p.workspace_id = w.workspace_id and p.endpoint_id = any (%(endpoint_ids)s::uuid[])
