-- Endpoints: the functions that apps and operators call.

create or replace function outbox.endpoint_of(endpoint_id uuid) returns outbox.endpoints
language plpgsql stable security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    found_row outbox.endpoints;
begin
    select * into found_row from outbox.endpoints e where e.endpoint_id = endpoint_of.endpoint_id and e.state <> 'deleted';
    if not found then
        raise exception 'endpoint % does not exist or was deleted', quote_nullable(endpoint_of.endpoint_id)
            using errcode = 'OB009', hint = 'Look for it with: select endpoint_id, url, state from outbox.endpoint_health;';
    end if;
    return found_row;
end
$$;
comment on function outbox.endpoint_of(uuid) is 'The endpoint''s row, or an error that says where to look.';

create or replace function outbox.lock_endpoint(endpoint_id uuid) returns outbox.endpoints
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    locked outbox.endpoints;
begin
    select * into locked from outbox.endpoints e
    where e.endpoint_id = lock_endpoint.endpoint_id and e.state <> 'deleted' for no key update;
    if not found then
        return outbox.endpoint_of(lock_endpoint.endpoint_id);
    end if;
    return locked;
end
$$;
comment on function outbox.lock_endpoint(uuid) is
    'As endpoint_of, with a lock: whoever changes an endpoint and its vault takes the endpoint first, and sees a deletion that it waited for.';

create or replace function outbox.create_endpoint(
    workspace_id text, url text, event_types text[], description text default '', headers jsonb default '{}',
    filter jsonpath default null, ordered boolean default false, max_in_flight int default null,
    max_per_second numeric default null, timeout interval default null, retry_schedule interval[] default null)
returns table (endpoint_id uuid, secret text)
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
#variable_conflict use_variable
declare
    made outbox.endpoints;
    sealed bytea;
    names text[];
begin
    insert into outbox.endpoints as e (workspace_id, url, event_types, description, filter, ordered, max_in_flight,
                                       max_per_second, timeout, retry_schedule)
    values (workspace_id, url, event_types, coalesce(description, ''), filter, coalesce(ordered, false), max_in_flight,
            max_per_second, timeout, retry_schedule)
    returning e.* into made;
    endpoint_id := made.endpoint_id;
    secret := outbox.new_secret();
    sealed := outbox.seal_secret(made, secret);
    perform outbox.store_secret(made, sealed, interval '0 s');
    if coalesce(headers, '{}') <> '{}' then
        sealed := outbox.seal_headers(made, headers);
        names := outbox.header_names(headers);
        perform outbox.store_headers(made, sealed, names);
    end if;
    return next;
end
$$;
comment on function outbox.create_endpoint(text, text, text[], text, jsonb, jsonpath, boolean, int, numeric, interval, interval[]) is
    'Creates an endpoint and returns its id and its signing secret, which is shown this once.';

create or replace function outbox.update_endpoint(
    endpoint_id uuid, url text default null, event_types text[] default null, description text default null,
    headers jsonb default null, filter jsonpath default null, ordered boolean default null, max_in_flight int default null,
    max_per_second numeric default null, timeout interval default null, retry_schedule interval[] default null)
returns void
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
#variable_conflict use_variable
declare
    known outbox.endpoints := outbox.lock_endpoint(endpoint_id);
    changed outbox.endpoints;
    sealed bytea;
    names text[];
begin
    update outbox.endpoints as e
    set url = coalesce(url, e.url), event_types = coalesce(event_types, e.event_types),
        description = coalesce(description, e.description), filter = coalesce(filter, e.filter),
        ordered = coalesce(ordered, e.ordered), max_in_flight = coalesce(max_in_flight, e.max_in_flight),
        max_per_second = coalesce(max_per_second, e.max_per_second), timeout = coalesce(timeout, e.timeout),
        retry_schedule = coalesce(retry_schedule, e.retry_schedule)
    where e.endpoint_id = known.endpoint_id
    returning e.* into changed;
    if headers is not null then
        sealed := outbox.seal_headers(changed, headers);
        names := outbox.header_names(headers);
        perform outbox.store_headers(changed, sealed, names);
    end if;
end
$$;
comment on function outbox.update_endpoint(uuid, text, text[], text, jsonb, jsonpath, boolean, int, numeric, interval, interval[]) is
    'Changes an endpoint; null leaves a value as it is (set a column to null with UPDATE). A URL of another origin holds the deliveries until secret and headers are renewed.';

