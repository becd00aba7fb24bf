-- explain_delivery: why an endpoint did, or did not, get an event.

create or replace function outbox.explain_missing(ev outbox.known_events, endpoint outbox.endpoints) returns text
language plpgsql stable security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    known_type outbox.event_types;
    then_version outbox.endpoint_versions;
    says text;
    replay constant text := case when ev.payload is null then format('It cannot be sent any more: its payload is gone since %s.', ev.payload_gone_at)
        else format('To send it all the same: select outbox.replay(%L, %L);', ev.event_id, endpoint.endpoint_id) end;
begin
    if ev.event_type = 'endpoint.test' then
        return format('It is a test event: outbox.send_test_event made it for endpoint %s and no other.', ev.payload ->> 'endpoint_id');
    end if;
    if ev.payload = '{"erased": true}' then
        return 'The event was erased (outbox.erase).';
    end if;
    select format('outbox.cancel stopped the event as a whole at %s (by %s), before it was fanned out.', c.canceled_at, c.canceled_by)
    into says from outbox.canceled_events c where c.event_id = ev.event_id;
    if found then
        return says;
    end if;
    if exists (select from outbox.fan_out_queue q
               where q.priority = ev.priority and q.bucket = (hashtext(ev.workspace_id) >> 16)::smallint
                 and q.event_id = ev.event_id) then
        return 'It is not fanned out yet: it waits in line. '
            || case when exists (select from outbox.worker_processes w
                                 where w.stopped_at is null and w.expires_at > clock_timestamp())
                    then 'Workers are live; see outbox.fan_out_backlog.'
                    else 'No worker is live. Start one: outbox-worker run' end;
    end if;
    if exists (select from outbox.partition_registry p
               where p.parent = 'finished_deliveries' and p.dropped_at is not null
                 and outbox.event_id_time(ev.event_id) >= p.lower_bound and outbox.event_id_time(ev.event_id) < p.upper_bound) then
        return 'The deliveries of that time are no longer kept (outbox.settings.delivery_retention); what became of it is not known.';
    end if;
    if endpoint.created_at > ev.created_at then
        return format(E'The endpoint was created at %s, after the event.\n%s', endpoint.created_at, replay);
    end if;
    if endpoint.state = 'deleted' and endpoint.state_changed_at <= ev.created_at then
        return format('The endpoint was deleted at %s, before the event.', endpoint.state_changed_at);
    end if;

    select v.* into then_version from outbox.endpoint_versions v
    where v.endpoint_id = endpoint.endpoint_id and v.workspace_id = endpoint.workspace_id and v.created_at <= ev.created_at
    order by v.version desc limit 1;
    if not found then  -- created in the same transaction, a moment later
        select v.* into then_version from outbox.endpoint_versions v
        where v.endpoint_id = endpoint.endpoint_id and v.workspace_id = endpoint.workspace_id
        order by v.version limit 1;
    end if;
    select t.* into known_type from outbox.event_types t where t.name = ev.event_type;
    if not (then_version.event_types && coalesce(known_type.patterns, array[ev.event_type])) then
        return format(E'Its subscription at the time (version %s) was %s and does not match %s.%s\n%s', then_version.version,
                      array_to_string(then_version.event_types, ', '), ev.event_type,
                      case when known_type.operational
                           then ' The type is operational: it needs its exact name, patterns and * leave it out.' else '' end,
                      case when endpoint.event_types && coalesce(known_type.patterns, array[ev.event_type])
                           then 'Its subscription of today does match. ' else '' end || replay);
    end if;

    select f.error into says from outbox.filter_failures f
    where f.event_id = ev.event_id and f.endpoint_id = endpoint.endpoint_id order by f.created_at desc limit 1;
    if found then
        return format(E'Its filter %s failed on this event: %s.\n%s', then_version.filter, says, replay);
    end if;
    if endpoint.filter_error is not null and endpoint.filter::text = then_version.filter::text then
        return format(E'Its filter %s ran past its deadline (%s) and matches nothing until it is changed.\n%s',
                      then_version.filter, endpoint.filter_error, replay);
    end if;
    if then_version.filter is not null and ev.payload is null then
        return format(E'Its filter at the time (version %s) was %s; whether it was true is not known any more.
%s',
                      then_version.version, then_version.filter, replay);
    elsif then_version.filter is not null then
        says := outbox.filter_outcome(ev.payload, then_version.filter);
        if says = 'f' then
            return format(E'Its filter at the time (version %s) is not true for the payload: %s\n%s',
                          then_version.version, then_version.filter, replay);
        elsif says <> 't' then
            return format(E'Its filter at the time (version %s), %s, fails on the payload: %s.\n%s',
                          then_version.version, then_version.filter, says, replay);
        end if;
    end if;
    return format(E'Subscription and filter (version %s) match and nothing stands in the way; there is no delivery, so '
                  'the endpoint was created, changed or deleted at about the time of the fan-out.\n%s',
                  then_version.version, replay);
end
$$;
comment on function outbox.explain_missing(outbox.known_events, outbox.endpoints) is
    'Why there is no delivery of the event to the endpoint; part of outbox.explain_delivery.';

create or replace function outbox.explain_delivery(event_id uuid, endpoint_id uuid) returns text
language plpgsql stable security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    ev outbox.known_events;
    endpoint outbox.endpoints;
    delivery outbox.delivery_log;
    story text;
    history text;
