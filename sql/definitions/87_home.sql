-- Home: a restored database is held until a person has said what becomes of what waits in it.
-- Told by what changes: another cluster or database is a copy; a new timeline of the same one is a failover, and goes on,
-- unless the server was told to recover to an earlier point. A snapshot of the disk changes nothing: outbox.hold_restored.

create or replace function outbox.here() returns outbox.home
language sql stable security definer set search_path = pg_catalog, outbox, pg_temp
begin atomic
    select true, c.system_identifier, d.oid, ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint,
           null::text, nullif(current_setting('outbox.reason', true), ''), session_user::text, clock_timestamp()
    from pg_control_system() c, pg_database d
    where d.datname = current_database();
end;
comment on function outbox.here() is 'The row of outbox.home that would name this database. Fails on a standby.';

create or replace function outbox.why_held() returns text
language plpgsql stable security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    home outbox.home;
    here outbox.home;
    target text;
begin
    select * into home from outbox.home;
    if not found or pg_is_in_recovery() then
        return null;
    end if;
    here := outbox.here();
    if (here.system_identifier, here.database_oid) is distinct from (home.system_identifier, home.database_oid) then
        return format('this database is a copy: workers last sent from database %s of cluster %s, this is database %s of cluster %s',
                      home.database_oid, home.system_identifier, here.database_oid, here.system_identifier);
    end if;
    if here.timeline <> home.timeline then
        select string_agg(s.name || ' = ' || s.setting, ', ') into target
        from pg_settings s
        where s.name in ('recovery_target', 'recovery_target_lsn', 'recovery_target_name', 'recovery_target_time', 'recovery_target_xid')
          and s.setting <> '';
    end if;
    return coalesce(home.held_because, 'this database was recovered to an earlier point: ' || target);
end
$$;
comment on function outbox.why_held() is
    'Why no worker may send from this database until outbox.release_restored: it is a restored copy. Null when workers may.';

create or replace function outbox.move_in() returns text
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    here constant outbox.home := outbox.here();
    why text;
begin
    insert into outbox.home select (here).* on conflict (only_row) do nothing;
    why := outbox.why_held();
    if why is null then
        update outbox.home h set timeline = here.timeline where h.timeline <> here.timeline;
    end if;
    return why;
end
$$;
comment on function outbox.move_in() is
    'Called by a worker that starts: makes this database the home if there is none, follows a failover; returns why it is held, or null.';

create or replace function outbox.could_be_sent_twice(until timestamptz default now())
returns table (event_id uuid, endpoint_id uuid, workspace_id text, event_type text, state text, attempt_count int,
               next_attempt_at timestamptz, created_at timestamptz)
language sql stable security definer set search_path = pg_catalog, outbox, pg_temp
begin atomic
    select o.event_id, o.endpoint_id, o.workspace_id, e.event_type, case when o.lease_expires_at is null then 'pending' else 'leased' end,
           o.attempt_count, o.next_attempt_at, e.created_at
    from outbox.open_deliveries o
    left join outbox.known_events e on e.event_id = o.event_id and e.workspace_id = o.workspace_id
    where (o.next_attempt_at <= could_be_sent_twice.until or o.lease_expires_at is not null)
      and o.created_at <= could_be_sent_twice.until
    union all
    select q.event_id, null, q.workspace_id, e.event_type, 'not fanned out', 0, coalesce(e.deliver_at, e.created_at), e.created_at
    from outbox.fan_out_queue q
    join outbox.events e on e.event_id = q.event_id and e.workspace_id = q.workspace_id
    where coalesce(e.deliver_at, e.created_at) <= could_be_sent_twice.until and e.created_at <= could_be_sent_twice.until
      and not exists (select from outbox.canceled_events c where c.event_id = q.event_id);
end;
comment on function outbox.could_be_sent_twice(timestamptz) is
    'What waits in a restored database and was due while other workers may still have sent it, which is until the moment given: deliveries, and events not fanned out yet (no endpoint).';

create or replace function outbox.hold_restored() returns void
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    here constant outbox.home := outbox.here();
begin
    insert into outbox.home select (here).* on conflict (only_row) do nothing;
    update outbox.home h
    set held_because = format('%s held it at %s', session_user, to_char(clock_timestamp(), 'YYYY-MM-DD HH24:MI:SS OF')),
        reason = here.reason, changed_by = session_user, changed_at = clock_timestamp();
end
$$;
comment on function outbox.hold_restored() is
    'No worker starts any more, and those that run stop within half a minute, until outbox.release_restored: for a restore that the database cannot tell, such as a snapshot of its disk.';

create or replace function outbox.release_restored(cancel_until timestamptz default null) returns bigint
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    here constant outbox.home := outbox.here();
    closed bigint := 0;
    stopped bigint;
    events uuid[];
    endpoints uuid[];
begin
    if release_restored.cancel_until > clock_timestamp() then
        raise exception 'cannot cancel what was due until %: that moment is still to come', release_restored.cancel_until
            using errcode = 'OB011', hint = 'Give the moment at which the last worker of the original stopped.';
    end if;
    insert into outbox.home select (here).* on conflict (only_row) do nothing;
    if outbox.why_held() is null then
        raise exception 'nothing is held here: workers may send from this database'
            using errcode = 'OB008', hint = 'To stop them first: select outbox.hold_restored();';
    end if;
    if release_restored.cancel_until is not null then
        insert into outbox.canceled_events (event_id, workspace_id)
        select t.event_id, t.workspace_id from outbox.could_be_sent_twice(release_restored.cancel_until) t where t.endpoint_id is null
        on conflict on constraint canceled_events_pkey do nothing;
        get diagnostics closed = row_count;
        select array_agg(t.event_id), array_agg(t.endpoint_id) into events, endpoints
        from outbox.could_be_sent_twice(release_restored.cancel_until) t where t.endpoint_id is not null;
        closed := closed + outbox.close_open(events, endpoints, 'restored: may have been sent', true);
        update outbox.operations o set state = 'canceled'
        where o.kind = 'replay' and o.state = 'running' and o.created_at <= release_restored.cancel_until;
        get diagnostics stopped = row_count;
        insert into outbox.operations (kind, parameters, affected, reason)
        values ('cancel', jsonb_build_object('restored', true, 'until', release_restored.cancel_until, 'replays_stopped', stopped), closed, here.reason);
    end if;
    update outbox.home h
    set system_identifier = here.system_identifier, database_oid = here.database_oid, timeline = here.timeline, held_because = null,
        reason = here.reason, changed_by = session_user, changed_at = clock_timestamp();
    return closed;
end
$$;
comment on function outbox.release_restored(timestamptz) is
    'Makes a restored database the home of the workers: they may start. With a moment, first cancels what outbox.could_be_sent_twice gives for it and stops replays under way; returns how many were canceled.';
