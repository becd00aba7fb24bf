-- Attempts: append-only, one row for every request, by partition of the event id.

create table outbox.recorded_attempts (
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
    response_headers  jsonb,
    response_body     bytea,
    primary key (event_id, endpoint_id, attempt_no, workspace_id)
) partition by range (event_id);
create index recorded_attempts_failed_idx on outbox.recorded_attempts (endpoint_id, started_at)
    where status is null or status < 200 or status > 299;
create index recorded_attempts_started_idx on outbox.recorded_attempts using brin (started_at) with (autosummarize = on);

create table outbox.kept_attempts (like outbox.recorded_attempts including defaults including constraints,
    primary key (event_id, endpoint_id, attempt_no, workspace_id));
create index kept_attempts_failed_idx on outbox.kept_attempts (endpoint_id, started_at)
    where status is null or status < 200 or status > 299;

create table outbox.late_results (like outbox.recorded_attempts including defaults,
    lease_token  uuid not null,
    recorded_at  timestamptz not null default clock_timestamp());
create index late_results_event_idx on outbox.late_results (event_id, endpoint_id);
create index late_results_recorded_idx on outbox.late_results (recorded_at);

do $$
declare
    kind text;
begin
    foreach kind in array array['recorded_attempts', 'kept_attempts', 'late_results'] loop
        execute format('comment on column outbox.%I.event_id is ''The event.''', kind);
        execute format('comment on column outbox.%I.endpoint_id is ''The endpoint.''', kind);
        execute format('comment on column outbox.%I.attempt_no is ''Number of the attempt, from 1, over all replays.''', kind);
        execute format('comment on column outbox.%I.workspace_id is ''The tenant.''', kind);
        execute format('comment on column outbox.%I.endpoint_version is ''Version of the endpoint the request was made with (endpoint_versions).''', kind);
        execute format('comment on column outbox.%I.started_at is ''When the request began, by the database clock; the webhook-timestamp.''', kind);
        execute format('comment on column outbox.%I.duration_ms is ''Whole exchange in milliseconds.''', kind);
        execute format('comment on column outbox.%I.worker_no is ''Worker that made the request (outbox.workers).''', kind);
        execute format('comment on column outbox.%I.status is ''HTTP status; null when none arrived.''', kind);
        execute format('comment on column outbox.%I.error is ''Why there is no status, or why the status is a failure.''', kind);
        execute format('comment on column outbox.%I.response_headers is ''Response headers, bounded.''', kind);
        execute format('comment on column outbox.%I.response_body is ''First bytes of the response body, as received.''', kind);
    end loop;
end
$$;
comment on table outbox.recorded_attempts is 'One row for every HTTP request. The view outbox.attempts adds the request itself.';
comment on table outbox.kept_attempts is 'Attempts of the kept dead letters, older than their partition.';
comment on table outbox.late_results is 'Results of requests whose lease was no longer current: kept as evidence, they change nothing.';
comment on column outbox.late_results.lease_token is 'Token the late settlement named.';
comment on column outbox.late_results.recorded_at is 'When it arrived.';

create table outbox.lost_leases (
    event_id      uuid not null,
    endpoint_id   uuid not null,
    workspace_id  text not null,
    attempt_no    integer not null,
    lease_token   uuid not null,
    worker_no     integer,
    expired_at    timestamptz not null,
    recorded_at   timestamptz not null default clock_timestamp()
);
create index lost_leases_event_idx on outbox.lost_leases (event_id, endpoint_id);
create index lost_leases_recorded_idx on outbox.lost_leases (recorded_at);
comment on table outbox.lost_leases is 'Leases that expired unsettled: the request may or may not have been made. Not counted as attempts.';
comment on column outbox.lost_leases.event_id is 'The event.';
comment on column outbox.lost_leases.endpoint_id is 'The endpoint.';
comment on column outbox.lost_leases.workspace_id is 'The tenant.';
comment on column outbox.lost_leases.attempt_no is 'Number the attempt would have had.';
comment on column outbox.lost_leases.lease_token is 'Token of the lost lease.';
comment on column outbox.lost_leases.worker_no is 'Worker that held it.';
comment on column outbox.lost_leases.expired_at is 'When the lease ended.';
comment on column outbox.lost_leases.recorded_at is 'When it was found.';

create table outbox.filter_failures (
    event_id      uuid not null,
    endpoint_id   uuid not null,
    workspace_id  text not null,
    error         text not null,
    created_at    timestamptz not null default clock_timestamp()
);
create index filter_failures_event_idx on outbox.filter_failures (event_id);
create index filter_failures_created_idx on outbox.filter_failures (created_at);
comment on table outbox.filter_failures is 'Filters that raised an error on an event: the event was not delivered to that endpoint.';
comment on column outbox.filter_failures.event_id is 'The event.';
comment on column outbox.filter_failures.endpoint_id is 'The endpoint whose filter failed.';
comment on column outbox.filter_failures.workspace_id is 'The tenant.';
comment on column outbox.filter_failures.error is 'What PostgreSQL said.';
comment on column outbox.filter_failures.created_at is 'When it failed.';
