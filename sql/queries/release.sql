-- release: give back leases whose request never started; nothing is counted.
-- params:  event_ids uuid[], endpoint_ids uuid[], workspace_ids text[], lease_tokens uuid[]
-- index:   open_deliveries_pkey (event_id, endpoint_id, workspace_id)
-- hazard:  never for a request that has started: the receiver may have acted on it.
update outbox.open_deliveries d
set lease_token = null, lease_expires_at = null
from unnest(%(event_ids)s::uuid[], %(endpoint_ids)s::uuid[], %(workspace_ids)s::text[], %(lease_tokens)s::uuid[])
     as i (event_id, endpoint_id, workspace_id, lease_token)
where d.event_id = i.event_id and d.endpoint_id = i.endpoint_id and d.workspace_id = i.workspace_id
  and d.lease_token = i.lease_token
returning d.event_id, d.endpoint_id
