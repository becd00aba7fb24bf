-- Deliveries: open, finished and kept ones as one table that people read and UPDATE.

create or replace view outbox.deliveries as
select o.event_id, o.endpoint_id, o.workspace_id, 'pending'::text as state, o.attempt_count, o.next_attempt_at,
       o.last_status, o.last_error, o.created_at, null::timestamptz as finished_at, null::text as reason, o.priority,
       o.failed_count, o.lost_count, o.replay_count, o.lease_expires_at, o.leased_by, o.ordering_key
from outbox.open_deliveries o
union all
select f.event_id, f.endpoint_id, f.workspace_id, f.state, f.attempt_count, f.next_attempt_at,
       f.last_status, f.last_error, f.created_at, f.finished_at, f.reason, f.priority,
       f.failed_count, f.lost_count, f.replay_count, null::timestamptz, null::integer, f.ordering_key
from outbox.finished_deliveries f
union all
select k.event_id, k.endpoint_id, k.workspace_id, k.state, k.attempt_count, k.next_attempt_at,
       k.last_status, k.last_error, k.created_at, k.finished_at, k.reason, k.priority,
       k.failed_count, k.lost_count, k.replay_count, null::timestamptz, null::integer, k.ordering_key
from outbox.kept_deliveries k;
comment on view outbox.deliveries is
    'Every delivery. UPDATE … SET state = ''pending'' replays a dead or canceled one, SET state = ''canceled'' cancels a pending one, SET next_attempt_at moves a pending one.';
comment on column outbox.deliveries.event_id is 'The event.';
comment on column outbox.deliveries.endpoint_id is 'The endpoint.';
comment on column outbox.deliveries.workspace_id is 'The tenant.';
comment on column outbox.deliveries.state is 'pending, delivered, dead or canceled.';
comment on column outbox.deliveries.attempt_count is 'Attempts made, over all replays.';
comment on column outbox.deliveries.next_attempt_at is 'Due from this moment on; of a finished one, when its last attempt was due.';
comment on column outbox.deliveries.last_status is 'HTTP status of the last attempt; null when it got none.';
comment on column outbox.deliveries.last_error is 'Why the last attempt failed.';
comment on column outbox.deliveries.created_at is 'When the event was fanned out to this endpoint.';
comment on column outbox.deliveries.finished_at is 'When it reached its final state; null while pending.';
comment on column outbox.deliveries.reason is 'Why it is dead (exhausted, gone, crash_loop) or canceled; erased when the event was.';
comment on column outbox.deliveries.priority is '0 urgent, 1 normal, 2 bulk.';
comment on column outbox.deliveries.failed_count is 'Failed attempts since the last replay: the place in the retry schedule.';
comment on column outbox.deliveries.lost_count is 'Lost leases since the last replay.';
comment on column outbox.deliveries.replay_count is 'How often the delivery was replayed.';
comment on column outbox.deliveries.lease_expires_at is 'End of the lease; null when nobody holds one.';
comment on column outbox.deliveries.leased_by is 'Worker that holds or last held the lease.';
comment on column outbox.deliveries.ordering_key is 'Set only for ordered endpoints: deliveries of one key go one at a time.';

create or replace function outbox.history_floor() returns uuid
language sql stable parallel safe security definer set search_path = pg_catalog, outbox, pg_temp
begin atomic
    -- Above everything that was dropped, not the oldest that is left: a held partition may outlive younger ones.
    select coalesce(outbox.event_id_floor(max(p.floor_at)), '00000000-0000-0000-0000-000000000000')
    from (select coalesce(max(r.upper_bound) filter (where r.dropped_at is not null), min(r.lower_bound)) as floor_at
          from outbox.partition_registry r
          where r.parent in ('finished_deliveries', 'recorded_attempts')
          group by r.parent) p;
end;
comment on function outbox.history_floor() is
    'From this event id on, finished deliveries and attempts go to their partitions; below it they go to kept_deliveries and kept_attempts.';

create or replace function outbox.wake_owners(endpoint_ids uuid[]) returns void
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp  -- not SQL: its plan is kept
as $$
begin
    perform pg_notify('outbox_wake', 'shards:' || s.shard)
    from (select distinct e.shard from outbox.endpoints e where e.endpoint_id = any (wake_owners.endpoint_ids)) s;
