-- The catalogue's functions: what an app registers, and what this release ships.

create or replace function outbox.register_event_type(
    name text, description text, schema jsonb default null, example jsonb default null) returns void
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    problem text := outbox.event_type_problem(register_event_type.name);
begin
    if problem is not null then
        raise exception 'cannot register the event type %: %', quote_nullable(register_event_type.name), problem
            using errcode = 'OB007', hint = 'Use two or more lower-case words joined by dots, such as invoice.paid.';
    end if;
    problem := case
        when length(register_event_type.description) between 1 and 2000 is not true then 'the description must have 1 to 2000 characters'
        when jsonb_typeof(register_event_type.schema) <> 'object' then 'the schema must be a JSON object, or null'
        when jsonb_typeof(register_event_type.example) <> 'object' then 'the example must be a JSON object, or null'
    end;
    if problem is not null then
        raise exception 'cannot register the event type %: %', quote_literal(register_event_type.name), problem
            using errcode = 'OB011', hint = 'Say what happened in a sentence; the schema is a JSON Schema, the example a whole payload.';
    end if;
    insert into outbox.event_types as t (name, description, schema, example, patterns)
    values (register_event_type.name, register_event_type.description, register_event_type.schema,
            register_event_type.example, outbox.patterns_of(register_event_type.name, false))
    on conflict on constraint event_types_pkey do update
    set description = excluded.description, schema = excluded.schema, example = excluded.example
    where not t.built_in;
    if not found then
        raise exception 'cannot register the event type %: it is shipped with outbox-worker', register_event_type.name
            using errcode = 'OB007', hint = 'Choose another name for the app''s own event type.';
    end if;
end
$$;
comment on function outbox.register_event_type(text, text, jsonb, jsonb) is
    'Adds or changes an event type of the app''s own. The schema (JSON Schema) and the example are documentation for receivers.';

create or replace function outbox.install_event_types(types jsonb) returns void
language sql security definer set search_path = pg_catalog, outbox, pg_temp
begin atomic
    insert into outbox.event_types (name, description, schema, example, operational, built_in, patterns)
    select t ->> 'name', t ->> 'description', t -> 'schema', t -> 'example',
           coalesce((t ->> 'operational')::boolean, false), true,
           outbox.patterns_of(t ->> 'name', coalesce((t ->> 'operational')::boolean, false))
    from jsonb_array_elements(types) as t
    on conflict (name) do update
    set description = excluded.description, schema = excluded.schema, example = excluded.example,
        operational = excluded.operational, built_in = true, patterns = excluded.patterns;
end;
comment on function outbox.install_event_types(jsonb) is
    'Writes the catalogue of this release; called by outbox-worker migrate only.';
