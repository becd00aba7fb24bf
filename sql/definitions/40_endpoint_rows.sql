-- Endpoints: the row trigger that every path goes through, and the versions that attempts name.

create or replace function outbox.endpoint_problem(endpoint outbox.endpoints) returns text
language sql immutable parallel safe
return case
    when length(endpoint.workspace_id) between 1 and 200 is not true then 'the workspace id must have 1 to 200 characters'
    when length(endpoint.description) <= 2000 is not true then 'the description must be a text of at most 2000 characters'
    when endpoint.ordered is null then 'ordered must be true or false'
    when endpoint.max_in_flight not between 1 and 10000 then 'max_in_flight must be between 1 and 10000, or null'
    when endpoint.max_per_second <= 0 or endpoint.max_per_second > 100000 then 'max_per_second must be above 0 and at most 100000, or null'
    when endpoint.timeout not between interval '100 ms' and interval '60 s' then 'timeout must be between 100 ms and 60 s, or null'
    when endpoint.retry_schedule is not null
         and (array_ndims(endpoint.retry_schedule) = 1 and cardinality(endpoint.retry_schedule) <= 50
              and interval '0 s' < all (endpoint.retry_schedule) and interval '30 days' >= all (endpoint.retry_schedule)) is not true
        then 'retry_schedule must have 1 to 50 delays, each above 0 s and at most 30 days, or be null'
end;
comment on function outbox.endpoint_problem(outbox.endpoints) is
    'Why an endpoint may not have these values, in words, or null; as the table''s constraints have it, whose errors would print the URL.';

create or replace function outbox.check_endpoint() returns trigger
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    limits outbox.settings;
    problem text;
    pattern text;
    origin text;
begin
    if tg_op = 'INSERT' or (new.workspace_id, new.description, new.ordered, new.max_in_flight, new.max_per_second, new.timeout, new.retry_schedule)
       is distinct from (old.workspace_id, old.description, old.ordered, old.max_in_flight, old.max_per_second, old.timeout, old.retry_schedule) then
        problem := outbox.endpoint_problem(new);
        if problem is not null then
            raise exception 'cannot store endpoint %: %', new.endpoint_id, problem
                using errcode = 'OB011', hint = 'Give a value in these limits; in outbox.update_endpoint null leaves a value as it is.';
        end if;
    end if;
    if tg_op = 'INSERT' or new.url is distinct from old.url then
        select * into strict limits from outbox.settings;
        problem := outbox.url_problem(new.url, limits.allowed_ports, limits.allow_plain_http, limits.allow_ip_literals);
        if problem is not null then
            raise exception 'cannot store the URL of endpoint %: %', new.endpoint_id, problem
                using errcode = 'OB005', hint = 'Use https, a public host name in lower case, and one of the allowed ports (outbox.settings).';
        end if;
    end if;
    if tg_op = 'INSERT' or new.event_types is distinct from old.event_types then
        if (array_ndims(new.event_types) = 1 and cardinality(new.event_types) <= 200) is not true then
            raise exception 'cannot subscribe endpoint % to % event types', new.endpoint_id,
                            case when array_ndims(new.event_types) > 1 then 'an array of arrays of' else coalesce(cardinality(new.event_types)::text, 'null') end
                using errcode = 'OB007', hint = 'Give 1 to 200 names or patterns, such as {message.*}; {*} is everything.';
        end if;
        foreach pattern in array new.event_types loop
            problem := outbox.pattern_problem(pattern);
            if problem is null and pattern !~ '\*$' and not exists (select from outbox.event_types t where t.name = pattern) then
                problem := 'no event type of this name is registered';
            end if;
            if problem is not null then
                raise exception 'cannot subscribe endpoint % to %: %', new.endpoint_id, quote_nullable(pattern), problem
                    using errcode = 'OB007', hint = 'Use a name in outbox.event_types, a prefix such as message.*, or *.';
            end if;
        end loop;
    end if;
    -- Only what changes is looked at: a rule or a setting that became stricter must not refuse the worker's own updates of
    -- what was stored before; the worker holds such an endpoint.
    if tg_op = 'INSERT' or new.filter::text is distinct from old.filter::text then
        problem := case when new.filter is not null then outbox.filter_problem(new.filter) end;
    end if;
    if problem is not null then
        raise exception 'cannot store the filter of endpoint %: %', new.endpoint_id, problem
            using errcode = 'OB007', hint = 'Compare a path with a literal, such as $.message.type == "text".';
    end if;
    if tg_op = 'INSERT' or new.header_names is distinct from old.header_names then
        problem := outbox.header_names_problem(new.header_names, (select s.signature_header from outbox.settings s));
    end if;
    if problem is not null then
        raise exception 'cannot store the header names of endpoint %: %', new.endpoint_id, problem
            using errcode = 'OB006', hint = 'Set headers with outbox.set_endpoint_headers(endpoint_id, headers).';
    end if;
    if tg_op = 'INSERT' then
        return new;
    end if;

    if new.endpoint_id <> old.endpoint_id or new.workspace_id <> old.workspace_id then
        raise exception 'cannot move endpoint % to another id or workspace', old.endpoint_id
            using errcode = 'OB008', hint = 'Create a new endpoint with outbox.create_endpoint.';
    end if;
    if old.state = 'deleted' and new.state <> 'deleted' then
        raise exception 'cannot bring back endpoint %: it was deleted and its secret destroyed', old.endpoint_id
            using errcode = 'OB008', hint = 'Create a new endpoint with outbox.create_endpoint.';
    end if;
    new.updated_at := clock_timestamp();
    if new.state <> old.state then
        new.state_changed_at := clock_timestamp();
        if new.state = 'active' then  -- a clean slate
            new.state_reason := null;
            new.failing_since := null;
            new.failing_noticed := false;
        end if;
    end if;
    if new.filter::text is distinct from old.filter::text then
        new.filter_error := null;
    end if;
    if new.url <> old.url or new.sealed_at <> old.sealed_at or new.hold_reason is distinct from old.hold_reason then
        origin := outbox.url_origin(new.url);
        if exists (select from outbox.endpoint_vault v
                   where v.endpoint_id = new.endpoint_id and v.workspace_id = new.workspace_id
                     and (v.secret_origin <> origin or v.headers_origin <> origin)) then
            new.hold_reason := 'origin_changed';
        elsif new.hold_reason = 'origin_changed' or new.sealed_at <> old.sealed_at then
            new.hold_reason := null;
        end if;
    end if;
    if new.url <> old.url or new.event_types <> old.event_types or new.filter::text is distinct from old.filter::text
       or new.header_names <> old.header_names or new.sealed_at <> old.sealed_at
       or new.timeout is distinct from old.timeout or new.retry_schedule is distinct from old.retry_schedule
       or new.ordered <> old.ordered or new.max_in_flight is distinct from old.max_in_flight
       or new.max_per_second is distinct from old.max_per_second then
        new.version := old.version + 1;
    end if;
    return new;
