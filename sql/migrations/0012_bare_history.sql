-- Payloads and responses may go before the facts: an event without its payload and an attempt without its response
-- lie in tables of their own, so that what held them is emptied by TRUNCATE, and they are dropped like the others.

alter table outbox.settings
    add column payload_retention interval check (payload_retention >= '3 days'),
    add column response_retention interval check (response_retention >= '3 days');
comment on column outbox.settings.payload_retention is
    'Age at which payloads go while the facts of their events stay; null: with the events (event_retention). Those of pending deliveries and dead letters stay.';
comment on column outbox.settings.response_retention is
    'Age at which response headers and bodies go while the facts of their attempts stay; null: with the attempts (attempt_retention). Those of dead letters stay.';

alter table outbox.partition_registry
    add column stripped_to uuid,
    add column stripped_at timestamptz;
comment on column outbox.partition_registry.stripped_to is 'Up to this event id its payloads or responses are gone; null before the first slice and after the last.';
comment on column outbox.partition_registry.stripped_at is 'When it was first emptied of its payloads or responses.';

create table outbox.bare_events (
    event_id         uuid not null,
    workspace_id     text not null,
    event_type       text not null,
    payload          jsonb check (payload is null),
    priority         smallint not null,
    deliver_at       timestamptz,
    traceparent      text,
    created_at       timestamptz not null,
    payload_gone_at  timestamptz not null default now(),
    primary key (event_id, workspace_id)
) partition by range (event_id);
create index bare_events_workspace_idx on outbox.bare_events (workspace_id, event_id);
-- Always empty: it answers every condition on a payload with nothing, so that none scans the table.
create index bare_events_payload_idx on outbox.bare_events (event_id) where payload is not null;
comment on table outbox.bare_events is 'Events whose payload is older than settings.payload_retention: their facts, but not the ordering key, which may name a person. They cannot be replayed.';

create table outbox.bare_attempts (
    event_id          uuid not null,
    endpoint_id       uuid not null,
    attempt_no        integer not null,
    workspace_id      text not null,
    endpoint_version  integer not null,
    started_at        timestamptz not null,
    duration_ms       integer not null,
    worker_no         integer not null,
    status            smallint,
    error             text,
    response_gone_at  timestamptz not null default now(),
    primary key (event_id, endpoint_id, attempt_no, workspace_id)
) partition by range (event_id);
create index bare_attempts_failed_idx on outbox.bare_attempts (endpoint_id, started_at)
    where status is null or status < 200 or status > 299;
create index bare_attempts_started_idx on outbox.bare_attempts using brin (started_at) with (autosummarize = on);
comment on table outbox.bare_attempts is 'Attempts whose response is older than settings.response_retention: their facts.';

do $$
declare
    one record;
begin
    for one in select a.attrelid::regclass as name, a.attname from pg_catalog.pg_attribute a
               where a.attrelid in ('outbox.bare_events'::regclass, 'outbox.bare_attempts'::regclass) and a.attnum > 0 loop
        execute format('comment on column %s.%I is %L', one.name, one.attname,
            case one.attname when 'payload' then 'Always null.' when 'payload_gone_at' then 'When the payload went.' when 'response_gone_at' then 'When the response went.'
                             else 'As in outbox.' || case one.name::text when 'outbox.bare_events' then 'events.' else 'recorded_attempts.' end end);
    end loop;
end
$$;
