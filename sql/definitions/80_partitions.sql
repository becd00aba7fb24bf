-- Partitions: made ahead, dropped when they expire; what dead letters need of them moves to the kept_* tables first.

create or replace function outbox.make_partition(parent text, lower_bound timestamptz, upper_bound timestamptz) returns void
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    at_utc constant timestamp := lower_bound at time zone 'UTC';
    made constant text := parent || '_' || to_char(at_utc,
        case when at_utc = date_trunc('day', at_utc) and upper_bound - lower_bound >= interval '1 day' then 'YYYYMMDD'
             when at_utc = date_trunc('hour', at_utc) then 'YYYYMMDDHH24' else 'YYYYMMDDHH24MISS' end);
begin
    -- First a table of its own, then ATTACH: that does not lock publishers out of the parent.
    execute format('create table outbox.%I (like outbox.%I including all)', made, parent);
    execute format('alter table outbox.%I attach partition outbox.%I for values from (%L) to (%L)', parent, made,
                   outbox.event_id_floor(lower_bound), outbox.event_id_floor(upper_bound));
    insert into outbox.partition_registry (parent, name, lower_bound, upper_bound)
    values (make_partition.parent, made, make_partition.lower_bound, make_partition.upper_bound);
end
$$;
comment on function outbox.make_partition(text, timestamptz, timestamptz) is
    'Makes one partition for the event ids of a time range and registers it.';

create or replace function outbox.create_partitions() returns int
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    origin constant timestamptz := '2024-01-01 00:00:00+00';  -- a Monday
    step double precision;
    ahead timestamptz;
    wanted text;
    lower_bound timestamptz;
    upper_bound timestamptz;
    made int := 0;
begin
    perform pg_advisory_xact_lock(1869968482, 3);
    select ceil(extract(epoch from s.partition_width)), now() + s.partitions_ahead into step, ahead from outbox.settings s;
    foreach wanted in array array['events', 'finished_deliveries', 'recorded_attempts'] loop
        -- On from the highest bound, whatever the width was then; a time in which nothing ran is left out.
        select greatest(max(r.upper_bound),
                        to_timestamp((floor(extract(epoch from now() - origin) / step) - 1) * step + extract(epoch from origin)))
        into lower_bound from outbox.partition_registry r where r.parent = wanted;
        while lower_bound < ahead loop
            upper_bound := to_timestamp((floor(extract(epoch from lower_bound - origin) / step) + 1) * step + extract(epoch from origin));
            perform outbox.make_partition(wanted, lower_bound, upper_bound);
            lower_bound := upper_bound;
            made := made + 1;
        end loop;
    end loop;
    return made;
end
$$;
comment on function outbox.create_partitions() is
    'Makes the partitions that are missing up to settings.partitions_ahead from now; returns how many. Safe for two at once.';

create or replace view outbox.partitions as
select r.parent, r.name, r.lower_bound, r.upper_bound,
       pg_total_relation_size(c.oid) as size_bytes, greatest(c.reltuples, 0)::bigint as row_estimate,
       case when r.lower_bound > now() then 'future'
            when r.upper_bound > now() then 'current'
            when r.upper_bound > now() - age.limit_of then 'past'
            when held.because is not null then 'held'
            else 'expired' end as state,
       case when r.upper_bound <= now() - age.limit_of then held.because end as held_because,
       r.last_error, strip.due_at as strip_due_at, r.stripped_at
from outbox.partition_registry r
cross join outbox.settings s
left join pg_catalog.pg_class c on c.relname = r.name and c.relnamespace = 'outbox'::regnamespace
cross join lateral (
    select case when r.parent in ('events', 'bare_events') then s.event_retention
                when r.parent = 'finished_deliveries' then s.delivery_retention else s.attempt_retention end as limit_of) age
cross join lateral (
    select r.upper_bound + case r.parent when 'events' then s.payload_retention when 'recorded_attempts' then s.response_retention end as due_at
    ) strip
left join lateral (
    select case
        when exists (select from outbox.open_deliveries o
                     where o.event_id >= outbox.event_id_floor(r.lower_bound) and o.event_id < outbox.event_id_floor(r.upper_bound))
            then 'deliveries of its events are pending'
        -- Queue order is time order but for clocks: the first row tells, with a day of slack.
        when (select q.event_id from outbox.fan_out_queue q order by q.seq limit 1) < outbox.event_id_floor(r.upper_bound + interval '1 day')
            then 'events of its time are not fanned out yet'
        end as because
    where r.upper_bound <= now() - age.limit_of) held on true
where r.dropped_at is null;
comment on view outbox.partitions is 'Partitions that exist, with size, state and why an expired one is held.';
comment on column outbox.partitions.parent is 'Partitioned table.';
comment on column outbox.partitions.name is 'Partition.';
comment on column outbox.partitions.lower_bound is 'First moment of its event ids.';
comment on column outbox.partitions.upper_bound is 'First moment after its event ids.';
comment on column outbox.partitions.size_bytes is 'Size on disk with indexes and TOAST; null when it is missing.';
comment on column outbox.partitions.row_estimate is 'Rows at the last ANALYZE.';
comment on column outbox.partitions.state is
    'future, current, past, expired (to be dropped) or held (expired, but open work needs it).';
comment on column outbox.partitions.held_because is 'Which open work holds it.';
comment on column outbox.partitions.last_error is 'Why the last attempt to drop or strip it did not succeed.';
comment on column outbox.partitions.strip_due_at is 'From when on its payloads or responses go before the facts (payload_retention, response_retention); null: they stay as long.';
comment on column outbox.partitions.stripped_at is 'Since when they are gone: only the facts are left, in bare_events or bare_attempts; null while some are there.';

create or replace function outbox.partition_alarm() returns text
language sql stable security definer set search_path = pg_catalog, outbox, pg_temp
begin atomic
    select string_agg(a.says, E'\n' order by a.says)
    from (
        select format('Partitions of outbox.%s reach only to %s, less than 3 days ahead: publishing will fail then. '
                      'Run outbox-worker (any worker makes them) or: select outbox.create_partitions();',
                      t.parent, coalesce(max(r.upper_bound)::text, 'nowhere')) as says
        from (values ('events'), ('finished_deliveries'), ('recorded_attempts')) as t (parent)
        left join outbox.partition_registry r on r.parent = t.parent and r.dropped_at is null
        group by t.parent
        having coalesce(max(r.upper_bound) < now() + interval '3 days', true)
        union all
        select format('Partition outbox.%s should be dropped since a day or more and is not: %s', p.name, p.last_error)
        from outbox.partitions p
        cross join outbox.settings s
        where p.last_error is not null and p.state = 'expired'
          and p.upper_bound < now() - interval '1 day'
              - case when p.parent in ('events', 'bare_events') then s.event_retention
                     when p.parent = 'finished_deliveries' then s.delivery_retention else s.attempt_retention end
        union all
        select format('Partition outbox.%s should be stripped since a day or more and is not: %s', p.name, p.last_error)
        from outbox.partitions p
        where p.last_error is not null and p.state <> 'expired' and p.stripped_at is null and p.strip_due_at < now() - interval '1 day') a;
end;
comment on function outbox.partition_alarm() is
    'What a person must look at: fewer than 3 days of partitions ahead, or one that cannot be dropped or stripped; null when all is well.';
