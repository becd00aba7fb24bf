-- settle: the attempt's record and the delivery's new state, in one commit, if the lease is still ours.
-- params:  arrays of one entry a settlement: event_ids uuid[], endpoint_ids uuid[], workspace_ids text[], lease_tokens uuid[],
--          attempt_nos int[], versions int[], event_types text[], verdicts text[], retry_seconds float[], started_ats timestamptz[],
--          durations int[], statuses smallint[], errors text[], response_headers text[] (jsonb), response_bodies bytea[]; worker_no int
-- index:   open_deliveries_pkey (event_id, endpoint_id, workspace_id)
-- hazard:  a delivery's key is compared as a row, here and in release, reap, claim_ordered and fan_out: of the indexes only
--          that of the key serves it. Compared column by column, a plan made while the table was empty looked for each delivery among all that waits at its
--          endpoint. `is true` keeps an endpoint from being looked for among all of its workspace;
--          `offset 0`, here and in reap and fan_out, keeps `exists` one look for each row: a join could read the whole table for each.
--          A settlement whose token is no longer current changes no state: it becomes a late result. Rows that another
--          session holds are skipped and said to be locked, never waited for: one operator must not stop a worker.
with history as materialized (  -- once, not once a row
    select outbox.history_floor() as floor
), matched as materialized (
    select i.place, i.event_id, i.endpoint_id, i.workspace_id, i.lease_token, i.attempt_no, i.version, i.event_type, i.verdict,
           i.retry_in, i.started_at, i.duration_ms, i.status, i.error, i.response_headers, i.response_body, f.floor, d.event_id is not null as current,
           d.event_id is null and exists (
               select from outbox.open_deliveries o
               where (o.event_id, o.endpoint_id, o.workspace_id)
                     between (i.event_id, i.endpoint_id, i.workspace_id) and (i.event_id, i.endpoint_id, i.workspace_id)
                 and o.lease_token = i.lease_token) as locked,
           d.priority, d.next_attempt_at, d.attempt_count, d.failed_count, d.lost_count, d.replay_count, d.ordering_key, d.ordering_seq,
           d.created_at
    from unnest(%(event_ids)s::uuid[], %(endpoint_ids)s::uuid[], %(workspace_ids)s::text[], %(lease_tokens)s::uuid[],
                %(attempt_nos)s::int[], %(versions)s::int[], %(event_types)s::text[], %(verdicts)s::text[],
                %(retry_seconds)s::float8[], %(started_ats)s::timestamptz[], %(durations)s::int[], %(statuses)s::smallint[],
                %(errors)s::text[], %(response_headers)s::text[], %(response_bodies)s::bytea[]) with ordinality
         as i (event_id, endpoint_id, workspace_id, lease_token, attempt_no, version, event_type, verdict, retry_in,
               started_at, duration_ms, status, error, response_headers, response_body, place)
    cross join history f
    left join lateral (
        select d.event_id, d.priority, d.next_attempt_at, d.attempt_count, d.failed_count, d.lost_count, d.replay_count,
               d.ordering_key, d.ordering_seq, d.created_at
        from outbox.open_deliveries d
        where (d.event_id, d.endpoint_id, d.workspace_id)
              between (i.event_id, i.endpoint_id, i.workspace_id) and (i.event_id, i.endpoint_id, i.workspace_id)
          and d.lease_token = i.lease_token
          and (i.verdict <> 'disable_endpoint'  -- the endpoint is disabled in the same commit, or both wait
               or exists (select from outbox.endpoints e
                          where e.endpoint_id = i.endpoint_id and (e.workspace_id = i.workspace_id) is true
                          for update skip locked))
        limit 1 for update skip locked) d on true
), held as not materialized (
    select m.event_id, m.endpoint_id, m.workspace_id, m.priority, m.next_attempt_at, m.attempt_count, m.failed_count, m.lost_count,
           m.replay_count, m.ordering_key, m.ordering_seq, m.created_at, m.version, m.event_type, m.verdict, m.retry_in, m.started_at,
           m.duration_ms, m.status, m.error, m.response_headers, m.response_body, m.floor
    from matched m
    where m.current
), removed as (
    delete from outbox.open_deliveries d using held h
    where (d.event_id, d.endpoint_id, d.workspace_id)
          between (h.event_id, h.endpoint_id, h.workspace_id) and (h.event_id, h.endpoint_id, h.workspace_id)
      and h.verdict in ('delivered', 'give_up', 'disable_endpoint')
), put_back as (
    update outbox.open_deliveries d
    set next_attempt_at = clock_timestamp() + make_interval(secs => h.retry_in),
        attempt_count = d.attempt_count + (h.verdict = 'retry')::int,
        failed_count = d.failed_count + (h.verdict = 'retry')::int,
        last_status = case when h.verdict = 'retry' then h.status else d.last_status end,
        last_error = case when h.verdict = 'retry' then h.error else d.last_error end,
        lease_token = null, lease_expires_at = null
    from held h
    where (d.event_id, d.endpoint_id, d.workspace_id)
          between (h.event_id, h.endpoint_id, h.workspace_id) and (h.event_id, h.endpoint_id, h.workspace_id)
      and h.verdict in ('retry', 'not_attempted')
), finals as materialized (
    select h.event_id, h.endpoint_id, h.workspace_id, case when h.verdict = 'delivered' then 'delivered' else 'dead' end as state,
           case h.verdict when 'give_up' then 'exhausted' when 'disable_endpoint' then 'gone' end as reason,
           h.priority, h.attempt_count + 1 as attempt_count, h.failed_count + (h.verdict <> 'delivered')::int as failed_count,
           h.lost_count, h.replay_count, h.status, h.error, h.next_attempt_at, h.ordering_key, h.ordering_seq, h.created_at,
           h.event_type, h.event_id >= h.floor as in_history
    from held h
    where h.verdict in ('delivered', 'give_up', 'disable_endpoint')
), finished as (
    insert into outbox.finished_deliveries (event_id, endpoint_id, workspace_id, state, reason, priority, attempt_count, failed_count,
        lost_count, replay_count, last_status, last_error, next_attempt_at, ordering_key, ordering_seq, created_at)
    select f.event_id, f.endpoint_id, f.workspace_id, f.state, f.reason, f.priority, f.attempt_count, f.failed_count,
           f.lost_count, f.replay_count, f.status, f.error, f.next_attempt_at, f.ordering_key, f.ordering_seq, f.created_at
    from finals f
    where f.in_history
), kept as (
    insert into outbox.kept_deliveries (event_id, endpoint_id, workspace_id, state, reason, priority, attempt_count, failed_count,
        lost_count, replay_count, last_status, last_error, next_attempt_at, ordering_key, ordering_seq, created_at)
    select f.event_id, f.endpoint_id, f.workspace_id, f.state, f.reason, f.priority, f.attempt_count, f.failed_count,
           f.lost_count, f.replay_count, f.status, f.error, f.next_attempt_at, f.ordering_key, f.ordering_seq, f.created_at
    from finals f
    where not f.in_history
), attempts as (
    insert into outbox.recorded_attempts (event_id, endpoint_id, attempt_no, workspace_id, endpoint_version, started_at, duration_ms,
        worker_no, status, error, response_headers, response_body)
    select h.event_id, h.endpoint_id, h.attempt_count + 1, h.workspace_id, h.version, h.started_at, h.duration_ms,
           %(worker_no)s::int, h.status, h.error, h.response_headers::jsonb, h.response_body
    from held h
    where h.verdict <> 'not_attempted' and h.event_id >= h.floor
), kept_attempts as (
    insert into outbox.kept_attempts (event_id, endpoint_id, attempt_no, workspace_id, endpoint_version, started_at, duration_ms,
        worker_no, status, error, response_headers, response_body)
    select h.event_id, h.endpoint_id, h.attempt_count + 1, h.workspace_id, h.version, h.started_at, h.duration_ms,
           %(worker_no)s::int, h.status, h.error, h.response_headers::jsonb, h.response_body
    from held h
    where h.verdict <> 'not_attempted' and h.event_id < h.floor
), late as (
    insert into outbox.late_results (event_id, endpoint_id, attempt_no, workspace_id, endpoint_version, started_at, duration_ms,
        worker_no, status, error, response_headers, response_body, lease_token)
    select i.event_id, i.endpoint_id, i.attempt_no, i.workspace_id, i.version, i.started_at, i.duration_ms,
           %(worker_no)s::int, i.status, i.error, case when not e.erased then i.response_headers::jsonb end,
           case when not e.erased then i.response_body end, i.lease_token
    from matched i
    cross join lateral (  -- an answer may repeat what was erased while the request was under way
        select exists (select from outbox.kept_events k
                       where k.event_id = i.event_id and k.workspace_id = i.workspace_id and k.payload = '{"erased": true}') as erased) e
    where not i.current and not i.locked and i.verdict <> 'not_attempted'
      -- the commit of an earlier try of this very batch may have been answered by a broken connection
      and not exists (select from outbox.recorded_attempts a
                      where a.event_id = i.event_id and a.endpoint_id = i.endpoint_id and a.attempt_no = i.attempt_no
                        and a.started_at = i.started_at)
), by_endpoint as materialized (
    select h.endpoint_id, h.workspace_id, bool_or(h.verdict = 'delivered') as succeeded,
           bool_or(h.verdict in ('retry', 'give_up')) as failed, bool_or(h.verdict = 'disable_endpoint') as gone,
           max(h.status) as status, max(h.error) as error
    from held h
    where h.verdict <> 'not_attempted'
    group by h.endpoint_id, h.workspace_id
), transitions as materialized (
    select b.endpoint_id, b.workspace_id, b.succeeded, b.status, b.error, e.url, e.failing_since,
           e.state = 'active' and b.gone as gone,
           e.state = 'active' and not b.gone and not b.succeeded
               and coalesce(e.failing_since < now() - s.disable_after, false) as failing_too_long,
           not b.succeeded and not e.failing_noticed
               and coalesce(e.failing_since < now() - s.failing_notice_after, false) as to_notice,
           s.disable_after
    from by_endpoint b
    cross join outbox.settings s
    cross join lateral (
        select e.url, e.state, e.failing_since, e.failing_noticed
        from outbox.endpoints e
        where e.endpoint_id = b.endpoint_id and (e.workspace_id = b.workspace_id) is true
          and ((b.succeeded and e.failing_since is not null)
               or (not b.succeeded and (e.failing_since is null or b.gone or e.failing_since < now() - s.failing_notice_after)))
        limit 1 for update skip locked) e  -- an app may hold the row in its transaction: the next attempt tells the same
), changed as (
    update outbox.endpoints e
    set failing_since = case when t.succeeded then null else coalesce(e.failing_since, now()) end,
        failing_noticed = not t.succeeded and (e.failing_noticed or t.to_notice),
        state = case when t.gone or t.failing_too_long then 'disabled' else e.state end,
        state_reason = case when t.gone then 'gone' when t.failing_too_long then 'failing' else e.state_reason end
    from transitions t
    -- as a row: an index probe each, not the whole table
    where (e.endpoint_id, e.workspace_id) between (t.endpoint_id, t.workspace_id) and (t.endpoint_id, t.workspace_id)
), told as (  -- customers read these events: an error's kind, not its words, which name our addresses and networks
    insert into outbox.events (workspace_id, event_type, payload, priority)
    select t.workspace_id, case when t.gone or t.failing_too_long then 'endpoint.disabled' else 'endpoint.failing' end,
           jsonb_build_object(
               'endpoint_id', t.endpoint_id, 'url', outbox.url_origin(t.url),
               'failing_since', coalesce(t.failing_since, now()), 'last_status', t.status, 'last_error', substring(t.error from '^[a-z_]+'))
           || case when t.gone then jsonb_build_object('reason', 'gone')
                   when t.failing_too_long then jsonb_build_object('reason', 'failing')
                   else jsonb_build_object('disables_at', t.failing_since + t.disable_after) end, 1
    from transitions t
    where t.gone or t.failing_too_long or t.to_notice
    union all
    select f.workspace_id, 'delivery.dead',
           jsonb_build_object(
               'event_id', f.event_id, 'event_type', f.event_type, 'endpoint_id', f.endpoint_id, 'attempts', f.attempt_count,
               'last_status', f.status, 'last_error', substring(f.error from '^[a-z_]+'), 'reason', f.reason), 1
    from finals f
    where f.state = 'dead'
      and exists (select from outbox.endpoints e where e.workspace_id = f.workspace_id and 'delivery.dead' = any (e.event_types) offset 0)
      and not exists (select from outbox.event_types y where y.name = f.event_type and y.operational)
)
select m.place::int as place, m.current as applied, m.locked,
       coalesce(m.current and t.endpoint_id is not null, false) as endpoint_disabled
from matched m
left join transitions t on t.endpoint_id = m.endpoint_id and (t.gone or t.failing_too_long)
