-- Deliveries: open work in one narrow unpartitioned table, finished ones by partition.

create table outbox.open_deliveries (
    event_id          uuid not null,
    endpoint_id       uuid not null,
    workspace_id      text not null,
    priority          smallint not null,
    next_attempt_at   timestamptz not null,
    attempt_count     integer not null default 0,
    failed_count      smallint not null default 0,
    lost_count        smallint not null default 0,
    replay_count      smallint not null default 0,
    last_status       smallint,
    leased_by         integer,
    lease_token       uuid,
    lease_expires_at  timestamptz,
    last_error        text,
    ordering_key      text,
    ordering_seq      bigint,
    created_at        timestamptz not null default clock_timestamp(),
    primary key (event_id, endpoint_id, workspace_id),
    check ((ordering_key is null) = (ordering_seq is null))
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
-- The lease columns stay out of every index and predicate, so that a claim is a HOT update.
create index open_deliveries_due_idx on outbox.open_deliveries (endpoint_id, priority, (ordering_key is null), next_attempt_at);
create index open_deliveries_ordered_idx on outbox.open_deliveries (endpoint_id, ordering_key, ordering_seq) where ordering_key is not null;

comment on table outbox.open_deliveries is 'Deliveries still owed. The view outbox.deliveries shows them together with the finished ones.';
comment on column outbox.open_deliveries.event_id is 'The event.';
comment on column outbox.open_deliveries.endpoint_id is 'The endpoint.';
comment on column outbox.open_deliveries.workspace_id is 'The tenant.';
comment on column outbox.open_deliveries.priority is '0 urgent, 1 normal, 2 bulk.';
comment on column outbox.open_deliveries.next_attempt_at is 'Due from this moment on.';
comment on column outbox.open_deliveries.attempt_count is 'Attempts made, over all replays; numbers the next one.';
comment on column outbox.open_deliveries.failed_count is 'Failed attempts since the last replay: the place in the retry schedule.';
comment on column outbox.open_deliveries.lost_count is 'Lost leases since the last replay.';
comment on column outbox.open_deliveries.replay_count is 'How often the delivery was replayed.';
comment on column outbox.open_deliveries.last_status is 'HTTP status of the last attempt; null when it got none.';
comment on column outbox.open_deliveries.leased_by is 'Worker that holds or last held the lease (outbox.workers).';
comment on column outbox.open_deliveries.lease_token is 'Fencing value of the last lease: only a settlement that names it is applied.';
comment on column outbox.open_deliveries.lease_expires_at is 'End of the lease; null when nobody holds one.';
comment on column outbox.open_deliveries.last_error is 'Why the last attempt failed.';
comment on column outbox.open_deliveries.ordering_key is 'Set only for ordered endpoints: deliveries of one key go one at a time.';
comment on column outbox.open_deliveries.ordering_seq is 'Order within the key: fan_out_queue.seq of the event.';
comment on column outbox.open_deliveries.created_at is 'When the event was fanned out to this endpoint.';

create table outbox.finished_deliveries (
    event_id       uuid not null,
    endpoint_id    uuid not null,
    workspace_id   text not null,
    state          text not null check (state in ('delivered', 'dead', 'canceled')),
    reason         text,
    priority       smallint not null,
    attempt_count  integer not null,
    failed_count   smallint not null,
    lost_count     smallint not null,
    replay_count   smallint not null,
    last_status    smallint,
    last_error     text,
    next_attempt_at timestamptz not null,
    ordering_key   text,
    ordering_seq   bigint,
    created_at     timestamptz not null,
    finished_at    timestamptz not null default clock_timestamp(),
    primary key (event_id, endpoint_id, workspace_id)
) partition by range (event_id);
create index finished_deliveries_endpoint_idx on outbox.finished_deliveries (endpoint_id, event_id);
create index finished_deliveries_dead_idx on outbox.finished_deliveries (endpoint_id, finished_at) where state = 'dead';

-- Dead letters that outlive their partition, with their event and attempts: same columns, no partitions.
create table outbox.kept_deliveries (like outbox.finished_deliveries including defaults including constraints,
    primary key (event_id, endpoint_id, workspace_id));
create index kept_deliveries_endpoint_idx on outbox.kept_deliveries (endpoint_id, event_id);
create table outbox.kept_events (like outbox.events including defaults including constraints,
    primary key (event_id, workspace_id));
create index kept_events_workspace_idx on outbox.kept_events (workspace_id, event_id);

do $$
declare
    kind text;
begin
    foreach kind in array array['finished_deliveries', 'kept_deliveries'] loop
        execute format('comment on column outbox.%I.event_id is ''The event.''', kind);
        execute format('comment on column outbox.%I.endpoint_id is ''The endpoint.''', kind);
        execute format('comment on column outbox.%I.workspace_id is ''The tenant.''', kind);
        execute format('comment on column outbox.%I.state is ''delivered, dead or canceled.''', kind);
        execute format('comment on column outbox.%I.reason is ''Why it is dead (exhausted, gone, crash_loop) or canceled.''', kind);
        execute format('comment on column outbox.%I.priority is ''0 urgent, 1 normal, 2 bulk.''', kind);
        execute format('comment on column outbox.%I.attempt_count is ''Attempts made, over all replays.''', kind);
        execute format('comment on column outbox.%I.failed_count is ''Failed attempts since the last replay.''', kind);
        execute format('comment on column outbox.%I.lost_count is ''Lost leases since the last replay.''', kind);
        execute format('comment on column outbox.%I.replay_count is ''How often the delivery was replayed.''', kind);
        execute format('comment on column outbox.%I.last_status is ''HTTP status of the last attempt.''', kind);
        execute format('comment on column outbox.%I.last_error is ''Why the last attempt failed.''', kind);
        execute format('comment on column outbox.%I.next_attempt_at is ''When the last attempt was due.''', kind);
        execute format('comment on column outbox.%I.ordering_key is ''Ordering key, for ordered endpoints.''', kind);
        execute format('comment on column outbox.%I.ordering_seq is ''Order within the key.''', kind);
        execute format('comment on column outbox.%I.created_at is ''When the event was fanned out to this endpoint.''', kind);
        execute format('comment on column outbox.%I.finished_at is ''When the delivery reached its final state.''', kind);
    end loop;
    for kind in select attname from pg_catalog.pg_attribute
                 where attrelid = 'outbox.kept_events'::regclass and attnum > 0 loop
        execute format('comment on column outbox.kept_events.%I is ''As in outbox.events.''', kind);
    end loop;
end
$$;
comment on table outbox.finished_deliveries is 'Deliveries that reached a final state, by partition of the event id.';
comment on table outbox.kept_deliveries is 'Dead letters older than their partition; searchable and replayable like any other.';
comment on table outbox.kept_events is 'Events of the kept dead letters, older than their partition.';
