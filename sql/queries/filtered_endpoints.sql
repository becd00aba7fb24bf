-- filtered_endpoints: endpoints whose filters the next fan-out would evaluate, and the events that it would do so on.
-- params:  batch int
-- index:   fan_out_queue_pkey (seq); endpoints_workspace_idx (workspace_id)
-- hazard:  looked at only after a fan-out ran into its deadline.
select p.endpoint_id, w.event_id, w.workspace_id
from (select q.event_id, q.workspace_id from outbox.fan_out_queue q order by q.seq limit %(batch)s::int) w
join outbox.endpoints p on p.workspace_id = w.workspace_id and p.filter is not null and p.filter_error is null and p.state <> 'deleted'