end
$$;
comment on function outbox.wake_owners(uuid[]) is 'Wakes the workers that own these endpoints when the transaction commits.';

create or replace function outbox.without_payload(event_ids uuid[]) returns uuid[]
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    first_id constant uuid := (select g.id from unnest(event_ids) as g (id) order by g.id limit 1);
    last_id constant uuid := (select g.id from unnest(event_ids) as g (id) order by g.id desc limit 1);
begin
    -- Until the replay commits no payload goes: outbox.strip_partitions takes this lock alone.
    perform pg_advisory_xact_lock_shared(1869968482, 5);
    return array(select b.event_id from outbox.bare_events b
                 where b.event_id = any (event_ids) and b.event_id >= first_id and b.event_id <= last_id);
end
$$;
comment on function outbox.without_payload(uuid[]) is
    'Those of the events that cannot be replayed because their payload is gone; the others keep theirs until this transaction ends.';

create or replace function outbox.reopen(
    event_ids uuid[], endpoint_ids uuid[], states text[], new_priority smallint, due timestamptz) returns bigint
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    moved bigint := 0;
    bare constant uuid[] := outbox.without_payload(event_ids);
    history text;
    part bigint;
begin
    -- finished before kept, and each a statement of its own: retention moves rows in this direction only.
    foreach history in array array['outbox.finished_deliveries', 'outbox.kept_deliveries'] loop
        execute format($move$
            with picked as (
                select f.event_id, f.endpoint_id, f.workspace_id
                from %1$s f
                where f.event_id = any ($1) and f.state = any ($3) and f.reason is distinct from 'erased'
                  and (f.event_id, f.endpoint_id) in (select w.event_id, w.endpoint_id from unnest($1, $2) as w (event_id, endpoint_id))
                  and not exists (select from unnest($6) as b (event_id) where b.event_id = f.event_id)
                order by f.event_id, f.endpoint_id
                for update of f
            ), gone as (
                delete from %1$s f using picked p
                where f.event_id = any ($1)
                  and f.event_id = p.event_id and f.endpoint_id = p.endpoint_id and f.workspace_id = p.workspace_id
                returning f.event_id, f.endpoint_id, f.workspace_id, f.priority, f.attempt_count, f.replay_count,
                          f.last_status, f.last_error, f.ordering_key, f.ordering_seq, f.created_at
            ), opened as (
                insert into outbox.open_deliveries (event_id, endpoint_id, workspace_id, priority, next_attempt_at, attempt_count,
                    replay_count, last_status, last_error, ordering_key, ordering_seq, created_at)
                select g.event_id, g.endpoint_id, g.workspace_id, coalesce($4, g.priority), $5, g.attempt_count,
                       least(g.replay_count + 1, 32767)::smallint, g.last_status, g.last_error, g.ordering_key, g.ordering_seq, g.created_at
                from gone g
            )
            select count(*) from gone $move$, history)
        into part using event_ids, endpoint_ids, states, new_priority, due, bare;
        moved := moved + part;
    end loop;
    if moved > 0 then
        perform outbox.wake_owners(endpoint_ids);
    end if;
    return moved;
end
$$;
comment on function outbox.reopen(uuid[], uuid[], text[], smallint, timestamptz) is
    'Makes finished deliveries (event_ids[i], endpoint_ids[i]) pending again with a fresh budget; waits for rows that another session holds and passes over those it moved and events without a payload. Null priority keeps each its own.';

create or replace function outbox.close_open(event_ids uuid[], endpoint_ids uuid[], reason text, leased_too boolean) returns bigint
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp set plan_cache_mode = force_generic_plan
as $$
declare
    floor_id constant uuid := outbox.history_floor();
    closed bigint;