end
$$;
comment on function outbox.check_endpoint() is
    'Row trigger of outbox.endpoints: refuses bad URLs, patterns and header names, keeps state, hold and version consistent.';

create or replace function outbox.record_endpoint_version() returns trigger
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
begin
    if tg_op = 'INSERT' or new.version <> old.version then
        insert into outbox.endpoint_versions (endpoint_id, workspace_id, version, url, event_types, filter, header_names, signature_header)
        select new.endpoint_id, new.workspace_id, new.version, new.url, new.event_types, new.filter, new.header_names, s.signature_header
        from outbox.settings s;
    end if;
    if tg_op = 'UPDATE' and (new.version <> old.version or new.state <> old.state
                             or new.hold_reason is distinct from old.hold_reason) then
        perform pg_notify('outbox_wake', 'shards:' || new.shard);
    end if;
    return null;
end
$$;
comment on function outbox.record_endpoint_version() is
    'Row trigger of outbox.endpoints: keeps every version and tells the owner of its shard.';
do $$
declare
    wanted text;
begin
    -- Only if it is not there: to replace one waits for every transaction that has changed an endpoint, and the next ones wait behind it.
    foreach wanted in array array[
        'create trigger check_endpoint before insert or update on outbox.endpoints for each row execute function outbox.check_endpoint()',
        'create trigger record_endpoint_version after insert or update on outbox.endpoints for each row execute function outbox.record_endpoint_version()'] loop
        if not exists (select from pg_catalog.pg_trigger t
                       where t.tgrelid = 'outbox.endpoints'::regclass and lower(pg_get_triggerdef(t.oid)) = wanted) then
            execute replace(wanted, 'create trigger', 'create or replace trigger');
        end if;
    end loop;
end
$$;
