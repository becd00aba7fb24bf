-- Events: written in the producer's transaction, immutable, partitioned by their time-ordered id.

create table outbox.events (
    event_id      uuid not null default outbox.uuid7(),
    workspace_id  text not null check (length(workspace_id) between 1 and 200),
    event_type    text not null,
    payload       jsonb not null,
    ordering_key  text check (length(ordering_key) between 1 and 200),
    priority      smallint not null default 1 check (priority between 0 and 2),
    deliver_at    timestamptz,
    traceparent   text check (traceparent ~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$'),
    created_at    timestamptz not null default clock_timestamp(),
    primary key (event_id, workspace_id)
) partition by range (event_id);
create index events_workspace_idx on outbox.events (workspace_id, event_id);

comment on table outbox.events is 'Facts recorded in the producer''s transaction; immutable. INSERT and COPY are as good as outbox.publish.';
comment on column outbox.events.event_id is 'Time-ordered UUID from the default; also the webhook-id. The app may not write it.';
comment on column outbox.events.workspace_id is 'The tenant the event belongs to.';
comment on column outbox.events.event_type is 'A name in outbox.event_types.';
comment on column outbox.events.payload is 'A JSON object with the full context.';
comment on column outbox.events.ordering_key is 'Events of one key go to ordered endpoints one at a time, in order.';
comment on column outbox.events.priority is '0 urgent, 1 normal, 2 bulk.';
comment on column outbox.events.deliver_at is 'Not before this moment; null is now.';
comment on column outbox.events.traceparent is 'W3C trace context, passed on to the receiver.';
comment on column outbox.events.created_at is 'When the event was recorded; the timestamp that receivers see.';

create table outbox.fan_out_queue (
    seq           bigint generated always as identity primary key,
    bucket        smallint not null,
    priority      smallint not null,
    event_id      uuid not null,
    workspace_id  text not null,
    ordering_key  text
) with (fillfactor = 100, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
create index fan_out_queue_fair_idx on outbox.fan_out_queue (priority, bucket, seq);
create index fan_out_queue_ordering_idx on outbox.fan_out_queue (workspace_id, ordering_key, seq) where ordering_key is not null;

comment on table outbox.fan_out_queue is 'Events not fanned out yet, one skinny row each; the fan-out deletes it.';
comment on column outbox.fan_out_queue.seq is 'Order of publishing; commits out of order.';
comment on column outbox.fan_out_queue.bucket is 'Hash of the workspace into 256: the fan-out goes round them.';
comment on column outbox.fan_out_queue.priority is 'The event''s priority.';
comment on column outbox.fan_out_queue.event_id is 'The event.';
comment on column outbox.fan_out_queue.workspace_id is 'The tenant the event belongs to.';
comment on column outbox.fan_out_queue.ordering_key is 'The event''s ordering key.';

create table outbox.idempotency_keys (
    workspace_id     text not null,
    idempotency_key  text not null check (length(idempotency_key) between 1 and 200),
    event_id         uuid not null,
    fingerprint      bytea not null,
    created_at       timestamptz not null default now(),
    primary key (workspace_id, idempotency_key)
);
create index idempotency_keys_created_idx on outbox.idempotency_keys (created_at);
comment on table outbox.idempotency_keys is 'Keys given to outbox.publish: the same key and content return the first event id and store nothing.';
comment on column outbox.idempotency_keys.workspace_id is 'Keys are unique in a workspace.';
comment on column outbox.idempotency_keys.idempotency_key is 'The caller''s key.';
comment on column outbox.idempotency_keys.event_id is 'The event that the key stands for.';
comment on column outbox.idempotency_keys.fingerprint is 'SHA-256 of event type and payload.';
comment on column outbox.idempotency_keys.created_at is 'When the key was first used; forgotten after settings.idempotency_retention.';
