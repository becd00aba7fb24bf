-- Grants: every verb and, where it can be, every column by name. What is not here is the owner's alone.
-- outbox.erase is the owner's too: what it does cannot be undone.
-- All of it is taken back first, so that a grant removed here is gone after the next migrate. tests/sql/privileges.golden.txt
-- is what comes of it.

-- Only this form, for the role as a whole, has an effect: with `in schema` nothing is revoked.
alter default privileges for role outbox_owner revoke execute on functions from public;

do $$
declare
    everyone constant text := 'public, outbox_app, outbox_worker, outbox_operator, outbox_reader, outbox_secrets, outbox_tenant';
    one record;
begin
    execute 'revoke all on schema outbox from ' || everyone;
    for one in select c.oid::regclass as name, c.relkind = 'S' as is_sequence from pg_catalog.pg_class c
               where c.relnamespace = 'outbox'::regnamespace and c.relowner = 'outbox_owner'::regrole
                 and c.relkind in ('r', 'p', 'v', 'S') and not c.relispartition loop
        execute format('revoke all on %s %s from %s', case when one.is_sequence then 'sequence' else 'table' end, one.name, everyone);
    end loop;
    for one in select p.oid::regprocedure as name from pg_catalog.pg_proc p
               where p.pronamespace = 'outbox'::regnamespace and p.proowner = 'outbox_owner'::regrole loop
        execute format('revoke all on routine %s from %s', one.name, everyone);
    end loop;
end
$$;

grant usage on schema outbox to outbox_app, outbox_worker, outbox_operator, outbox_reader, outbox_tenant;

-- The app publishes and keeps endpoints; it reads no history and writes no id.
grant select on outbox.event_types to outbox_app;
grant insert (workspace_id, event_type, payload, ordering_key, priority, deliver_at, traceparent) on outbox.events to outbox_app;
grant select (endpoint_id, workspace_id, url, event_types, description, filter, ordered, max_in_flight, max_per_second, timeout,
              retry_schedule, header_names, state, state_reason) on outbox.endpoints to outbox_app;
grant execute on function
    outbox.uuid7, outbox.publish, outbox.publish_many, outbox.register_event_type, outbox.send_test_event,
    outbox.create_endpoint, outbox.update_endpoint, outbox.set_endpoint_headers, outbox.rotate_secret,
    outbox.pause_endpoint, outbox.resume_endpoint, outbox.delete_endpoint
    to outbox_app;

-- Readers and operators see everything but secrets, sealed or not, and the path and query of a URL.
grant select on
    outbox.event_types, outbox.events, outbox.deliveries, outbox.attempts, outbox.settings,
    outbox.event_log, outbox.delivery_log, outbox.attempt_log, outbox.dead_letters, outbox.lost_lease_log, outbox.operation_log,
    outbox.endpoint_health, outbox.backlog, outbox.fan_out_backlog, outbox.workers, outbox.partitions, outbox.latency_by_hour,
    outbox.endpoint_minutes, outbox.filter_failures, outbox.set_aside_events, outbox.canceled_events, outbox.operation_events, outbox.schema_migrations, outbox.schema_definitions
    to outbox_reader, outbox_operator;
grant select (endpoint_id, workspace_id, event_types, description, filter, ordered, max_in_flight, max_per_second, timeout,
              retry_schedule, header_names, state, state_reason, state_changed_at, hold_reason, filter_error, failing_since,
              failing_noticed, version, sealed_at, shard, created_at, updated_at) on outbox.endpoints to outbox_reader, outbox_operator;
grant select (endpoint_id, workspace_id, version, event_types, filter, header_names, signature_header, changed_by, created_at)
    on outbox.endpoint_versions to outbox_reader, outbox_operator;
grant execute on function
    outbox.explain_delivery, outbox.event_id_floor, outbox.event_id_time, outbox.event_body, outbox.readable, outbox.shown_url,
    outbox.mask_url, outbox.sent_headers, outbox.hold_of, outbox.latency_percentile, outbox.pattern_matches,
    outbox.why_held, outbox.could_be_sent_twice
    to outbox_reader, outbox_operator;

