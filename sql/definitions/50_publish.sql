-- Publish: an event in the caller's transaction, by function, INSERT or COPY; and one skinny row for the fan-out.

create or replace function outbox.refuse_event(event outbox.events) returns void
language plpgsql stable set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    limits outbox.settings;
begin
    select * into strict limits from outbox.settings;
    if not exists (select from outbox.event_types t where t.name = event.event_type) then
        raise exception 'cannot publish: the event type % is not in the catalogue', quote_nullable(event.event_type)
            using errcode = 'OB001', hint = 'See outbox.event_types; add an own one with outbox.register_event_type(name, description).';
    end if;
    if jsonb_typeof(event.payload) is distinct from 'object' then
        raise exception 'cannot publish %: the payload is %, not a JSON object', event.event_type, coalesce(jsonb_typeof(event.payload), 'null')
            using errcode = 'OB002', hint = 'Wrap the value: {"items": […]}.';
    end if;
    if octet_length(event.payload::text) > limits.max_payload_bytes then
        raise exception 'cannot publish %: the payload has % bytes, the limit is %', event.event_type,
            octet_length(event.payload::text), limits.max_payload_bytes
            using errcode = 'OB003', hint = 'Send a link to the large part, or raise outbox.settings.max_payload_bytes.';
    end if;
    if length(event.workspace_id) between 1 and 200 is not true then
        raise exception 'cannot publish %: the workspace id is %', event.event_type,
            coalesce(length(event.workspace_id)::text || ' characters long', 'null')
            using errcode = 'OB011', hint = 'Give the tenant''s id, 1 to 200 characters.';
    end if;
    if event.priority between 0 and 2 is not true then
        raise exception 'cannot publish %: the priority is %', event.event_type, coalesce(event.priority::text, 'null')
            using errcode = 'OB011', hint = 'Use 0 for urgent, 1 for normal, 2 for bulk.';
    end if;
    if length(event.ordering_key) not between 1 and 200 then
        raise exception 'cannot publish %: the ordering key is % characters long', event.event_type, length(event.ordering_key)
            using errcode = 'OB011', hint = 'Give 1 to 200 characters, or null for no order.';
    end if;
    if event.traceparent !~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$' then
        raise exception 'cannot publish %: the traceparent is not one', event.event_type
            using errcode = 'OB011', hint = 'Give it as W3C Trace Context has it: 00-<32 hex digits>-<16 hex digits>-<2 hex digits>; or null.';
    end if;
    raise exception 'cannot publish %: deliver_at % lies more than % ahead', event.event_type, event.deliver_at, limits.max_delay
        using errcode = 'OB011', hint = 'Publish it nearer to its time, or raise outbox.settings.max_delay.';
end
$$;
comment on function outbox.refuse_event(outbox.events) is 'Says why an event cannot be published; called only when it cannot.';

create or replace function outbox.accept_event() returns trigger
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    -- The text is counted, not the stored value: 901 bytes of 1e131071 become 13 MB.
    bytes integer := octet_length(new.payload::text);
