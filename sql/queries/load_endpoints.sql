-- load_endpoints: what is needed to send to some endpoints, secrets and headers still sealed.
-- params:  endpoint_ids uuid[]
-- index:   endpoints_pkey (endpoint_id, workspace_id); endpoint_vault_pkey (endpoint_id, workspace_id)
-- hazard:  sealed values leave the database only here; they are opened in vault.py and nowhere else.
select e.endpoint_id, e.workspace_id, e.version, e.url, extract(epoch from e.timeout)::float8 as timeout_seconds,
       e.retry_schedule, v.secret,
       case when v.previous_expires_at > clock_timestamp() then v.previous_secret end as previous_secret,
       extract(epoch from v.previous_expires_at - clock_timestamp())::float8 as previous_seconds, v.headers, s.signature_header
from unnest(%(endpoint_ids)s::uuid[]) as u (endpoint_id)
cross join outbox.settings s
cross join lateral (
    select e.endpoint_id, e.workspace_id, e.version, e.url, e.timeout, e.retry_schedule
    from outbox.endpoints e where e.endpoint_id = u.endpoint_id limit 1) e
left join outbox.endpoint_vault v on v.endpoint_id = e.endpoint_id and v.workspace_id = e.workspace_id
