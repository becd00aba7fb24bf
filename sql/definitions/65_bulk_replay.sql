-- Bulk replay: by endpoint and time, or by a list of events; the first 1,000 at once, the rest in slices.

create or replace function outbox.replay_candidates(
    target outbox.endpoints, since timestamptz, until timestamptz, state text, after_at timestamptz, after_id uuid, size bigint)
returns table (event_id uuid, at timestamptz, wanted boolean)
language plpgsql stable security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    -- an event is older than its delivery's end; a day of slack for a clock that was set back
    youngest constant uuid := outbox.event_id_floor(least(until, now()) + interval '1 day');
    events_from uuid;
begin
    if state = 'dead' then
        return query
        select d.event_id, d.finished_at, d.reason is distinct from 'erased'
        from outbox.deliveries d
        where d.endpoint_id = target.endpoint_id and d.state = 'dead' and d.finished_at >= since and d.finished_at <= until
          and d.event_id < youngest
          and (after_at is null or (d.finished_at >= after_at and (d.finished_at, d.event_id) > (after_at, after_id)))
        order by d.finished_at, d.event_id limit size;
    elsif state in ('delivered', 'canceled') then
        return query
        select d.event_id, '-infinity'::timestamptz,
               d.state = replay_candidates.state and d.finished_at >= since and d.finished_at <= until and d.reason is distinct from 'erased'
               and exists (select from outbox.known_events e where e.event_id = d.event_id and e.payload is not null)
        from outbox.deliveries d
        where d.endpoint_id = target.endpoint_id and d.state <> 'pending' and d.event_id < youngest
          and d.event_id > coalesce(after_id, '00000000-0000-0000-0000-000000000000')
        order by d.event_id limit size;
    elsif target.filter_error is null then
        -- whether an older event was delivered is no longer known
        select greatest(outbox.event_id_floor(greatest(since, 'epoch')), outbox.event_id_floor(max(r.upper_bound))) into events_from
        from outbox.partition_registry r where r.parent = 'finished_deliveries' and r.dropped_at is not null;
        return query
        select e.event_id, '-infinity'::timestamptz,
               t.patterns && target.event_types
               and (target.filter is null or outbox.filter_outcome(e.payload, target.filter) = 't')
               and e.payload <> '{"erased": true}'
               and not exists (select from outbox.deliveries d where d.event_id = e.event_id and d.endpoint_id = target.endpoint_id)
               and not exists (select from outbox.canceled_events c where c.event_id = e.event_id)
               and not exists (select from outbox.fan_out_queue q
                               where q.priority = e.priority and q.bucket = (hashtext(e.workspace_id) >> 16)::smallint
                                 and q.event_id = e.event_id)
        from outbox.events e join outbox.event_types t on t.name = e.event_type
        where e.workspace_id = target.workspace_id and e.event_id >= greatest(events_from, after_id)
          and e.event_id < outbox.event_id_floor(until + interval '1 ms') and (after_id is null or e.event_id > after_id)
        order by e.event_id limit size;
    end if;
end
$$;
comment on function outbox.replay_candidates(outbox.endpoints, timestamptz, timestamptz, text, timestamptz, uuid, bigint) is
    'The next deliveries, or for ''missing'' events, that a bulk replay looks at, in the order in which it goes through them.';

create or replace function outbox.count_replay(
    endpoint_id uuid, since timestamptz, until timestamptz default now(), states text[] default '{dead}') returns bigint
language plpgsql stable security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    target outbox.endpoints := outbox.endpoint_of(count_replay.endpoint_id);
    counted bigint;
begin
    if since is null or until is null or states is null or cardinality(states) = 0
       or not states <@ '{dead,delivered,canceled,missing}'::text[] then
        raise exception 'cannot replay endpoint % from % to %, states %', target.endpoint_id, coalesce(since::text, 'null'),
            coalesce(until::text, 'null'), coalesce(states::text, 'null')
            using errcode = 'OB011', hint = 'Give a time from and to, and states out of dead, delivered, canceled and missing.';
    end if;
    select count(*) into counted
    from (select distinct unnest(states) as state) s
    cross join lateral outbox.replay_candidates(target, since, least(until, clock_timestamp()), s.state, null, null, null) c
    where c.wanted;
    return counted;
end
$$;
comment on function outbox.count_replay(uuid, timestamptz, timestamptz, text[]) is
    'Dry run: how many deliveries outbox.replay_endpoint would replay with the same arguments.';