begin
    -- Each function and operator named here is looked up anew in each transaction, so an event without the rarer columns
    -- and of at most 1,024 bytes, the least that the settings can allow, passes by what only the others need.
    if new.deliver_at is not null or new.ordering_key is not null or new.traceparent is not null
       or bytes > 1024 then
        perform
        from outbox.settings s
        where bytes <= s.max_payload_bytes
          and (new.deliver_at is null or new.deliver_at <= clock_timestamp() + s.max_delay)
          and (new.ordering_key is null or length(new.ordering_key) between 1 and 200)
          and (new.traceparent is null or new.traceparent ~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$');
        if not found then
            perform outbox.refuse_event(new);
        end if;
    end if;
    -- The table's constraints say the same of workspace and priority, but their errors would print the payload.
    insert into outbox.fan_out_queue (bucket, priority, event_id, workspace_id, ordering_key)
    select (hashtext(new.workspace_id) >> 16)::smallint, new.priority, new.event_id, new.workspace_id, new.ordering_key
    from outbox.event_types t
    where t.name = new.event_type and jsonb_typeof(new.payload) = 'object'
      and length(new.workspace_id) between 1 and 200 and new.priority between 0 and 2;
    if not found then
        perform outbox.refuse_event(new);
    end if;
    -- Only sleepers are woken: a worker about to wait holds this lock exclusively. NOTIFY takes a lock of the
    -- whole cluster at commit, so a busy system must not send one.
    if not pg_try_advisory_xact_lock_shared(1869968482, 2) then
        perform pg_notify('outbox_wake', '');
    end if;
    return new;
end
$$;
comment on function outbox.accept_event() is
    'Row trigger of outbox.events: refuses what cannot be delivered, queues the rest for the fan-out, wakes a sleeping worker.';
comment on column outbox.fan_out_queue.bucket is 'Hash of the workspace, 16 bits: the fan-out goes round them.';

create or replace function outbox.keep_event() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception 'cannot change event %: events are immutable', old.event_id
        using errcode = 'OB008', hint = 'Publish another event that says what changed; outbox.cancel(event_id) stops this one.';
end
$$;
comment on function outbox.keep_event() is 'Row trigger of outbox.events: events are facts.';
do $$
declare
    wanted text;
begin
    -- Only if it is not there: to replace one waits for every transaction that has published, and the next ones wait behind it.
    foreach wanted in array array[
        'create trigger accept_event before insert on outbox.events for each row execute function outbox.accept_event()',
        'create trigger keep_event before update on outbox.events for each row execute function outbox.keep_event()'] loop
        if not exists (select from pg_catalog.pg_trigger t
                       where t.tgrelid = 'outbox.events'::regclass and lower(pg_get_triggerdef(t.oid)) = wanted) then
            execute replace(wanted, 'create trigger', 'create or replace trigger');
        end if;
    end loop;
end
$$;

create or replace function outbox.publish(
    workspace_id text, event_type text, payload jsonb, idempotency_key text default null, ordering_key text default null,
    priority smallint default 1, deliver_at timestamptz default null, traceparent text default null)
returns uuid
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
#variable_conflict use_variable
declare
    new_id uuid := outbox.uuid7();
    content bytea;
    earlier outbox.idempotency_keys;
begin
    if length(idempotency_key) not between 1 and 200 then
        raise exception 'cannot publish %: the idempotency key is % characters long', quote_nullable(event_type), length(idempotency_key)
            using errcode = 'OB011', hint = 'Give 1 to 200 characters, or null for none.';
    end if;
    -- without a workspace, type or payload there is nothing to compare: the event's trigger says what is missing
    if idempotency_key is not null and workspace_id is not null and event_type is not null and payload is not null then
        content := sha256(convert_to(event_type || E'\n' || payload::text, 'UTF8'));
        insert into outbox.idempotency_keys as k (workspace_id, idempotency_key, event_id, fingerprint)
        values (workspace_id, idempotency_key, new_id, content)
        on conflict on constraint idempotency_keys_pkey do nothing;
        if not found then
            select k.* into strict earlier from outbox.idempotency_keys k
            where k.workspace_id = workspace_id and k.idempotency_key = idempotency_key;
            if earlier.fingerprint is distinct from content then
                raise exception 'cannot publish %: the idempotency key % stands for event % with another type or payload',
                    event_type, quote_literal(idempotency_key), earlier.event_id
                    using errcode = 'OB004', hint = 'Use one key for one event; keys are forgotten after outbox.settings.idempotency_retention.';
            end if;
            return earlier.event_id;
        end if;
    end if;
    insert into outbox.events (event_id, workspace_id, event_type, payload, ordering_key, priority, deliver_at, traceparent)
    values (new_id, workspace_id, event_type, payload, ordering_key, coalesce(priority, 1::smallint), deliver_at, traceparent);
    return new_id;
end
$$;
comment on function outbox.publish(text, text, jsonb, text, text, smallint, timestamptz, text) is
    'Records an event in the caller''s transaction and returns its id. The same idempotency key and content return the first id and store nothing.';

create or replace function outbox.publish_many(
    workspace_id text, event_type text, payloads jsonb[], priority smallint default 2) returns setof uuid
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
#variable_conflict use_variable
declare
    one jsonb;
    new_id uuid;
begin
    foreach one in array coalesce(payloads, '{}') loop
        new_id := outbox.uuid7();
        insert into outbox.events (event_id, workspace_id, event_type, payload, priority)
        values (new_id, workspace_id, event_type, one, coalesce(priority, 2::smallint));
        return next new_id;
    end loop;
end
$$;
comment on function outbox.publish_many(text, text, jsonb[], smallint) is
    'Records many events of one type in the caller''s transaction; returns their ids in the order of the payloads.';

create or replace function outbox.send_test_event(endpoint_id uuid) returns uuid
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    known outbox.endpoints := outbox.endpoint_of(send_test_event.endpoint_id);
    new_id uuid := outbox.uuid7();
begin
    insert into outbox.events (event_id, workspace_id, event_type, payload, priority)
    values (new_id, known.workspace_id, 'endpoint.test',
            jsonb_build_object('endpoint_id', known.endpoint_id, 'message', 'This is a test event.'), 0::smallint);
    delete from outbox.fan_out_queue q  -- it goes to this endpoint and no other
    where q.seq = currval(pg_get_serial_sequence('outbox.fan_out_queue', 'seq'));
    insert into outbox.open_deliveries (event_id, endpoint_id, workspace_id, priority, next_attempt_at)
    values (new_id, known.endpoint_id, known.workspace_id, 0::smallint, clock_timestamp());
    perform pg_notify('outbox_wake', 'shards:' || known.shard);
    return new_id;
end
$$;
comment on function outbox.send_test_event(uuid) is
    'Publishes endpoint.test for this one endpoint, whatever it subscribes to, and returns the event id.';

create or replace function outbox.event_body(
    event_id uuid, event_type text, created_at timestamptz, workspace_id text, payload jsonb) returns bytea
language sql stable parallel safe
as $$
    select convert_to(
        '{"id": "' || event_id::text
        || '", "type": ' || to_json(event_type)::text
        || ', "timestamp": "' || to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
        || '", "workspace_id": ' || to_json(workspace_id)::text
        || ', "data": ' || payload::text || '}', 'UTF8')
$$;
comment on function outbox.event_body(uuid, text, timestamptz, text, jsonb) is
    'The request''s body, byte for byte, at every attempt and replay: the payload as PostgreSQL prints it (jsonb orders keys).';