begin
    select e.* into ev from outbox.known_events e where e.event_id = explain_delivery.event_id limit 1;
    if not found then
        return format('There is no event %s in this database: it was never committed, or is older than outbox.settings.event_retention (%s). '
                      'By its id it was made at %s.', coalesce(explain_delivery.event_id::text, 'null'), s.event_retention,
                      coalesce(outbox.event_id_time(explain_delivery.event_id)::text, 'an unknown time'))
        from outbox.settings s;
    end if;
    select n.* into endpoint from outbox.endpoints n where n.endpoint_id = explain_delivery.endpoint_id limit 1;
    if not found then
        return format('There is no endpoint %s in this database. Look for it with: select endpoint_id, url, state '
                      'from outbox.endpoint_health where workspace_id = %L;',
                      coalesce(explain_delivery.endpoint_id::text, 'null'), ev.workspace_id);
    end if;
    story := format(E'%s of workspace %s, recorded at %s\nendpoint %s, %s%s\n', ev.event_type, ev.workspace_id, ev.created_at,
                    outbox.mask_url(endpoint.url), endpoint.state, coalesce(' (' || endpoint.state_reason || ')', ''));
    if endpoint.workspace_id <> ev.workspace_id then
        return story || format('The endpoint belongs to workspace %s: events never cross workspaces.', endpoint.workspace_id);
    end if;
    select d.* into delivery from outbox.delivery_log d
    where d.event_id = ev.event_id and d.endpoint_id = endpoint.endpoint_id limit 1;
    if not found then
        return story || 'Not sent. ' || outbox.explain_missing(ev, endpoint);
    end if;

    story := story || case delivery.state
        when 'delivered' then format('Delivered at %s, %s ms after the event%s.', delivery.finished_at, delivery.total_ms,
                                     case when ev.deliver_at is not null then '''s deliver_at' else '' end)
        when 'leased' then format('Under way: leased to %s until %s.', delivery.worker, delivery.lease_expires_at)
        when 'canceled' then format('Canceled at %s%s.', delivery.finished_at, coalesce(': ' || delivery.why, ''))
        when 'dead' then format('A dead letter since %s: %s.', delivery.finished_at, case delivery.why
                when 'exhausted' then 'every attempt of its retry schedule failed'
                when 'gone' then 'the endpoint answered 410 Gone'
                when 'crash_loop' then 'too many leases were lost: workers died while sending it'
                else coalesce(delivery.why, 'no reason is recorded') end)
            || format(E' To send it again: select outbox.replay(%L, %L);', ev.event_id, endpoint.endpoint_id)
        when 'held' then format('Held: %s. Next attempt due at %s.', case delivery.why
                when 'slots' then 'as many requests are in flight as the endpoint may have'
                when 'rate' then 'the endpoint''s requests a second are used up'
                when 'circuit' then 'the endpoint''s circuit is open; only probes go out'
                when 'suspects' then 'the slots for endpoints that keep failing are taken'
                when 'claim' then 'the worker could not claim its deliveries and tries again; its log says why (statement.failed)'
                when 'no worker' then 'no live worker owns the endpoint''s shard; see outbox.workers'
                else delivery.why end, delivery.next_attempt_at)
            || case when endpoint.state in ('paused', 'disabled')
                    then format(' To go on: select outbox.resume_endpoint(%L);', endpoint.endpoint_id) else '' end
        else case delivery.why
            when 'retry' then format('Waits for its next attempt at %s, after %s failed.', delivery.next_attempt_at, delivery.failed_count)
            when 'scheduled' then format('Scheduled for %s.', delivery.next_attempt_at)
            when 'lease lost' then 'Its lease was lost (a worker died or was cut off); it will be sent again in a moment.'
            when 'earlier event of its ordering key' then
                format('Waits for an earlier event of its ordering key %s.', quote_literal(delivery.ordering_key))
            else format('Due since %s.', delivery.next_attempt_at) end
        end;
    select string_agg(format(E'\n%s at %s by %s%s', o.kind, o.created_at, o.requested_by, coalesce(': ' || o.reason, '')),
                      '' order by o.created_at)
    into history
    from (select x.kind, x.created_at, x.requested_by, x.reason, x.endpoint_id from outbox.operations x
          where x.event_id = ev.event_id
          union all
          select x.kind, x.created_at, x.requested_by, x.reason, x.endpoint_id
          from outbox.operation_events m join outbox.operations x on x.operation_id = m.operation_id
          where m.event_id = ev.event_id) o
    where o.endpoint_id is null or o.endpoint_id = endpoint.endpoint_id;
    story := story || coalesce(history, '');
    select string_agg(format(E'\nattempt %s at %s: %s in %s ms%s', a.attempt_no, a.started_at,
                             coalesce('HTTP ' || a.status, 'no answer'), a.duration_ms,
                             coalesce(', ' || nullif(a.error, ''), '')), '' order by a.attempt_no)
    into history
    from (select k.attempt_no, k.started_at, k.status, k.duration_ms, k.error from outbox.known_attempts k
          where k.event_id = ev.event_id and k.endpoint_id = endpoint.endpoint_id
          order by k.attempt_no desc limit 30) a;
    return story || coalesce(history, '');
end
$$;
comment on function outbox.explain_delivery(uuid, uuid) is
    'Why the endpoint did or did not get the event, in words, with its attempts so far. It tries the filter again, in your session: your statement_timeout ends one that runs long.';