create or replace function outbox.carry_on(operation outbox.operations, size int) returns int
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    asked jsonb := operation.parameters;
    target outbox.endpoints;
    phases text[];
    ids uuid[];
    looked_at bigint;
    looked_up_to bigint;
    last_at timestamptz;
    last_id uuid;
    moved bigint := 0;
    budget int := size;
    reach bigint;
begin
    if not asked ? 'since' then
        with turn as (
            update outbox.operation_events l set replayed_at = clock_timestamp()
            where l.operation_id = operation.operation_id and l.event_id = any (array(
                select n.event_id from outbox.operation_events n
                where n.operation_id = operation.operation_id and n.replayed_at is null order by n.event_id limit size))
            returning l.event_id)
        select array_agg(t.event_id order by t.event_id) into ids from turn t;
        moved := outbox.replay_events(ids, operation.endpoint_id, 2::smallint);
        budget := size - coalesce(cardinality(ids), 0);
        phases := case when budget = 0 then '{left}' else '{}'::text[] end;
    else
        select n.* into strict target from outbox.endpoints n where n.endpoint_id = operation.endpoint_id;
        phases := case when target.state = 'deleted' then '{}' else array(select jsonb_array_elements_text(asked -> 'phases')) end;
        if operation.affected > 0 and 10000 < (select count(*) from (
               select from outbox.open_deliveries o where o.endpoint_id = target.endpoint_id limit 10001) o) then
            return 0;  -- the endpoint has enough to do: open work stays small, and fresh events stay in sight
        end if;
        while budget > 0 and cardinality(phases) > 0 loop
            reach := case phases[1] when 'dead' then budget else 20 * size::bigint end;  -- of the others, most may not be wanted
            -- Rows are looked at once, by a cursor: what was moved leaves dead index entries behind it.
            with looked as (
                select c.event_id, c.at, c.wanted,
                       count(*) filter (where c.wanted) over (order by c.at, c.event_id rows unbounded preceding) as nth,
                       count(*) over () as found
                from outbox.replay_candidates(target, (asked ->> 'since')::timestamptz, (asked ->> 'until')::timestamptz, phases[1],
                         (asked ->> 'after_at')::timestamptz, (asked ->> 'after_id')::uuid, reach) c)
            select coalesce(array_agg(l.event_id) filter (where l.wanted), '{}'), count(*), coalesce(max(l.found), 0),
                   (array_agg(l.at order by l.at desc, l.event_id desc))[1], (array_agg(l.event_id order by l.at desc, l.event_id desc))[1]
            into ids, looked_up_to, looked_at, last_at, last_id
            from looked l where l.nth <= budget;
            if phases[1] = 'missing' then
                moved := moved + outbox.open_new(ids, target, 2::smallint);
            else
                moved := moved + outbox.reopen(ids, array_fill(target.endpoint_id, array[cardinality(ids)]), phases[1:1],
                                               2::smallint, clock_timestamp());
            end if;
            if looked_up_to = looked_at and looked_at < reach then
                phases := phases[2:];
                asked := asked - 'after_at' - 'after_id';
                budget := budget - cardinality(ids);
            else
                asked := asked || jsonb_build_object('after_at', last_at, 'after_id', last_id);
                budget := 0;
            end if;
        end loop;
        asked := asked || jsonb_build_object('phases', to_jsonb(phases));
    end if;
    update outbox.operations o
    set affected = o.affected + moved, parameters = asked, state = case when phases = '{}' then 'done' else 'running' end
    where o.operation_id = operation.operation_id;
    return greatest(moved, 1);
end
$$;
comment on function outbox.carry_on(outbox.operations, int) is
    'One step of a bulk replay: moves up to size deliveries and notes how far it got. Returns 0 only if it must wait.';

create or replace function outbox.replay_slice(size int) returns int
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp set lock_timeout = '1s'
as $$
declare
    operation outbox.operations;
begin
    -- at random: one that waits or fails does not stand in front of the others
    select o.* into operation from outbox.operations o
    where o.state = 'running' and o.kind = 'replay' order by random() limit 1 for update skip locked;
    if not found then
        return 0;
    end if;
    return outbox.carry_on(operation, size);
exception
    when lock_not_available or deadlock_detected then
        return 0;  -- an open transaction holds some of its rows
end
$$;
comment on function outbox.replay_slice(int) is
    'Called by the worker: carries on one running replay by up to size deliveries, in one transaction. Returns 0 when there is nothing to do now.';

