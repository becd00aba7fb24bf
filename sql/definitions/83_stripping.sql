-- Stripping: payloads and responses that go before the facts. In slices the facts move to bare_events and
-- bare_attempts, a row in one of two places at any moment; what is then empty is truncated, and the bare partition
-- is dropped in its time like any other. An UPDATE would leave the old rows' space in the partition until then.

create or replace function outbox.strip_slice(
    parent text, name text, after_id uuid, last_id uuid, young_from timestamptz, dead_since timestamptz) returns void
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
begin
    if parent = 'events' then
        execute format($move$
            with gone as (
                delete from outbox.%I e
                where e.event_id > $1 and e.event_id <= $2
                  and not exists (select from outbox.open_deliveries o
                                  where o.event_id = e.event_id and o.event_id > $1 and o.event_id <= $2)
                  and not exists (select from outbox.finished_deliveries f
                                  where f.event_id = e.event_id and f.event_id > $1 and f.event_id <= $2
                                    and f.state = 'dead' and f.finished_at > $3)
                  and not exists (select from outbox.kept_deliveries k
                                  where k.event_id = e.event_id and k.event_id > $1 and k.event_id <= $2)
                returning e.event_id, e.workspace_id, e.event_type, e.priority, e.deliver_at, e.traceparent, e.created_at)
            insert into outbox.bare_events (event_id, workspace_id, event_type, priority, deliver_at, traceparent, created_at)
            select g.event_id, g.workspace_id, g.event_type, g.priority, g.deliver_at, g.traceparent, g.created_at from gone g $move$, name)
        using after_id, last_id, dead_since;
    else
        execute format($move$
            with gone as (
                delete from outbox.%I a
                where a.event_id > $1 and a.event_id <= $2 and a.started_at < $3
                  and not exists (select from outbox.finished_deliveries f
                                  where f.event_id = a.event_id and f.endpoint_id = a.endpoint_id and f.event_id > $1 and f.event_id <= $2
                                    and f.state = 'dead' and f.finished_at > $4)
                  and not exists (select from outbox.kept_deliveries k
                                  where k.event_id = a.event_id and k.endpoint_id = a.endpoint_id and k.event_id > $1 and k.event_id <= $2)
                returning a.event_id, a.endpoint_id, a.attempt_no, a.workspace_id, a.endpoint_version, a.started_at, a.duration_ms,
                    a.worker_no, a.status, a.error)
            insert into outbox.bare_attempts (event_id, endpoint_id, attempt_no, workspace_id, endpoint_version, started_at, duration_ms,
                worker_no, status, error)
            select g.event_id, g.endpoint_id, g.attempt_no, g.workspace_id, g.endpoint_version, g.started_at, g.duration_ms,
                g.worker_no, g.status, g.error
            from gone g $move$, name)
        using after_id, last_id, young_from, dead_since;
    end if;
end
$$;
comment on function outbox.strip_slice(text, text, uuid, uuid, timestamptz, timestamptz) is
    'Moves the facts of a range of event ids out of a partition; what pending deliveries and dead letters need stays whole.';

create or replace function outbox.strip_partitions(size int default 10000) returns int
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp set lock_timeout = '100ms'
as $$
declare
    due record;
    bare text;
    last_id uuid;
    one_left uuid;
    moved int;
    looked_at timestamptz;
    ages outbox.settings;
    dead_since timestamptz;
begin
    if not pg_try_advisory_xact_lock(1869968482, 3) then
        return 0;
    end if;
    select * into strict ages from outbox.settings;
    dead_since := now() - greatest(ages.dead_letter_retention, ages.delivery_retention);
    for due in
        select p.parent, p.name, p.lower_bound, p.upper_bound, r.stripped_to, r.stripped_at
        from outbox.partitions p join outbox.partition_registry r on r.parent = p.parent and r.lower_bound = p.lower_bound
        where p.strip_due_at <= now() and p.state <> 'expired' and p.size_bytes is not null
        order by p.lower_bound, p.parent
    loop
        bare := case due.parent when 'events' then 'bare_events' else 'bare_attempts' end;
        begin
            if due.parent = 'events' then
                perform pg_advisory_xact_lock(1869968482, 5);  -- no replay is under way; what the last ones opened is seen
                continue when (select q.event_id from outbox.fan_out_queue q order by q.seq limit 1)
                              < outbox.event_id_floor(due.upper_bound + interval '1 day');
            end if;
            -- By the key, on from where the last slice ended: rows that were moved stay in the way until a vacuum.
            execute format('select n.event_id from (select t.event_id from outbox.%I t where t.event_id > $1 order by t.event_id limit $2) n '
                           'order by n.event_id desc limit 1', due.name)
            into last_id using coalesce(due.stripped_to, outbox.event_id_floor(due.lower_bound)), size;
            if last_id is not null then
                if not exists (select from outbox.partition_registry r where r.parent = bare and r.lower_bound = due.lower_bound) then
                    perform outbox.make_partition(bare, due.lower_bound, due.upper_bound);
                end if;
                perform outbox.strip_slice(due.parent, due.name, coalesce(due.stripped_to, outbox.event_id_floor(due.lower_bound)),
                                           last_id, now() - ages.response_retention, dead_since);
                update outbox.partition_registry r set stripped_to = last_id, last_error = null
                where r.parent = due.parent and r.lower_bound = due.lower_bound;
                return size;
            end if;
            continue when due.stripped_at is not null and due.stripped_to is null;  -- empty since it was truncated

            looked_at := clock_timestamp();
            execute format('select t.event_id from outbox.%I t order by t.event_id limit 1', due.name) into one_left;
            if one_left is not null then
                moved := outbox.move_kept(due.parent, outbox.event_id_floor(due.lower_bound), outbox.event_id_floor(due.upper_bound), dead_since, size);
                if moved > 0 then
                    return moved;
                end if;
                -- pending work and what is too young: from the start again next time
                update outbox.partition_registry r set stripped_to = null, last_error = null
                where r.parent = due.parent and r.lower_bound = due.lower_bound;
                continue;
            elsif clock_timestamp() - looked_at > interval '100 ms' then
                raise exception 'its rows are gone, but it must be vacuumed first: readers would wait while it is looked through';
            end if;
            execute format('lock table outbox.%I in access exclusive mode', due.name);
            execute format('select t.event_id from outbox.%I t order by t.event_id limit 1', due.name) into one_left;
            if one_left is null then  -- else something came in before the lock was had
                execute format('truncate table outbox.%I', due.name);
                update outbox.partition_registry r
                set stripped_at = coalesce(r.stripped_at, clock_timestamp()), stripped_to = null, last_error = null
                where r.parent = due.parent and r.lower_bound = due.lower_bound;
            end if;
            return 1;
        exception
            when others then
                update outbox.partition_registry r set last_error = format('%s: %s', sqlstate, sqlerrm)
                where r.parent = due.parent and r.lower_bound = due.lower_bound;
        end;
    end loop;

    update outbox.late_results l set response_headers = null, response_body = null
    where l.ctid = any (array(
        select n.ctid from outbox.late_results n
        where n.recorded_at < now() - ages.response_retention and (n.response_headers is not null or n.response_body is not null)
        order by n.recorded_at limit size for update skip locked));
    get diagnostics moved = row_count;
    return moved;
end
$$;
comment on function outbox.strip_partitions(int) is
    'Takes a slice of payloads or responses past settings.payload_retention or response_retention out of the history. Returns 0 when nothing is left to do now; a failure is in outbox.partitions.last_error.';
