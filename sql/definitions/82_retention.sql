-- Retention: expired partitions are dropped, one at a time; small tables are purged in slices.

create or replace function outbox.move_kept(parent text, from_id uuid, to_id uuid, dead_since timestamptz, size int) returns int
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    moved int;
begin
    if parent = 'finished_deliveries' then
        with gone as (
            delete from outbox.finished_deliveries f
            where f.event_id >= from_id and f.event_id < to_id and (f.event_id, f.endpoint_id, f.workspace_id) in (
                select d.event_id, d.endpoint_id, d.workspace_id from outbox.finished_deliveries d
                where d.event_id >= from_id and d.event_id < to_id and d.state = 'dead' and d.finished_at > dead_since limit size)
            returning f.event_id, f.endpoint_id, f.workspace_id, f.state, f.reason, f.priority, f.attempt_count, f.failed_count,
                f.lost_count, f.replay_count, f.last_status, f.last_error, f.next_attempt_at, f.ordering_key, f.ordering_seq,
                f.created_at, f.finished_at)
        insert into outbox.kept_deliveries (event_id, endpoint_id, workspace_id, state, reason, priority, attempt_count, failed_count,
            lost_count, replay_count, last_status, last_error, next_attempt_at, ordering_key, ordering_seq, created_at, finished_at)
        select g.event_id, g.endpoint_id, g.workspace_id, g.state, g.reason, g.priority, g.attempt_count, g.failed_count,
            g.lost_count, g.replay_count, g.last_status, g.last_error, g.next_attempt_at, g.ordering_key, g.ordering_seq,
            g.created_at, g.finished_at
        from gone g;
    elsif parent = 'events' then
        with gone as (
            delete from outbox.events e
            where e.event_id >= from_id and e.event_id < to_id and e.event_id in (
                select n.event_id from outbox.events n
                where n.event_id >= from_id and n.event_id < to_id and n.event_id in (
                    select f.event_id from outbox.finished_deliveries f
                    where f.event_id >= from_id and f.event_id < to_id and f.state = 'dead' and f.finished_at > dead_since
                    union all
                    select k.event_id from outbox.kept_deliveries k where k.event_id >= from_id and k.event_id < to_id)
                limit size)
            returning e.event_id, e.workspace_id, e.event_type, e.payload, e.ordering_key, e.priority, e.deliver_at, e.traceparent, e.created_at)
        insert into outbox.kept_events (event_id, workspace_id, event_type, payload, ordering_key, priority, deliver_at, traceparent, created_at)
        select g.event_id, g.workspace_id, g.event_type, g.payload, g.ordering_key, g.priority, g.deliver_at, g.traceparent, g.created_at
        from gone g;
    elsif parent = 'recorded_attempts' then
        with gone as (
            delete from outbox.recorded_attempts a
            where a.event_id >= from_id and a.event_id < to_id and (a.event_id, a.endpoint_id, a.attempt_no, a.workspace_id) in (
                select n.event_id, n.endpoint_id, n.attempt_no, n.workspace_id from outbox.recorded_attempts n
                where n.event_id >= from_id and n.event_id < to_id and (n.event_id, n.endpoint_id) in (
                    select f.event_id, f.endpoint_id from outbox.finished_deliveries f
                    where f.event_id >= from_id and f.event_id < to_id and f.state = 'dead' and f.finished_at > dead_since
                    union all
                    select k.event_id, k.endpoint_id from outbox.kept_deliveries k where k.event_id >= from_id and k.event_id < to_id)
                limit size)
            returning a.event_id, a.endpoint_id, a.attempt_no, a.workspace_id, a.endpoint_version, a.started_at, a.duration_ms,
                a.worker_no, a.status, a.error, a.response_headers, a.response_body)
        insert into outbox.kept_attempts (event_id, endpoint_id, attempt_no, workspace_id, endpoint_version, started_at, duration_ms,
            worker_no, status, error, response_headers, response_body)
        select g.event_id, g.endpoint_id, g.attempt_no, g.workspace_id, g.endpoint_version, g.started_at, g.duration_ms,
            g.worker_no, g.status, g.error, g.response_headers, g.response_body
        from gone g;
    elsif parent = 'bare_attempts' then  -- of deliveries that died after a replay
        with gone as (
            delete from outbox.bare_attempts a
            where a.event_id >= from_id and a.event_id < to_id and (a.event_id, a.endpoint_id, a.attempt_no, a.workspace_id) in (
                select n.event_id, n.endpoint_id, n.attempt_no, n.workspace_id from outbox.bare_attempts n
                where n.event_id >= from_id and n.event_id < to_id and (n.event_id, n.endpoint_id) in (
                    select f.event_id, f.endpoint_id from outbox.finished_deliveries f
                    where f.event_id >= from_id and f.event_id < to_id and f.state = 'dead' and f.finished_at > dead_since
                    union all
                    select k.event_id, k.endpoint_id from outbox.kept_deliveries k where k.event_id >= from_id and k.event_id < to_id)
                limit size)
            returning a.event_id, a.endpoint_id, a.attempt_no, a.workspace_id, a.endpoint_version, a.started_at, a.duration_ms,
                a.worker_no, a.status, a.error)
        insert into outbox.kept_attempts (event_id, endpoint_id, attempt_no, workspace_id, endpoint_version, started_at, duration_ms,
            worker_no, status, error)
        select g.event_id, g.endpoint_id, g.attempt_no, g.workspace_id, g.endpoint_version, g.started_at, g.duration_ms,
            g.worker_no, g.status, g.error
        from gone g;
    else
        return 0;  -- bare_events: the event of a dead letter never gets there
    end if;
    get diagnostics moved = row_count;
    return moved;
