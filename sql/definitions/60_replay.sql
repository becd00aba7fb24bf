-- Replay and cancel: what operators call, and the slices in which workers carry on what is too large for one transaction.

create or replace function outbox.event_of(event_id uuid) returns outbox.events
language plpgsql stable security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    found_row outbox.events;
begin
    select * into found_row from outbox.events e where e.event_id = event_of.event_id;
    if not found then
        select * into found_row from outbox.kept_events e where e.event_id = event_of.event_id;
    end if;
    if not found then
        select b.event_id, b.workspace_id, b.event_type, null::jsonb, null::text, b.priority, b.deliver_at, b.traceparent, b.created_at
        into found_row from outbox.bare_events b where b.event_id = event_of.event_id;
    end if;
    if not found then
        raise exception 'event % does not exist, or was dropped with its partition', quote_nullable(event_of.event_id)
            using errcode = 'OB009', hint = 'Look for it with: select event_id, event_type, created_at from outbox.event_log;';
    end if;
    return found_row;
end
$$;
comment on function outbox.event_of(uuid) is 'The event''s row, also beyond its partition and without its payload, or an error that says where to look.';

create or replace function outbox.is_queued(event outbox.events) returns boolean
language sql stable security definer set search_path = pg_catalog, outbox, pg_temp
begin atomic
    select exists (select from outbox.fan_out_queue q
                   where q.priority = event.priority and q.bucket = (hashtext(event.workspace_id) >> 16)::smallint
                     and q.event_id = event.event_id);
end;
comment on function outbox.is_queued(outbox.events) is 'Whether the event is not fanned out yet.';

create or replace function outbox.open_new(event_ids uuid[], endpoint outbox.endpoints, new_priority smallint) returns bigint
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    opened bigint;
begin
    -- Two sessions: the second waits here and then sees the first one's delivery, wherever it has got to by then.
    perform pg_advisory_xact_lock_shared(1869968482, 5);  -- as in outbox.without_payload
    perform pg_advisory_xact_lock(hashtextextended('outbox.open_new ' || endpoint.endpoint_id, 0));
    insert into outbox.open_deliveries (event_id, endpoint_id, workspace_id, priority, next_attempt_at, replay_count, ordering_key, ordering_seq)
    select e.event_id, endpoint.endpoint_id, e.workspace_id, coalesce(new_priority, e.priority), clock_timestamp(), 1,
           case when endpoint.ordered then e.ordering_key end,
           case when endpoint.ordered and e.ordering_key is not null
                then nextval(pg_get_serial_sequence('outbox.fan_out_queue', 'seq')) end
    from outbox.known_events e
    where e.event_id = any (open_new.event_ids) and e.workspace_id = endpoint.workspace_id and e.payload <> '{"erased": true}'
      and not exists (select from outbox.deliveries d
                      where d.event_id = e.event_id and d.event_id = any (open_new.event_ids) and d.endpoint_id = endpoint.endpoint_id)
      and not exists (select from outbox.fan_out_queue q
                      where q.priority = e.priority and q.bucket = (hashtext(e.workspace_id) >> 16)::smallint and q.event_id = e.event_id)
    order by e.event_id
    on conflict on constraint open_deliveries_pkey do nothing;
    get diagnostics opened = row_count;
    if opened > 0 then
        perform outbox.wake_owners(array[endpoint.endpoint_id]);
    end if;
    return opened;
end
$$;
comment on function outbox.open_new(uuid[], outbox.endpoints, smallint) is
    'New deliveries of these events to an endpoint that never had one; passes over events of other workspaces, erased and queued ones, and those without a payload.';

create or replace function outbox.replay_events(event_ids uuid[], endpoint_id uuid, new_priority smallint) returns bigint
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    final constant text[] := '{delivered,dead,canceled}';
    endpoint outbox.endpoints;
    known uuid[];
    events uuid[];
    endpoints uuid[];
    moved bigint;
begin
    select array_agg(e.event_id) into known from outbox.known_events e
    where e.event_id = any (replay_events.event_ids) and e.payload is not null;
    if replay_events.endpoint_id is not null then
        endpoint := outbox.endpoint_of(replay_events.endpoint_id);
        endpoints := array_fill(endpoint.endpoint_id, array[coalesce(cardinality(known), 0)]);
        moved := outbox.reopen(known, endpoints, final, new_priority, clock_timestamp());
        return moved + outbox.open_new(known, endpoint, new_priority);
    end if;
    select array_agg(d.event_id), array_agg(d.endpoint_id) into events, endpoints
    from outbox.deliveries d
    where d.event_id = any (known) and d.state = any (final)
      and not exists (select from outbox.endpoints n where n.endpoint_id = d.endpoint_id and n.state = 'deleted');
    return outbox.reopen(events, endpoints, final, new_priority, clock_timestamp());
end
$$;
comment on function outbox.replay_events(uuid[], uuid, smallint) is
    'Replays the finished deliveries of these events, or each to one endpoint whether it had one or not.';

create or replace function outbox.replay(event_id uuid, endpoint_id uuid default null) returns int
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    event outbox.events := outbox.event_of(replay.event_id);
    endpoint outbox.endpoints;
    moved int;
    hastened uuid[];