-- Operators also replay, cancel, and change what an endpoint is; its state changes through functions, which record
-- who did it. Not by membership in outbox_reader: only a role's administrator can grant that, and the owner is none.
grant update (state, next_attempt_at) on outbox.deliveries to outbox_operator;
grant update (url, event_types, description, filter, ordered, max_in_flight, max_per_second, timeout, retry_schedule)
    on outbox.endpoints to outbox_operator;
grant execute on function
    outbox.replay, outbox.replay_many, outbox.replay_endpoint, outbox.count_replay, outbox.cancel, outbox.stop_operation,
    outbox.pause_endpoint, outbox.resume_endpoint, outbox.delete_endpoint, outbox.hold_restored, outbox.release_restored
    to outbox_operator;

-- The worker: what the statements in sql/queries need, and no more. History is written, never changed.
grant select on
    outbox.event_types, outbox.endpoints, outbox.endpoint_vault, outbox.settings, outbox.events, outbox.kept_events,
    outbox.canceled_events, outbox.fan_out_queue, outbox.open_deliveries, outbox.worker_processes, outbox.shards,
    outbox.schema_migrations
    to outbox_worker;
grant select (key_id, public_key, active) on outbox.vault_keys to outbox_worker;
grant select (event_id, endpoint_id, attempt_no, started_at) on outbox.recorded_attempts to outbox_worker;
-- To lock a row needs UPDATE on a column of it; this one is `generated always` and takes no value.
grant delete, update (seq) on outbox.fan_out_queue to outbox_worker;
grant insert (workspace_id, event_type, payload, priority) on outbox.events to outbox_worker;
grant insert (event_id, endpoint_id, workspace_id, priority, next_attempt_at, leased_by, lease_token, lease_expires_at,
              ordering_key, ordering_seq),
      update (next_attempt_at, attempt_count, failed_count, lost_count, last_status, last_error, leased_by, lease_token,
              lease_expires_at),
      delete on outbox.open_deliveries to outbox_worker;
grant insert (event_id, endpoint_id, workspace_id, state, reason, priority, attempt_count, failed_count, lost_count, replay_count,
              last_status, last_error, next_attempt_at, ordering_key, ordering_seq, created_at)
    on outbox.finished_deliveries, outbox.kept_deliveries to outbox_worker;
grant insert (event_id, endpoint_id, attempt_no, workspace_id, endpoint_version, started_at, duration_ms, worker_no, status, error,
              response_headers, response_body)
    on outbox.recorded_attempts, outbox.kept_attempts to outbox_worker;
grant insert (event_id, endpoint_id, attempt_no, workspace_id, endpoint_version, started_at, duration_ms, worker_no, status, error,
              response_headers, response_body, lease_token)
    on outbox.late_results to outbox_worker;
grant insert (event_id, endpoint_id, workspace_id, attempt_no, lease_token, worker_no, expired_at)
    on outbox.lost_leases to outbox_worker;
grant insert (event_id, endpoint_id, workspace_id, error) on outbox.filter_failures to outbox_worker;
grant insert (endpoint_id, workspace_id, worker_no, attempts, successes, timeouts, latency_counts, in_flight, in_flight_limit,
              circuit, waits_for)
    on outbox.endpoint_minutes to outbox_worker;
grant insert (name, version, capacity, expires_at), update (seen_at, in_flight, expires_at, stopped_at)
    on outbox.worker_processes to outbox_worker;
grant update on outbox.shards to outbox_worker;  -- LOCK TABLE looks at the whole table's privilege
grant update (state, state_reason, failing_since, failing_noticed) on outbox.endpoints to outbox_worker;
grant execute on function
    outbox.uuid7, outbox.event_id_floor, outbox.event_body, outbox.url_origin, outbox.filter_outcome, outbox.history_floor,
    outbox.quarantine_filter, outbox.set_first_event_aside, outbox.hold_endpoint, outbox.replay_slice, outbox.cancel_slice,
    outbox.create_partitions, outbox.drop_partitions, outbox.strip_partitions, outbox.purge, outbox.partition_alarm,
    outbox.move_in, outbox.why_held
    to outbox_worker;

-- Tenants: their own views. outbox_secrets has nothing but its members.
grant select on outbox.tenant_events, outbox.tenant_endpoints, outbox.tenant_deliveries, outbox.tenant_attempts to outbox_tenant;
grant execute on function outbox.mask_url, outbox.event_body, outbox.sent_headers, outbox.event_id_floor to outbox_tenant;