end
$$;
comment on function outbox.move_kept(text, uuid, uuid, timestamptz, int) is
    'Moves up to size rows that dead letters need out of a range of event ids to the kept_* table; a row is in one of the two at any moment.';

create or replace function outbox.drop_partitions() returns int
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp set lock_timeout = '100ms'
as $$
declare
    slice constant int := 10000;
    expired record;
    from_id uuid;
    to_id uuid;
    dead_since timestamptz;
    moved int := 0;
    part int;
begin
    if not pg_try_advisory_xact_lock(1869968482, 3) then
        return 0;
    end if;
    select now() - greatest(s.dead_letter_retention, s.delivery_retention) into dead_since from outbox.settings s;
    -- finished deliveries first: once they are gone, kept_deliveries alone says which events and attempts are needed
    for expired in
        select oldest.parent, oldest.name, oldest.lower_bound, oldest.upper_bound, oldest.missing
        from (select distinct on (p.parent) p.parent, p.name, p.lower_bound, p.upper_bound, p.size_bytes is null as missing
              from outbox.partitions p where p.state = 'expired'
              order by p.parent, p.lower_bound) oldest
        order by case oldest.parent when 'finished_deliveries' then 1 when 'recorded_attempts' then 2 when 'bare_attempts' then 3 else 4 end
    loop
        from_id := outbox.event_id_floor(expired.lower_bound);
        to_id := outbox.event_id_floor(expired.upper_bound);
        begin
            if not expired.missing then
                part := outbox.move_kept(expired.parent, from_id, to_id, dead_since, slice);
                moved := moved + part;
                continue when part > 0;  -- its lock comes in a call of its own: publishers wait behind it
                execute format('lock table only outbox.%I in access exclusive mode', expired.parent);
                execute format('lock table outbox.%I in access exclusive mode', expired.name);
                -- What came in before the lock was had. A replay needs a lock that this one excludes.
                if outbox.move_kept(expired.parent, from_id, to_id, dead_since, slice) > 0
                   or not exists (select from outbox.partitions p where p.parent = expired.parent and p.lower_bound = expired.lower_bound
                                                                    and p.state = 'expired') then
                    return moved + 1;
                end if;
                execute format('drop table outbox.%I', expired.name);
            end if;
            update outbox.partition_registry r set dropped_at = clock_timestamp(), last_error = null
            where r.parent = expired.parent and r.lower_bound = expired.lower_bound;
            return moved + 1;
        exception
            when others then
                update outbox.partition_registry r set last_error = format('%s: %s', sqlstate, sqlerrm)
                where r.parent = expired.parent and r.lower_bound = expired.lower_bound;
        end;
    end loop;
    return moved;
end
$$;
comment on function outbox.drop_partitions() is
    'Drops one expired partition, or moves a slice of what dead letters need out of it. Returns 0 when nothing is left to do now; a failure is in outbox.partitions.last_error.';

create or replace function outbox.purge(size int) returns int
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    ages outbox.settings;
    old record;
    purged int := 0;
    part int;
begin
    select * into strict ages from outbox.settings;
    for old in
        select * from (values
            ('idempotency_keys', 'created_at', ages.idempotency_retention),
            ('endpoint_minutes', 'at', interval '2 days'),
            ('lost_leases', 'recorded_at', ages.attempt_retention),
            ('late_results', 'recorded_at', ages.attempt_retention),
            ('filter_failures', 'created_at', ages.attempt_retention),
            ('canceled_events', 'canceled_at', greatest(ages.event_retention, ages.dead_letter_retention)),
            ('kept_deliveries', 'finished_at', ages.dead_letter_retention)) as v (name, aged_by, kept_for)
    loop
        execute format('delete from outbox.%1$I where ctid = any (array(select ctid from outbox.%1$I where %2$I < now() - $1 '
                       'order by %2$I limit $2 for update skip locked))', old.name, old.aged_by) using old.kept_for, size;
        get diagnostics part = row_count;
        purged := purged + part;
    end loop;

    -- kept events and attempts go when their last delivery is gone
    delete from outbox.kept_events e where e.event_id = any (array(
        select n.event_id from outbox.kept_events n
        where n.event_id < outbox.event_id_floor(now() - ages.dead_letter_retention)
          and not exists (select from outbox.deliveries d where d.event_id = n.event_id)
        order by n.event_id limit size));
    get diagnostics part = row_count;
    purged := purged + part;
    delete from outbox.kept_attempts a where (a.event_id, a.endpoint_id) in (
        select n.event_id, n.endpoint_id from outbox.kept_attempts n
        where n.event_id < outbox.event_id_floor(now() - ages.dead_letter_retention)
          and not exists (select from outbox.deliveries d where d.event_id = n.event_id and d.endpoint_id = n.endpoint_id)
        order by n.event_id limit size);
    get diagnostics part = row_count;
    purged := purged + part;

    delete from outbox.operation_events l where (l.operation_id, l.event_id) in (
        select o.operation_id, o.event_id from outbox.operation_events o
        where o.operation_id < outbox.event_id_floor(now() - ages.dead_letter_retention) limit size);
    get diagnostics part = row_count;
    purged := purged + part;

    -- the newest dropped partition stays registered: outbox.history_floor() is its upper bound
    delete from outbox.partition_registry r
    where r.dropped_at < now() - greatest(ages.dead_letter_retention, interval '365 days')
      and r.upper_bound < (select max(d.upper_bound) from outbox.partition_registry d where d.parent = r.parent and d.dropped_at is not null);
    return purged;
end
$$;
comment on function outbox.purge(int) is
    'Deletes up to size rows past their retention from each small table; returns how many in all. Call it until it returns 0.';