create or replace function outbox.set_endpoint_headers(endpoint_id uuid, headers jsonb) returns void
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    known outbox.endpoints := outbox.lock_endpoint(set_endpoint_headers.endpoint_id);
    wanted constant jsonb := coalesce(headers, '{}');
    sealed constant bytea := outbox.seal_headers(known, wanted);
    names constant text[] := outbox.header_names(wanted);
begin
    perform outbox.store_headers(known, sealed, names);
end
$$;
comment on function outbox.set_endpoint_headers(uuid, jsonb) is
    'Replaces the custom headers of an endpoint, sealed; {} removes them.';

create or replace function outbox.rotate_secret(endpoint_id uuid, overlap interval default '24 hours') returns text
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    known outbox.endpoints := outbox.lock_endpoint(rotate_secret.endpoint_id);
    fresh constant text := outbox.new_secret();
    sealed bytea;
begin
    if overlap is null or overlap < interval '0 s' or overlap > interval '30 days' then
        raise exception 'cannot rotate the secret of endpoint %: the overlap is %', known.endpoint_id, coalesce(overlap::text, 'null')
            using errcode = 'OB011', hint = 'Give an overlap between 0 and 30 days.';
    end if;
    sealed := outbox.seal_secret(known, fresh);
    perform outbox.store_secret(known, sealed, overlap);
    update outbox.endpoints e set sealed_at = clock_timestamp() where e.endpoint_id = known.endpoint_id;
    return fresh;
end
$$;
comment on function outbox.rotate_secret(uuid, interval) is
    'Makes a new signing secret and returns it, this once. Both secrets sign until the overlap ends.';

create or replace function outbox.pause_endpoint(endpoint_id uuid) returns void
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    known outbox.endpoints := outbox.endpoint_of(pause_endpoint.endpoint_id);
begin
    update outbox.endpoints e set state = 'paused', state_reason = 'paused by ' || session_user
    where e.endpoint_id = known.endpoint_id and e.state <> 'paused';
end
$$;
comment on function outbox.pause_endpoint(uuid) is 'Holds the endpoint''s deliveries until outbox.resume_endpoint.';

create or replace function outbox.resume_endpoint(endpoint_id uuid) returns void
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    known outbox.endpoints := outbox.endpoint_of(resume_endpoint.endpoint_id);
begin
    update outbox.endpoints e set state = 'active' where e.endpoint_id = known.endpoint_id and e.state <> 'active';
end
$$;
comment on function outbox.resume_endpoint(uuid) is
    'Lets a paused or disabled endpoint go on, with a clean slate; what waited is delivered.';

create or replace function outbox.delete_endpoint(endpoint_id uuid) returns void
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    known outbox.endpoints := outbox.lock_endpoint(delete_endpoint.endpoint_id);
begin
    update outbox.endpoints e set state = 'deleted', state_reason = 'deleted by ' || session_user
    where e.endpoint_id = known.endpoint_id;
    delete from outbox.endpoint_vault v where v.endpoint_id = known.endpoint_id;
end
$$;
comment on function outbox.delete_endpoint(uuid) is
    'Ends an endpoint: its secrets are destroyed at once, its waiting deliveries are canceled by the workers, its history stays.';

create or replace function outbox.quarantine_filter(endpoint_id uuid, error text) returns void
language sql security definer set search_path = pg_catalog, outbox, pg_temp
begin atomic
    update outbox.endpoints e set filter_error = left(quarantine_filter.error, 500)
    where e.endpoint_id = quarantine_filter.endpoint_id;
end;
comment on function outbox.quarantine_filter(uuid, text) is
    'Called by the worker: a filter that runs past its deadline matches nothing until it is changed.';

create or replace function outbox.hold_endpoint(endpoint_id uuid, version int) returns void
language sql security definer set search_path = pg_catalog, outbox, pg_temp
begin atomic
    update outbox.endpoints e set hold_reason = 'secret_unreadable'
    where e.endpoint_id = hold_endpoint.endpoint_id and e.version = hold_endpoint.version and e.hold_reason is null;
end;
comment on function outbox.hold_endpoint(uuid, int) is
    'Called by the worker: the sealed secret or headers of this version cannot be opened; deliveries wait, no attempt is charged.';