begin
    with gone as (
        delete from outbox.open_deliveries o
        where o.event_id = any (close_open.event_ids)
          and (o.event_id, o.endpoint_id) in (select w.event_id, w.endpoint_id from unnest(event_ids, endpoint_ids) as w (event_id, endpoint_id))
          and (leased_too or o.lease_expires_at is null or o.lease_expires_at <= clock_timestamp())
        returning o.event_id, o.endpoint_id, o.workspace_id, 'canceled' as state, close_open.reason as reason, o.priority, o.attempt_count,
                  o.failed_count, o.lost_count, o.replay_count, o.last_status, o.last_error, o.next_attempt_at, o.ordering_key,
                  o.ordering_seq, o.created_at, clock_timestamp() as finished_at
    ), finished as (
        insert into outbox.finished_deliveries (event_id, endpoint_id, workspace_id, state, reason, priority, attempt_count, failed_count,
            lost_count, replay_count, last_status, last_error, next_attempt_at, ordering_key, ordering_seq, created_at, finished_at)
        select g.event_id, g.endpoint_id, g.workspace_id, g.state, g.reason, g.priority, g.attempt_count, g.failed_count,
               g.lost_count, g.replay_count, g.last_status, g.last_error, g.next_attempt_at, g.ordering_key, g.ordering_seq, g.created_at, g.finished_at
        from gone g where g.event_id >= floor_id
    ), kept as (
        insert into outbox.kept_deliveries (event_id, endpoint_id, workspace_id, state, reason, priority, attempt_count, failed_count,
            lost_count, replay_count, last_status, last_error, next_attempt_at, ordering_key, ordering_seq, created_at, finished_at)
        select g.event_id, g.endpoint_id, g.workspace_id, g.state, g.reason, g.priority, g.attempt_count, g.failed_count,
               g.lost_count, g.replay_count, g.last_status, g.last_error, g.next_attempt_at, g.ordering_key, g.ordering_seq, g.created_at, g.finished_at
        from gone g where g.event_id < floor_id
    )
    select count(*) into closed from gone;
    if closed > 0 then
        perform outbox.wake_owners(endpoint_ids);
    end if;
    return closed;
end
$$;
comment on function outbox.close_open(uuid[], uuid[], text, boolean) is
    'Cancels pending deliveries (event_ids[i], endpoint_ids[i]). One under a live lease only if leased_too: its result is then late, kept as evidence.';

-- Generic plans: a custom one for each row would cost more than the row, and may take the partial index for the key.
create or replace function outbox.change_delivery() returns trigger
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp set plan_cache_mode = force_generic_plan
as $$
declare
    name text := format('(%s, %s)', coalesce(old.event_id, new.event_id), coalesce(old.endpoint_id, new.endpoint_id));
    others outbox.deliveries;
    gone outbox.finished_deliveries;
    latest timestamptz;
    why text := nullif(current_setting('outbox.reason', true), '');
    changed bigint;
