-- History: what bulk replays still have to do, and the indexes that slices, purges and alarms read by.

create table outbox.operation_events (
    operation_id  uuid not null,
    event_id      uuid not null,
    replayed_at   timestamptz,
    primary key (operation_id, event_id)
);
create index operation_events_event_idx on outbox.operation_events (event_id);
create index operation_events_left_idx on outbox.operation_events (operation_id, event_id) where replayed_at is null;
comment on table outbox.operation_events is 'Events that one operation was given by id: what is left of it, and which events it was about.';
comment on column outbox.operation_events.operation_id is 'The operation.';
comment on column outbox.operation_events.event_id is 'The event.';
comment on column outbox.operation_events.replayed_at is 'When its turn came; null while it is still to come.';

create index operations_running_idx on outbox.operations (created_at) where state = 'running';
create index operations_endpoint_idx on outbox.operations (endpoint_id, created_at) where endpoint_id is not null;
create index kept_deliveries_dead_idx on outbox.kept_deliveries (endpoint_id, finished_at) where state = 'dead';
create index kept_deliveries_finished_idx on outbox.kept_deliveries (finished_at);

alter table outbox.endpoints add column drained_at timestamptz;
comment on column outbox.endpoints.drained_at is 'When nothing was open any more, a week after its deletion: the workers no longer look for its deliveries.';
drop index outbox.endpoints_deleted_idx;
create index endpoints_deleted_idx on outbox.endpoints (state_changed_at) where state = 'deleted' and drained_at is null;
