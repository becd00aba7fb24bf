-- Erasure: one customer's data taken out of the history, with a record that it happened.

-- An erased event moves to kept_events with {"erased": true} for a payload: the trigger that makes events
-- immutable stays without exception. The old row is gone from the files after the next VACUUM.
create or replace function outbox.erase_events(event_ids uuid[]) returns bigint
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    erased bigint := 0;
    touched uuid[];
    ids uuid[];
    events uuid[];
    endpoints uuid[];
begin
    perform pg_advisory_xact_lock(1869968482, 5);  -- no replay is under way; what the last ones opened is seen
    for place in 1 .. coalesce(cardinality(event_ids), 0) by 1000 loop
        ids := event_ids[place : place + 999];
        -- whatever was not fanned out yet goes nowhere; a fan-out under way is waited for and its deliveries are seen below.
        -- Deleted, not marked: one that began before this commit would still read the payload.
        delete from outbox.fan_out_queue q where q.event_id = any (ids);

        with gone as (
            delete from outbox.events e where e.event_id = any (ids)
            returning e.event_id, e.workspace_id, e.event_type, e.priority, e.deliver_at, e.traceparent, e.created_at
        ), kept as (
            insert into outbox.kept_events (event_id, workspace_id, event_type, payload, priority, deliver_at, traceparent, created_at)
            select g.event_id, g.workspace_id, g.event_type, '{"erased": true}', g.priority, g.deliver_at, g.traceparent, g.created_at from gone g)
        select array_agg(g.event_id) into touched from gone g;
        with gone as (
            update outbox.kept_events e set payload = '{"erased": true}', ordering_key = null
            where e.event_id = any (ids) and e.payload <> '{"erased": true}'
            returning e.event_id)
        select touched || array_agg(g.event_id) into touched from gone g;

        -- keys are often made of what they stand for; the app's next call with this one publishes anew
        delete from outbox.idempotency_keys i where i.event_id = any (ids);

        -- waits for a settlement under way; one that comes after it finds no lease and is a late result
        select array_agg(o.event_id), array_agg(o.endpoint_id) into events, endpoints
        from outbox.open_deliveries o where o.event_id = any (ids);
        perform outbox.close_open(events, endpoints, 'erased', true);
        -- the reason also keeps them from being replayed
        update outbox.finished_deliveries f set reason = 'erased', ordering_key = null, ordering_seq = null where f.event_id = any (ids);
        update outbox.kept_deliveries k set reason = 'erased', ordering_key = null, ordering_seq = null where k.event_id = any (ids);

        -- what a receiver answered may repeat what it was sent
        with gone as (
            update outbox.recorded_attempts a set response_body = null, response_headers = null
            where a.event_id = any (ids) and (a.response_body is not null or a.response_headers is not null)
            returning a.event_id)
        select touched || array_agg(g.event_id) into touched from gone g;
        with gone as (
            update outbox.kept_attempts a set response_body = null, response_headers = null
            where a.event_id = any (ids) and (a.response_body is not null or a.response_headers is not null)
            returning a.event_id)
        select touched || array_agg(g.event_id) into touched from gone g;
        with gone as (
            update outbox.late_results a set response_body = null, response_headers = null
            where a.event_id = any (ids) and (a.response_body is not null or a.response_headers is not null)
            returning a.event_id)
        select touched || array_agg(g.event_id) into touched from gone g;
        delete from outbox.filter_failures f where f.event_id = any (ids);
        erased := erased + (select count(distinct t.event_id) from unnest(touched) as t (event_id));
    end loop;
    return erased;
end
$$;
comment on function outbox.erase_events(uuid[]) is
    'Replaces the payloads of these events, empties the answers of their attempts, forgets their ordering and idempotency keys, cancels their pending deliveries; returns how many events had something to erase.';

create or replace function outbox.record_erasure(workspace_id text, reason text, matched uuid[], how text) returns bigint
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    erased bigint;
begin
    if coalesce(trim(record_erasure.reason), '') = '' then
        raise exception 'cannot erase: no reason was given'
            using errcode = 'OB011', hint = 'Give a reason without personal data, such as the number of the request.';
    end if;
    erased := outbox.erase_events(matched);
    -- Neither the ids nor the path are recorded: a path such as $.email == "…" is what was to be erased.
    insert into outbox.operations (kind, workspace_id, parameters, affected, reason)
    values ('erase', record_erasure.workspace_id, jsonb_build_object('by', how), erased, record_erasure.reason);
    return erased;
end
$$;
comment on function outbox.record_erasure(text, text, uuid[], text) is 'Erases and records that, why and by whom.';

create or replace function outbox.erase(workspace_id text, path jsonpath, reason text) returns bigint
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
begin
    if erase.path::text ~ '^(strict )?\$' then  -- a predicate is printed in brackets, or begins with ! or exists
        raise exception 'cannot erase: the path is no predicate, so it is true for no event'
            using errcode = 'OB011', hint = 'Say which: $.customer.id == "c_1", not $.customer.id.';
    end if;
    return outbox.record_erasure(erase.workspace_id, erase.reason, array(
        select e.event_id from outbox.known_events e
        where e.workspace_id = erase.workspace_id and e.payload @@ erase.path), 'path');
end
$$;
comment on function outbox.erase(text, jsonpath, text) is
    'Erases the events of a workspace whose payload matches a jsonpath predicate such as $.customer.id == "c_1"; returns how many. Receivers keep what they were sent.';

create or replace function outbox.erase(event_ids uuid[], reason text) returns bigint
language sql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
    select outbox.record_erasure(
        (select case when count(distinct e.workspace_id) = 1 then min(e.workspace_id) end
         from outbox.known_events e where e.event_id = any (erase.event_ids)),
        erase.reason, erase.event_ids, 'event ids')
$$;
comment on function outbox.erase(uuid[], text) is 'Erases these events; returns how many.';