begin
    if tg_op = 'INSERT' then
        raise exception 'cannot insert delivery %: deliveries come from the fan-out', name
            using errcode = 'OB008', hint = 'Use outbox.publish for a new event, outbox.replay(event_id, endpoint_id) for one that exists.';
    elsif tg_op = 'DELETE' then
        raise exception 'cannot delete delivery %: the history is kept', name
            using errcode = 'OB008', hint = 'Use outbox.cancel(event_id, endpoint_id) for what must not go out; retention drops the rest.';
    end if;

    others := new;
    others.state := old.state;
    others.next_attempt_at := old.next_attempt_at;
    if others is distinct from old then
        raise exception 'cannot change delivery %: only state and next_attempt_at may be changed', name
            using errcode = 'OB008', hint = 'Set state = ''pending'' to replay, state = ''canceled'' to cancel, next_attempt_at to move.';
    end if;
    if new.state = old.state and new.next_attempt_at = old.next_attempt_at then
        return new;
    end if;
    select clock_timestamp() + s.max_delay into latest from outbox.settings s;
    if new.next_attempt_at is null or (new.next_attempt_at <> old.next_attempt_at and new.next_attempt_at > latest) then
        raise exception 'cannot move delivery % to %', name, coalesce(new.next_attempt_at::text, 'null')
            using errcode = 'OB011', hint = format('Give a time up to %s (outbox.settings.max_delay).', latest);
    end if;
    if new.next_attempt_at <> old.next_attempt_at then  -- what is past means now: workers look for nothing before 1970
        new.next_attempt_at := greatest(new.next_attempt_at, clock_timestamp());
    end if;

    if old.state = 'pending' and new.state = 'pending' then
        update outbox.open_deliveries o set next_attempt_at = new.next_attempt_at
        where o.event_id = old.event_id and o.endpoint_id = old.endpoint_id and o.workspace_id = old.workspace_id
          and (o.lease_expires_at is null or o.lease_expires_at <= clock_timestamp());
        if not found then
            return null;
        end if;
        perform outbox.wake_owners(array[old.endpoint_id]);
        return new;
    elsif old.state = 'pending' and new.state = 'canceled' then
        changed := outbox.close_open(array[old.event_id], array[old.endpoint_id], coalesce(why, 'canceled by ' || session_user), true);
    elsif old.state in ('dead', 'canceled') and new.state = 'pending' then
        if old.reason = 'erased' then
            raise exception 'cannot replay delivery %: its event was erased', name
                using errcode = 'OB008', hint = 'Leave it out: and reason is distinct from ''erased''.';
        elsif exists (select from outbox.endpoints e where e.endpoint_id = old.endpoint_id and e.state = 'deleted') then
            raise exception 'cannot replay delivery %: its endpoint was deleted', name
                using errcode = 'OB008',
                      hint = 'Leave it out, or send the event to another endpoint: outbox.replay(event_id, endpoint_id).';
        elsif old.state = 'canceled' and not exists (select from outbox.known_events e where e.event_id = old.event_id) then
            raise exception 'cannot replay delivery %: its event was dropped with its partition', name
                using errcode = 'OB009', hint = 'Events are kept for outbox.settings.event_retention, those of dead letters for dead_letter_retention.';
        elsif cardinality(outbox.without_payload(array[old.event_id])) > 0 then
            raise exception 'cannot replay delivery %: the payload of its event is gone', name
                using errcode = 'OB009', hint = 'Payloads are kept for outbox.settings.payload_retention, those of dead letters for dead_letter_retention.';
        end if;
        -- Not outbox.reopen: for a million rows in one UPDATE these plans are made once. Finished before kept, as there.
        delete from outbox.finished_deliveries f
        where f.event_id = old.event_id and f.endpoint_id = old.endpoint_id and f.workspace_id = old.workspace_id and f.state = old.state
        returning f.* into gone;
        if not found then
            delete from outbox.kept_deliveries k
            where k.event_id = old.event_id and k.endpoint_id = old.endpoint_id and k.workspace_id = old.workspace_id and k.state = old.state
            returning k.* into gone;
        end if;
        if not found then
            return null;
        end if;
        -- bulk priority: fresh events must not wait behind those million
        insert into outbox.open_deliveries (event_id, endpoint_id, workspace_id, priority, next_attempt_at, attempt_count,
            replay_count, last_status, last_error, ordering_key, ordering_seq, created_at)
        values (gone.event_id, gone.endpoint_id, gone.workspace_id, 2,
                case when new.next_attempt_at <> old.next_attempt_at then new.next_attempt_at else clock_timestamp() end,
                gone.attempt_count, least(gone.replay_count + 1, 32767), gone.last_status, gone.last_error,
                gone.ordering_key, gone.ordering_seq, gone.created_at);
        perform outbox.wake_owners(array[old.endpoint_id]);
        changed := 1;
    elsif old.state = 'delivered' and new.state = 'pending' then
        raise exception 'cannot set delivery % to pending: it was delivered', name
            using errcode = 'OB008',
                  hint = format('To send it once more on purpose: select outbox.replay(%L, %L);', old.event_id, old.endpoint_id);
    else
        raise exception 'cannot set delivery % from % to %', name, old.state, coalesce(new.state, 'null')
            using errcode = 'OB008',
                  hint = 'A dead or canceled delivery may be set to pending, a pending one to canceled; only a worker''s attempt makes it delivered or dead.';
    end if;
    if changed = 0 then
        return null;
    end if;
    insert into outbox.operations (kind, workspace_id, event_id, endpoint_id, parameters, affected, reason)
    values (case new.state when 'pending' then 'replay' else 'cancel' end, old.workspace_id, old.event_id, old.endpoint_id,
            jsonb_build_object('by', 'update', 'state', old.state), changed, why);
    return new;
end
$$;
comment on function outbox.change_delivery() is
    'Row trigger of the view outbox.deliveries: replays, cancels or moves; refuses what makes no sense. A row that another session moved meanwhile is passed over.';
create or replace trigger change_delivery instead of insert or update or delete on outbox.deliveries
    for each row execute function outbox.change_delivery();
