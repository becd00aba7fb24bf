-- release: give back leases whose request never started; nothing is counted.
-- params:  event_ids uuid[], endpoint_ids uuid[], workspace_ids text[], lease_tokens uuid[]
-- index:   open_deliveries_pkey (event_id, endpoint_id, workspace_id)
-- hazard:  never for a request that has started: the receiver may have acted on it. Rows that another session holds are
--          skipped and said to be locked, never waited for: the loop that settles runs this too.
--          A delivery's key is compared as a row: see settle.sql.
with input as materialized (
    select i.event_id, i.endpoint_id, i.workspace_id, i.lease_token
    from unnest(%(event_ids)s::uuid[], %(endpoint_ids)s::uuid[], %(workspace_ids)s::text[], %(lease_tokens)s::uuid[])
         as i (event_id, endpoint_id, workspace_id, lease_token)
), matched as materialized (
    select i.event_id, i.endpoint_id, i.workspace_id, d.event_id is not null as current,
           d.event_id is null and exists (
               select from outbox.open_deliveries o
               where (o.event_id, o.endpoint_id, o.workspace_id)
                     between (i.event_id, i.endpoint_id, i.workspace_id) and (i.event_id, i.endpoint_id, i.workspace_id)
                 and o.lease_token = i.lease_token) as locked
    from input i
    left join lateral (
        select d.event_id
        from outbox.open_deliveries d
        where (d.event_id, d.endpoint_id, d.workspace_id)
              between (i.event_id, i.endpoint_id, i.workspace_id) and (i.event_id, i.endpoint_id, i.workspace_id)
          and d.lease_token = i.lease_token
        limit 1 for update skip locked) d on true
), given_back as (
    update outbox.open_deliveries d
    set lease_token = null, lease_expires_at = null
    from matched m
    where m.current and (d.event_id, d.endpoint_id, d.workspace_id)
          between (m.event_id, m.endpoint_id, m.workspace_id) and (m.event_id, m.endpoint_id, m.workspace_id)
)
select m.event_id, m.endpoint_id, m.current as released, m.locked
from matched m
