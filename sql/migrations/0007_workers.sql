-- Workers, the shards they own, what they report, and what people asked for.

create table outbox.worker_processes (
    worker_no   integer generated always as identity primary key,
    name        text not null,
    version     text not null,
    started_at  timestamptz not null default clock_timestamp(),
    seen_at     timestamptz not null default clock_timestamp(),
    expires_at  timestamptz not null,
    stopped_at  timestamptz,
    in_flight   integer not null default 0,
    capacity    integer not null
) with (fillfactor = 50);
create index worker_processes_live_idx on outbox.worker_processes (worker_no) where stopped_at is null;
comment on table outbox.worker_processes is 'One row for every worker process that ever ran; a live one renews expires_at.';
comment on column outbox.worker_processes.worker_no is 'Number of the process; never used twice.';
comment on column outbox.worker_processes.name is 'Host and process id.';
comment on column outbox.worker_processes.version is 'Release of outbox-worker.';
comment on column outbox.worker_processes.started_at is 'When it started.';
comment on column outbox.worker_processes.seen_at is 'When it last renewed.';
comment on column outbox.worker_processes.expires_at is 'Until then its shards are its own.';
comment on column outbox.worker_processes.stopped_at is 'When it stopped in order, or was found expired.';
comment on column outbox.worker_processes.in_flight is 'Requests in flight at the last renewal.';
comment on column outbox.worker_processes.capacity is 'Most requests at once.';

create table outbox.shards (
    shard      smallint primary key check (shard between 0 and 63),
    worker_no  integer
) with (fillfactor = 50);
insert into outbox.shards (shard) select generate_series(0, 63);
comment on table outbox.shards is 'Which worker owns which 64th of the endpoints: limits, circuits and rates are enforced by the owner.';
comment on column outbox.shards.shard is 'Number of the shard (endpoints.shard).';
comment on column outbox.shards.worker_no is 'Owner; null when nobody owns it.';

create table outbox.endpoint_minutes (
    endpoint_id    uuid not null,
    workspace_id   text not null,
    at             timestamptz not null default clock_timestamp(),
    worker_no      integer not null,
    attempts       integer not null,
    successes      integer not null,
    timeouts       integer not null,
    latency_counts integer[] not null,
    in_flight      integer not null,
    in_flight_limit integer not null,
    circuit        text not null check (circuit in ('closed', 'open', 'half_open')),
    waits_for      text
);
create index endpoint_minutes_endpoint_idx on outbox.endpoint_minutes (endpoint_id, at);
create index endpoint_minutes_at_idx on outbox.endpoint_minutes (at);
comment on table outbox.endpoint_minutes is 'Append-only rollups that the owner of an endpoint writes once a minute while it is active, and at once when its circuit changes.';
comment on column outbox.endpoint_minutes.endpoint_id is 'The endpoint.';
comment on column outbox.endpoint_minutes.workspace_id is 'The tenant.';
comment on column outbox.endpoint_minutes.at is 'End of the period reported.';
comment on column outbox.endpoint_minutes.worker_no is 'Who reports.';
comment on column outbox.endpoint_minutes.attempts is 'Attempts in the period.';
comment on column outbox.endpoint_minutes.successes is 'Of these, answered with 2xx.';
comment on column outbox.endpoint_minutes.timeouts is 'Of these, timeouts and connection failures.';
comment on column outbox.endpoint_minutes.latency_counts is 'Attempts by duration: up to 1, 2, 4 … 32768 ms, then longer.';
comment on column outbox.endpoint_minutes.in_flight is 'Requests in flight at the end of the period.';
comment on column outbox.endpoint_minutes.in_flight_limit is 'Most requests at once, as adapted.';
comment on column outbox.endpoint_minutes.circuit is 'closed, open or half_open.';
comment on column outbox.endpoint_minutes.waits_for is 'What due deliveries wait for: slots, rate, circuit, suspects; null when nothing waits.';

create table outbox.operations (
    operation_id  uuid primary key default outbox.uuid7(),
    kind          text not null check (kind in ('replay', 'cancel', 'erase')),
    workspace_id  text,
    event_id      uuid,
    endpoint_id   uuid,
    parameters    jsonb not null default '{}',
    affected      bigint not null default 0,
    state         text not null default 'done' check (state in ('running', 'done', 'canceled')),
    reason        text,
    requested_by  text not null default session_user,
    created_at    timestamptz not null default clock_timestamp()
);
create index operations_event_idx on outbox.operations (event_id) where event_id is not null;
create index operations_created_idx on outbox.operations (created_at);
comment on table outbox.operations is 'What people did to deliveries: replays, cancellations, erasures, with who, when and why.';
comment on column outbox.operations.operation_id is 'Identifier, time-ordered.';
comment on column outbox.operations.kind is 'replay, cancel or erase.';
comment on column outbox.operations.workspace_id is 'The tenant, when only one is touched.';
comment on column outbox.operations.event_id is 'The event, when only one is touched.';
comment on column outbox.operations.endpoint_id is 'The endpoint, when only one is touched.';
comment on column outbox.operations.parameters is 'What else was asked for.';
comment on column outbox.operations.affected is 'Deliveries touched.';
comment on column outbox.operations.state is 'running while workers carry it on in slices.';
comment on column outbox.operations.reason is 'Why, in the words of who asked (set outbox.reason).';
comment on column outbox.operations.requested_by is 'Login role.';
comment on column outbox.operations.created_at is 'When.';

create table outbox.partition_registry (
    parent       text not null,
    name         text not null,
    lower_bound  timestamptz not null,
    upper_bound  timestamptz not null,
    dropped_at   timestamptz,
    last_error   text,
    primary key (parent, lower_bound)
);
comment on table outbox.partition_registry is 'Partitions made and dropped; the view outbox.partitions shows them with sizes.';
comment on column outbox.partition_registry.parent is 'Partitioned table.';
comment on column outbox.partition_registry.name is 'Partition.';
comment on column outbox.partition_registry.lower_bound is 'First moment of its event ids.';
comment on column outbox.partition_registry.upper_bound is 'First moment after its event ids.';
comment on column outbox.partition_registry.dropped_at is 'When it was dropped.';
comment on column outbox.partition_registry.last_error is 'Why the last attempt to drop it did not succeed.';

create table outbox.tenant_logins (
    login_role    text not null,
    workspace_id  text not null,
    primary key (login_role, workspace_id)
);
comment on table outbox.tenant_logins is 'Which login role with outbox_tenant sees which workspaces. Only the owner writes it.';
comment on column outbox.tenant_logins.login_role is 'The login role (session_user).';
comment on column outbox.tenant_logins.workspace_id is 'A workspace it may see.';