begin
    if event.payload = '{"erased": true}' then
        raise exception 'cannot replay event %: it was erased', event.event_id
            using errcode = 'OB008', hint = 'What was erased is gone; publish a new event if there is something to tell.';
    end if;
    if event.payload is null then
        raise exception 'cannot replay event %: its payload is gone since %', event.event_id,
            (select b.payload_gone_at from outbox.bare_events b where b.event_id = event.event_id)
            using errcode = 'OB009', hint = 'Payloads are kept for outbox.settings.payload_retention, those of dead letters for dead_letter_retention.';
    end if;
    if replay.endpoint_id is not null then
        endpoint := outbox.endpoint_of(replay.endpoint_id);
        if endpoint.workspace_id <> event.workspace_id then
            raise exception 'cannot replay event % to endpoint %: the event belongs to workspace %, the endpoint to %',
                event.event_id, endpoint.endpoint_id, quote_literal(event.workspace_id), quote_literal(endpoint.workspace_id)
                using errcode = 'OB008', hint = 'Choose an endpoint of the event''s workspace.';
        end if;
        if outbox.is_queued(event) then
            raise exception 'cannot replay event % to endpoint %: it is not fanned out yet', event.event_id, endpoint.endpoint_id
                using errcode = 'OB008', hint = 'Try again in a moment; if it stays so, no worker is running (outbox.workers).';
        end if;
    end if;
    moved := outbox.replay_events(array[event.event_id], endpoint.endpoint_id, event.priority);
    with due as (
        update outbox.open_deliveries o set next_attempt_at = clock_timestamp()
        where o.event_id = event.event_id and (replay.endpoint_id is null or o.endpoint_id = replay.endpoint_id)
          and o.next_attempt_at > clock_timestamp() and (o.lease_expires_at is null or o.lease_expires_at <= clock_timestamp())
        returning o.endpoint_id)
    select array_agg(d.endpoint_id) into hastened from due d;
    perform outbox.wake_owners(hastened);
    insert into outbox.operations (kind, workspace_id, event_id, endpoint_id, parameters, affected, reason)
    values ('replay', event.workspace_id, event.event_id, replay.endpoint_id,
            jsonb_build_object('made_due', coalesce(cardinality(hastened), 0)), moved, nullif(current_setting('outbox.reason', true), ''));
    return moved;
end
$$;
comment on function outbox.replay(uuid, uuid) is
    'Sends an event again: all its finished deliveries, or the one to an endpoint, which need never have had it. A pending one is made due now and not counted.';

create or replace function outbox.cancel(event_id uuid, endpoint_id uuid default null) returns int
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    event outbox.events := outbox.event_of(cancel.event_id);
    why text := nullif(current_setting('outbox.reason', true), '');
    closed int;
begin
    if cancel.endpoint_id is null then
        insert into outbox.canceled_events (event_id, workspace_id) values (event.event_id, event.workspace_id)
        on conflict on constraint canceled_events_pkey do nothing;
    elsif outbox.is_queued(event) then
        raise exception 'cannot cancel event % for endpoint %: it is not fanned out yet', event.event_id, cancel.endpoint_id
            using errcode = 'OB008', hint = format('Try again in a moment, or cancel it for all: select outbox.cancel(%L);', event.event_id);
    end if;
    select outbox.close_open(array_agg(o.event_id), array_agg(o.endpoint_id), coalesce(why, 'canceled by ' || session_user), true) into closed
    from outbox.open_deliveries o
    where o.event_id = event.event_id and (cancel.endpoint_id is null or o.endpoint_id = cancel.endpoint_id);
    insert into outbox.operations (kind, workspace_id, event_id, endpoint_id, affected, reason)
    values ('cancel', event.workspace_id, event.event_id, cancel.endpoint_id, closed, why);
    return closed;
end
$$;
comment on function outbox.cancel(uuid, uuid) is
    'Stops the pending deliveries of an event, or the one to an endpoint; without an endpoint also an event not fanned out yet. A request in flight cannot be called back.';

create or replace function outbox.cancel_slice(size int) returns int
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    events uuid[];
    endpoints uuid[];
    closed int;
begin
    select array_agg(w.event_id), array_agg(w.endpoint_id) into events, endpoints
    from (select o.event_id, o.endpoint_id
          from outbox.endpoints e
          cross join lateral (select d.event_id, d.endpoint_id from outbox.open_deliveries d
                              where d.endpoint_id = e.endpoint_id and (d.lease_expires_at is null or d.lease_expires_at <= clock_timestamp())
                              limit cancel_slice.size for update skip locked) o
          where e.state = 'deleted' and e.drained_at is null
          limit cancel_slice.size) w;
    closed := outbox.close_open(events, endpoints, 'endpoint deleted', false);
    -- a fan-out under way does not see a cancellation; what was replayed since was meant
    select array_agg(w.event_id), array_agg(w.endpoint_id) into events, endpoints
    from (select o.event_id, o.endpoint_id
          from outbox.canceled_events c join outbox.open_deliveries o on o.event_id = c.event_id
          where c.canceled_at > now() - interval '1 day' and o.replay_count = 0
            and (o.lease_expires_at is null or o.lease_expires_at <= clock_timestamp())
          limit cancel_slice.size for update of o skip locked) w;
    -- After a week no fan-out and no replay that began before the deletion can still bring one in.
    update outbox.endpoints e set drained_at = clock_timestamp()
    where (e.endpoint_id, e.workspace_id) in (
        select n.endpoint_id, n.workspace_id from outbox.endpoints n
        where n.state = 'deleted' and n.drained_at is null and n.state_changed_at < now() - interval '7 days'
          and not exists (select from outbox.open_deliveries d where d.endpoint_id = n.endpoint_id)
        order by n.state_changed_at limit cancel_slice.size for update skip locked);
    return closed + outbox.close_open(events, endpoints, 'event canceled', false);
end
$$;
comment on function outbox.cancel_slice(int) is
    'Called by the worker: cancels up to size waiting deliveries of deleted endpoints, and as many that were fanned out while their event was canceled. Passes over rows that another session holds.';