create or replace function outbox.replay_endpoint(
    endpoint_id uuid, since timestamptz, until timestamptz default now(), states text[] default '{dead}') returns bigint
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    target outbox.endpoints := outbox.endpoint_of(replay_endpoint.endpoint_id);
    -- never later than now: what dies again while this goes on must not be replayed twice
    until_then constant timestamptz := case when until is not null then least(until, clock_timestamp()) end;
    counted bigint := outbox.count_replay(target.endpoint_id, since, until_then, states);
    operation outbox.operations;
begin
    insert into outbox.operations (kind, workspace_id, endpoint_id, state, reason, parameters)
    values ('replay', target.workspace_id, target.endpoint_id, 'running', nullif(current_setting('outbox.reason', true), ''),
            jsonb_build_object('since', since, 'until', until_then, 'states', to_jsonb(states), 'total', counted,
                'phases', (select jsonb_agg(s.state order by array_position('{dead,delivered,canceled,missing}'::text[], s.state))
                           from (select distinct unnest(states) as state) s)))
    returning * into operation;
    perform outbox.carry_on(operation, 1000);
    -- once done, what was moved: another session may have replayed some of the counted ones meanwhile
    return (select case o.state when 'done' then o.affected else counted end
            from outbox.operations o where o.operation_id = operation.operation_id);
end
$$;
comment on function outbox.replay_endpoint(uuid, timestamptz, timestamptz, text[]) is
    'Replays what finished for an endpoint in a time, by default its dead letters; ''missing'' adds events it should have had. Returns how many: the first 1,000 at once, the rest by the workers (outbox.operations).';

create or replace function outbox.replay_many(event_ids uuid[], endpoint_id uuid default null) returns bigint
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    target outbox.endpoints;
    operation outbox.operations;
    given bigint;
    counted bigint;
    bare uuid[];
begin
    if replay_many.endpoint_id is not null then
        target := outbox.endpoint_of(replay_many.endpoint_id);
    end if;
    insert into outbox.operations (kind, workspace_id, endpoint_id, state, reason)
    values ('replay', target.workspace_id, target.endpoint_id, 'running', nullif(current_setting('outbox.reason', true), ''))
    returning * into operation;
    insert into outbox.operation_events (operation_id, event_id)
    select distinct operation.operation_id, g.id from unnest(replay_many.event_ids) as g (id) where g.id is not null;
    get diagnostics given = row_count;
    operation.parameters := jsonb_build_object('events', given);
    perform outbox.carry_on(operation, 1000);
    select o.affected into counted from outbox.operations o where o.operation_id = operation.operation_id;
    if given > 1000 and target.endpoint_id is null then
        bare := outbox.without_payload(replay_many.event_ids);
        counted := counted + (
            select count(*) from outbox.operation_events l join outbox.deliveries d on d.event_id = l.event_id
            where l.operation_id = operation.operation_id and l.replayed_at is null
              and d.state <> 'pending' and d.reason is distinct from 'erased'
              and not exists (select from unnest(bare) as b (event_id) where b.event_id = l.event_id));
    elsif given > 1000 then
        counted := counted + (
            select count(*) from outbox.operation_events l join outbox.known_events e on e.event_id = l.event_id
            where l.operation_id = operation.operation_id and l.replayed_at is null and e.workspace_id = target.workspace_id
              and e.payload is not null
              and not exists (select from outbox.open_deliveries o where o.event_id = l.event_id and o.endpoint_id = target.endpoint_id));
    end if;
    update outbox.operations o set parameters = o.parameters || jsonb_build_object('total', counted)
    where o.operation_id = operation.operation_id;
    return counted;
end
$$;
comment on function outbox.replay_many(uuid[], uuid) is
    'Replays the events of a list, such as array(select … join orders …), each to all its endpoints or to one. Returns how many deliveries: those of the first 1,000 events at once, the rest by the workers.';

create or replace function outbox.stop_operation(operation_id uuid) returns void
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
begin
    update outbox.operations o set state = 'canceled', parameters = o.parameters || jsonb_build_object('stopped_by', session_user)
    where o.operation_id = stop_operation.operation_id and o.state = 'running';
    if not found then
        raise exception 'operation % does not exist or does not run', quote_nullable(stop_operation.operation_id)
            using errcode = 'OB009', hint = 'Look for it with: select operation_id, state, affected from outbox.operation_log;';
    end if;
end
$$;
comment on function outbox.stop_operation(uuid) is 'Ends a running replay; what it has replayed so far stays replayed.';
