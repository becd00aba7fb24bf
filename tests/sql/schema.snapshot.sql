-- The schema outbox as migrate leaves it: pg_dump --schema-only, without owners and privileges (privileges.golden.txt),
-- comments, the weekly partitions and the bodies of functions, which stand in sql/definitions word for word.
-- Made by: OUTBOX_WRITE_GOLDEN=1 .venv/bin/pytest tests/sql/test_schema_snapshot.py

CREATE SCHEMA outbox;

CREATE FUNCTION outbox.accept_event() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.cancel(event_id uuid, endpoint_id uuid DEFAULT NULL::uuid) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.cancel_slice(size integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.uuid7() RETURNS uuid
    LANGUAGE sql PARALLEL SAFE;

CREATE TABLE outbox.operations (
    operation_id uuid DEFAULT outbox.uuid7() NOT NULL,
    kind text NOT NULL,
    workspace_id text,
    event_id uuid,
    endpoint_id uuid,
    parameters jsonb DEFAULT '{}'::jsonb NOT NULL,
    affected bigint DEFAULT 0 NOT NULL,
    state text DEFAULT 'done'::text NOT NULL,
    reason text,
    requested_by text DEFAULT SESSION_USER NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT operations_kind_check CHECK ((kind = ANY (ARRAY['replay'::text, 'cancel'::text, 'erase'::text]))),
    CONSTRAINT operations_state_check CHECK ((state = ANY (ARRAY['running'::text, 'done'::text, 'canceled'::text])))
);

CREATE FUNCTION outbox.carry_on(operation outbox.operations, size integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.change_delivery() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp'
    SET plan_cache_mode TO 'force_generic_plan';

CREATE FUNCTION outbox.check_endpoint() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.close_open(event_ids uuid[], endpoint_ids uuid[], reason text, leased_too boolean) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp'
    SET plan_cache_mode TO 'force_generic_plan';

CREATE TABLE outbox.bare_events (
    event_id uuid NOT NULL,
    workspace_id text NOT NULL,
    event_type text NOT NULL,
    payload jsonb,
    priority smallint NOT NULL,
    deliver_at timestamp with time zone,
    traceparent text,
    created_at timestamp with time zone NOT NULL,
    payload_gone_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT bare_events_payload_check CHECK ((payload IS NULL))
)
PARTITION BY RANGE (event_id);

CREATE TABLE outbox.canceled_events (
    event_id uuid NOT NULL,
    workspace_id text NOT NULL,
    canceled_by text DEFAULT SESSION_USER NOT NULL,
    canceled_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE TABLE outbox.events (
    event_id uuid DEFAULT outbox.uuid7() NOT NULL,
    workspace_id text NOT NULL,
    event_type text NOT NULL,
    payload jsonb NOT NULL,
    ordering_key text,
    priority smallint DEFAULT 1 NOT NULL,
    deliver_at timestamp with time zone,
    traceparent text,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT events_ordering_key_check CHECK (((length(ordering_key) >= 1) AND (length(ordering_key) <= 200))),
    CONSTRAINT events_priority_check CHECK (((priority >= 0) AND (priority <= 2))),
    CONSTRAINT events_traceparent_check CHECK ((traceparent ~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$'::text)),
    CONSTRAINT events_workspace_id_check CHECK (((length(workspace_id) >= 1) AND (length(workspace_id) <= 200)))
)
PARTITION BY RANGE (event_id);

CREATE TABLE outbox.fan_out_queue (
    seq bigint NOT NULL,
    bucket smallint NOT NULL,
    priority smallint NOT NULL,
    event_id uuid NOT NULL,
    workspace_id text NOT NULL,
    ordering_key text
)
WITH (fillfactor='100', autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='1000', autovacuum_vacuum_cost_delay='0');

CREATE TABLE outbox.kept_events (
    event_id uuid DEFAULT outbox.uuid7() NOT NULL,
    workspace_id text NOT NULL,
    event_type text NOT NULL,
    payload jsonb NOT NULL,
    ordering_key text,
    priority smallint DEFAULT 1 NOT NULL,
    deliver_at timestamp with time zone,
    traceparent text,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT events_ordering_key_check CHECK (((length(ordering_key) >= 1) AND (length(ordering_key) <= 200))),
    CONSTRAINT events_priority_check CHECK (((priority >= 0) AND (priority <= 2))),
    CONSTRAINT events_traceparent_check CHECK ((traceparent ~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$'::text)),
    CONSTRAINT events_workspace_id_check CHECK (((length(workspace_id) >= 1) AND (length(workspace_id) <= 200)))
);

CREATE VIEW outbox.known_events AS
 SELECT events.event_id,
    events.workspace_id,
    events.event_type,
    events.payload,
    events.ordering_key,
    events.priority,
    events.deliver_at,
    events.traceparent,
    events.created_at,
    NULL::timestamp with time zone AS payload_gone_at
   FROM outbox.events
UNION ALL
 SELECT kept_events.event_id,
    kept_events.workspace_id,
    kept_events.event_type,
    kept_events.payload,
    kept_events.ordering_key,
    kept_events.priority,
    kept_events.deliver_at,
    kept_events.traceparent,
    kept_events.created_at,
    NULL::timestamp with time zone AS payload_gone_at
   FROM outbox.kept_events
UNION ALL
 SELECT bare_events.event_id,
    bare_events.workspace_id,
    bare_events.event_type,
    bare_events.payload,
    NULL::text AS ordering_key,
    bare_events.priority,
    bare_events.deliver_at,
    bare_events.traceparent,
    bare_events.created_at,
    bare_events.payload_gone_at
   FROM outbox.bare_events;

CREATE TABLE outbox.open_deliveries (
    event_id uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    workspace_id text NOT NULL,
    priority smallint NOT NULL,
    next_attempt_at timestamp with time zone NOT NULL,
    attempt_count integer DEFAULT 0 NOT NULL,
    failed_count smallint DEFAULT 0 NOT NULL,
    lost_count smallint DEFAULT 0 NOT NULL,
    replay_count smallint DEFAULT 0 NOT NULL,
    last_status smallint,
    leased_by integer,
    lease_token uuid,
    lease_expires_at timestamp with time zone,
    last_error text,
    ordering_key text,
    ordering_seq bigint,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT open_deliveries_check CHECK (((ordering_key IS NULL) = (ordering_seq IS NULL)))
)
WITH (autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='1000', autovacuum_vacuum_cost_delay='0', fillfactor='50');

CREATE FUNCTION outbox.could_be_sent_twice(until timestamp with time zone DEFAULT now()) RETURNS TABLE(event_id uuid, endpoint_id uuid, workspace_id text, event_type text, state text, attempt_count integer, next_attempt_at timestamp with time zone, created_at timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.count_replay(endpoint_id uuid, since timestamp with time zone, until timestamp with time zone DEFAULT now(), states text[] DEFAULT '{dead}'::text[]) RETURNS bigint
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.create_endpoint(workspace_id text, url text, event_types text[], description text DEFAULT ''::text, headers jsonb DEFAULT '{}'::jsonb, filter jsonpath DEFAULT NULL::jsonpath, ordered boolean DEFAULT false, max_in_flight integer DEFAULT NULL::integer, max_per_second numeric DEFAULT NULL::numeric, timeout interval DEFAULT NULL::interval, retry_schedule interval[] DEFAULT NULL::interval[]) RETURNS TABLE(endpoint_id uuid, secret text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.create_partitions() RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.delete_endpoint(endpoint_id uuid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.drop_partitions() RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp'
    SET lock_timeout TO '100ms';

CREATE TABLE outbox.endpoints (
    endpoint_id uuid DEFAULT outbox.uuid7() NOT NULL,
    workspace_id text NOT NULL,
    url text NOT NULL,
    event_types text[] NOT NULL,
    description text DEFAULT ''::text NOT NULL,
    filter jsonpath,
    ordered boolean DEFAULT false NOT NULL,
    max_in_flight integer,
    max_per_second numeric,
    timeout interval,
    retry_schedule interval[],
    header_names text[] DEFAULT '{}'::text[] NOT NULL,
    state text DEFAULT 'active'::text NOT NULL,
    state_reason text,
    state_changed_at timestamp with time zone DEFAULT now() NOT NULL,
    hold_reason text,
    filter_error text,
    failing_since timestamp with time zone,
    failing_noticed boolean DEFAULT false NOT NULL,
    version integer DEFAULT 1 NOT NULL,
    sealed_at timestamp with time zone DEFAULT now() NOT NULL,
    shard smallint GENERATED ALWAYS AS (((abs((hashtext((endpoint_id)::text))::bigint) % (64)::bigint))::smallint) STORED NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    drained_at timestamp with time zone,
    CONSTRAINT endpoints_description_check CHECK ((length(description) <= 2000)),
    CONSTRAINT endpoints_event_types_check CHECK (((cardinality(event_types) >= 1) AND (cardinality(event_types) <= 200))),
    CONSTRAINT endpoints_hold_reason_check CHECK ((hold_reason = ANY (ARRAY['origin_changed'::text, 'secret_unreadable'::text]))),
    CONSTRAINT endpoints_max_in_flight_check CHECK (((max_in_flight >= 1) AND (max_in_flight <= 10000))),
    CONSTRAINT endpoints_max_per_second_check CHECK (((max_per_second > (0)::numeric) AND (max_per_second <= (100000)::numeric))),
    CONSTRAINT endpoints_retry_schedule_check CHECK ((((cardinality(retry_schedule) >= 1) AND (cardinality(retry_schedule) <= 50)) AND ('00:00:00'::interval < ALL (retry_schedule)) AND ('30 days'::interval >= ALL (retry_schedule)))),
    CONSTRAINT endpoints_state_check CHECK ((state = ANY (ARRAY['active'::text, 'paused'::text, 'disabled'::text, 'deleted'::text]))),
    CONSTRAINT endpoints_timeout_check CHECK (((timeout >= '00:00:00.1'::interval) AND (timeout <= '00:01:00'::interval))),
    CONSTRAINT endpoints_workspace_id_check CHECK (((length(workspace_id) >= 1) AND (length(workspace_id) <= 200)))
)
WITH (fillfactor='80');

CREATE FUNCTION outbox.endpoint_of(endpoint_id uuid) RETURNS outbox.endpoints
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.endpoint_problem(endpoint outbox.endpoints) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE;

CREATE FUNCTION outbox.erase(event_ids uuid[], reason text) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.erase(workspace_id text, path jsonpath, reason text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.erase_events(event_ids uuid[]) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.event_body(event_id uuid, event_type text, created_at timestamp with time zone, workspace_id text, payload jsonb) RETURNS bytea
    LANGUAGE sql STABLE PARALLEL SAFE;

CREATE FUNCTION outbox.event_id_floor(at timestamp with time zone) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE;

CREATE FUNCTION outbox.event_id_time(event_id uuid) RETURNS timestamp with time zone
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE;

CREATE FUNCTION outbox.event_of(event_id uuid) RETURNS outbox.events
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.event_type_problem(name text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE;

CREATE FUNCTION outbox.explain_delivery(event_id uuid, endpoint_id uuid) RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.explain_missing(ev outbox.known_events, endpoint outbox.endpoints) RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.filter_outcome(payload jsonb, filter jsonpath) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp';

CREATE FUNCTION outbox.filter_problem(filter jsonpath) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp';

CREATE FUNCTION outbox.header_names(headers jsonb) RETURNS text[]
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp';

CREATE FUNCTION outbox.header_names_problem(names text[], signature_header text DEFAULT 'Edesy-Signature'::text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp';

CREATE FUNCTION outbox.header_problem(headers jsonb, signature_header text DEFAULT 'Edesy-Signature'::text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp';

CREATE TABLE outbox.home (
    only_row boolean DEFAULT true NOT NULL,
    system_identifier bigint NOT NULL,
    database_oid oid NOT NULL,
    timeline bigint NOT NULL,
    held_because text,
    reason text,
    changed_by text DEFAULT SESSION_USER NOT NULL,
    changed_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT home_only_row_check CHECK (only_row)
);

CREATE FUNCTION outbox.here() RETURNS outbox.home
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE TABLE outbox.partition_registry (
    parent text NOT NULL,
    name text NOT NULL,
    lower_bound timestamp with time zone NOT NULL,
    upper_bound timestamp with time zone NOT NULL,
    dropped_at timestamp with time zone,
    last_error text,
    stripped_to uuid,
    stripped_at timestamp with time zone
);

CREATE FUNCTION outbox.history_floor() RETURNS uuid
    LANGUAGE sql STABLE SECURITY DEFINER PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.hold_endpoint(endpoint_id uuid, version integer) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.hold_of(state text, state_reason text, hold_reason text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE;

CREATE FUNCTION outbox.hold_restored() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.host_problem(host text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp';

CREATE FUNCTION outbox.patterns_of(event_type text, operational boolean) RETURNS text[]
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE;

CREATE TABLE outbox.event_types (
    name text NOT NULL,
    description text NOT NULL,
    schema jsonb,
    example jsonb,
    operational boolean DEFAULT false NOT NULL,
    built_in boolean DEFAULT false NOT NULL,
    patterns text[] NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT event_types_description_check CHECK (((length(description) >= 1) AND (length(description) <= 2000))),
    CONSTRAINT event_types_example_check CHECK ((jsonb_typeof(example) = 'object'::text)),
    CONSTRAINT event_types_name_check CHECK (((length(name) <= 200) AND (name ~ '^[a-z0-9_]+(\.[a-z0-9_]+)+$'::text))),
    CONSTRAINT event_types_schema_check CHECK ((jsonb_typeof(schema) = 'object'::text))
);

CREATE FUNCTION outbox.install_event_types(types jsonb) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.install_vault_key(public_key bytea) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.is_international_label(label text) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp';

CREATE FUNCTION outbox.is_ipv4_literal(host text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE;

CREATE FUNCTION outbox.is_ipv6_literal(host text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE;

CREATE FUNCTION outbox.is_queued(event outbox.events) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.keep_event() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp';

CREATE FUNCTION outbox.latency_percentile(counts bigint[], fraction double precision) RETURNS integer
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE;

CREATE FUNCTION outbox.lock_endpoint(endpoint_id uuid) RETURNS outbox.endpoints
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.make_partition(parent text, lower_bound timestamp with time zone, upper_bound timestamp with time zone) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.mask_url(url text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE;

CREATE FUNCTION outbox.move_in() RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.move_kept(parent text, from_id uuid, to_id uuid, dead_since timestamp with time zone, size integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.new_secret() RETURNS text
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.open_new(event_ids uuid[], endpoint outbox.endpoints, new_priority smallint) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE TABLE outbox.settings (
    only_row boolean DEFAULT true NOT NULL,
    max_payload_bytes integer DEFAULT 262144 NOT NULL,
    max_delay interval DEFAULT '30 days'::interval NOT NULL,
    allowed_ports integer[] DEFAULT '{80,443,8080,8443}'::integer[] NOT NULL,
    allow_plain_http boolean DEFAULT false NOT NULL,
    allow_ip_literals boolean DEFAULT false NOT NULL,
    signature_header text DEFAULT 'Edesy-Signature'::text NOT NULL,
    idempotency_retention interval DEFAULT '7 days'::interval NOT NULL,
    partition_width interval DEFAULT '7 days'::interval NOT NULL,
    partitions_ahead interval DEFAULT '28 days'::interval NOT NULL,
    event_retention interval DEFAULT '90 days'::interval NOT NULL,
    delivery_retention interval DEFAULT '90 days'::interval NOT NULL,
    attempt_retention interval DEFAULT '90 days'::interval NOT NULL,
    dead_letter_retention interval DEFAULT '730 days'::interval NOT NULL,
    failing_notice_after interval DEFAULT '1 day'::interval NOT NULL,
    disable_after interval DEFAULT '5 days'::interval NOT NULL,
    ordered_skip_after interval DEFAULT '24:00:00'::interval NOT NULL,
    max_lost_leases integer DEFAULT 5 NOT NULL,
    payload_retention interval,
    response_retention interval,
    CONSTRAINT settings_allowed_ports_check CHECK ((((cardinality(allowed_ports) >= 1) AND (cardinality(allowed_ports) <= 100)) AND (1 <= ALL (allowed_ports)) AND (65535 >= ALL (allowed_ports)))),
    CONSTRAINT settings_attempt_retention_check CHECK ((attempt_retention >= '3 days'::interval)),
    CONSTRAINT settings_dead_letter_retention_check CHECK ((dead_letter_retention >= '3 days'::interval)),
    CONSTRAINT settings_delivery_retention_check CHECK ((delivery_retention >= '3 days'::interval)),
    CONSTRAINT settings_disable_after_check CHECK ((disable_after > '00:00:00'::interval)),
    CONSTRAINT settings_event_retention_check CHECK ((event_retention >= '3 days'::interval)),
    CONSTRAINT settings_failing_notice_after_check CHECK ((failing_notice_after > '00:00:00'::interval)),
    CONSTRAINT settings_idempotency_retention_check CHECK ((idempotency_retention >= '01:00:00'::interval)),
    CONSTRAINT settings_max_delay_check CHECK (((max_delay >= '00:00:00'::interval) AND (max_delay <= '365 days'::interval))),
    CONSTRAINT settings_max_lost_leases_check CHECK (((max_lost_leases >= 1) AND (max_lost_leases <= 100))),
    CONSTRAINT settings_max_payload_bytes_check CHECK (((max_payload_bytes >= 1024) AND (max_payload_bytes <= 16777216))),
    CONSTRAINT settings_only_row_check CHECK (only_row),
    CONSTRAINT settings_ordered_skip_after_check CHECK ((ordered_skip_after > '00:00:00'::interval)),
    CONSTRAINT settings_partition_width_check CHECK (((partition_width >= '01:00:00'::interval) AND (partition_width <= '31 days'::interval))),
    CONSTRAINT settings_partitions_ahead_check CHECK ((partitions_ahead >= '4 days'::interval)),
    CONSTRAINT settings_payload_retention_check CHECK ((payload_retention >= '3 days'::interval)),
    CONSTRAINT settings_response_retention_check CHECK ((response_retention >= '3 days'::interval)),
    CONSTRAINT settings_signature_header_check CHECK (((signature_header ~ '^[A-Za-z][A-Za-z0-9-]{0,62}$'::text) AND (lower(signature_header) !~ '^(webhook-.*|content-.*|proxy-.*|x-amz-.*|x-goog-.*|metadata.*|host|connection|transfer-encoding|upgrade|te|trailer|keep-alive|expect|http2-settings|user-agent|accept-encoding|cookie|authorization|traceparent|tracestate)$'::text)))
);

CREATE VIEW outbox.partitions AS
 SELECT r.parent,
    r.name,
    r.lower_bound,
    r.upper_bound,
    pg_total_relation_size((c.oid)::regclass) AS size_bytes,
    (GREATEST(c.reltuples, (0)::real))::bigint AS row_estimate,
        CASE
            WHEN (r.lower_bound > now()) THEN 'future'::text
            WHEN (r.upper_bound > now()) THEN 'current'::text
            WHEN (r.upper_bound > (now() - age.limit_of)) THEN 'past'::text
            WHEN (held.because IS NOT NULL) THEN 'held'::text
            ELSE 'expired'::text
        END AS state,
        CASE
            WHEN (r.upper_bound <= (now() - age.limit_of)) THEN held.because
            ELSE NULL::text
        END AS held_because,
    r.last_error,
    strip.due_at AS strip_due_at,
    r.stripped_at
   FROM (((((outbox.partition_registry r
     CROSS JOIN outbox.settings s)
     LEFT JOIN pg_class c ON (((c.relname = r.name) AND (c.relnamespace = ('outbox'::regnamespace)::oid))))
     CROSS JOIN LATERAL ( SELECT
                CASE
                    WHEN (r.parent = ANY (ARRAY['events'::text, 'bare_events'::text])) THEN s.event_retention
                    WHEN (r.parent = 'finished_deliveries'::text) THEN s.delivery_retention
                    ELSE s.attempt_retention
                END AS limit_of) age)
     CROSS JOIN LATERAL ( SELECT (r.upper_bound +
                CASE r.parent
                    WHEN 'events'::text THEN s.payload_retention
                    WHEN 'recorded_attempts'::text THEN s.response_retention
                    ELSE NULL::interval
                END) AS due_at) strip)
     LEFT JOIN LATERAL ( SELECT
                CASE
                    WHEN (EXISTS ( SELECT
                       FROM outbox.open_deliveries o
                      WHERE ((o.event_id >= outbox.event_id_floor(r.lower_bound)) AND (o.event_id < outbox.event_id_floor(r.upper_bound))))) THEN 'deliveries of its events are pending'::text
                    WHEN (( SELECT q.event_id
                       FROM outbox.fan_out_queue q
                      ORDER BY q.seq
                     LIMIT 1) < outbox.event_id_floor((r.upper_bound + '1 day'::interval))) THEN 'events of its time are not fanned out yet'::text
                    ELSE NULL::text
                END AS because
          WHERE (r.upper_bound <= (now() - age.limit_of))) held ON (true))
  WHERE (r.dropped_at IS NULL);

CREATE FUNCTION outbox.partition_alarm() RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.pattern_matches(pattern text, event_type text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE;

CREATE FUNCTION outbox.pattern_problem(pattern text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE;

CREATE FUNCTION outbox.pause_endpoint(endpoint_id uuid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.publish(workspace_id text, event_type text, payload jsonb, idempotency_key text DEFAULT NULL::text, ordering_key text DEFAULT NULL::text, priority smallint DEFAULT 1, deliver_at timestamp with time zone DEFAULT NULL::timestamp with time zone, traceparent text DEFAULT NULL::text) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.publish_many(workspace_id text, event_type text, payloads jsonb[], priority smallint DEFAULT 2) RETURNS SETOF uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.purge(size integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.quarantine_filter(endpoint_id uuid, error text) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.readable(content bytea) RETURNS text
    LANGUAGE plpgsql IMMUTABLE STRICT
    SET search_path TO 'pg_catalog', 'pg_temp';

CREATE FUNCTION outbox.record_endpoint_version() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.record_erasure(workspace_id text, reason text, matched uuid[], how text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.refuse_event(event outbox.events) RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.register_event_type(name text, description text, schema jsonb DEFAULT NULL::jsonb, example jsonb DEFAULT NULL::jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.release_restored(cancel_until timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.reopen(event_ids uuid[], endpoint_ids uuid[], states text[], new_priority smallint, due timestamp with time zone) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.replay(event_id uuid, endpoint_id uuid DEFAULT NULL::uuid) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.replay_candidates(target outbox.endpoints, since timestamp with time zone, until timestamp with time zone, state text, after_at timestamp with time zone, after_id uuid, size bigint) RETURNS TABLE(event_id uuid, at timestamp with time zone, wanted boolean)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.replay_endpoint(endpoint_id uuid, since timestamp with time zone, until timestamp with time zone DEFAULT now(), states text[] DEFAULT '{dead}'::text[]) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.replay_events(event_ids uuid[], endpoint_id uuid, new_priority smallint) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.replay_many(event_ids uuid[], endpoint_id uuid DEFAULT NULL::uuid) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.replay_slice(size integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp'
    SET lock_timeout TO '1s';

CREATE FUNCTION outbox.resume_endpoint(endpoint_id uuid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.rotate_secret(endpoint_id uuid, overlap interval DEFAULT '24:00:00'::interval) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.seal(workspace_id text, endpoint_id uuid, origin text, kind text, value jsonb) RETURNS bytea
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.seal_headers(endpoint outbox.endpoints, headers jsonb) RETURNS bytea
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.seal_secret(endpoint outbox.endpoints, secret text) RETURNS bytea
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.send_test_event(endpoint_id uuid) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.sent_headers(event_id uuid, attempt_no integer, started_at timestamp with time zone, traceparent text, signature_header text, header_names text[]) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE;

CREATE FUNCTION outbox.set_endpoint_headers(endpoint_id uuid, headers jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE TABLE outbox.set_aside_events (
    event_id uuid NOT NULL,
    workspace_id text NOT NULL,
    error text NOT NULL,
    set_aside_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE FUNCTION outbox.set_first_event_aside(error text) RETURNS uuid
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.shown_url(url text) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE;

CREATE FUNCTION outbox.stop_operation(operation_id uuid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.url_origin(url text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp';

CREATE TABLE outbox.endpoint_vault (
    endpoint_id uuid NOT NULL,
    workspace_id text NOT NULL,
    secret bytea NOT NULL,
    secret_origin text NOT NULL,
    previous_secret bytea,
    previous_expires_at timestamp with time zone,
    headers bytea,
    headers_origin text,
    CONSTRAINT endpoint_vault_check CHECK (((previous_secret IS NULL) = (previous_expires_at IS NULL))),
    CONSTRAINT endpoint_vault_check1 CHECK (((headers IS NULL) = (headers_origin IS NULL)))
);

CREATE FUNCTION outbox.store_headers(endpoint outbox.endpoints, sealed bytea, names text[]) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.strip_partitions(size integer DEFAULT 10000) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp'
    SET lock_timeout TO '100ms';

CREATE FUNCTION outbox.strip_slice(parent text, name text, after_id uuid, last_id uuid, young_from timestamp with time zone, dead_since timestamp with time zone) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.update_endpoint(endpoint_id uuid, url text DEFAULT NULL::text, event_types text[] DEFAULT NULL::text[], description text DEFAULT NULL::text, headers jsonb DEFAULT NULL::jsonb, filter jsonpath DEFAULT NULL::jsonpath, ordered boolean DEFAULT NULL::boolean, max_in_flight integer DEFAULT NULL::integer, max_per_second numeric DEFAULT NULL::numeric, timeout interval DEFAULT NULL::interval, retry_schedule interval[] DEFAULT NULL::interval[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.url_problem(url text, allowed_ports integer[], allow_plain_http boolean, allow_ip_literals boolean) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp';

CREATE FUNCTION outbox.wake_owners(endpoint_ids uuid[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.why_held() RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE FUNCTION outbox.without_payload(event_ids uuid[]) RETURNS uuid[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

CREATE TABLE outbox.bare_attempts (
    event_id uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    attempt_no integer NOT NULL,
    workspace_id text NOT NULL,
    endpoint_version integer NOT NULL,
    started_at timestamp with time zone NOT NULL,
    duration_ms integer NOT NULL,
    worker_no integer NOT NULL,
    status smallint,
    error text,
    response_gone_at timestamp with time zone DEFAULT now() NOT NULL
)
PARTITION BY RANGE (event_id);

CREATE TABLE outbox.endpoint_versions (
    endpoint_id uuid NOT NULL,
    workspace_id text NOT NULL,
    version integer NOT NULL,
    url text NOT NULL,
    event_types text[] NOT NULL,
    filter jsonpath,
    header_names text[] NOT NULL,
    signature_header text NOT NULL,
    changed_by text DEFAULT SESSION_USER NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE outbox.kept_attempts (
    event_id uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    attempt_no integer NOT NULL,
    workspace_id text NOT NULL,
    endpoint_version integer NOT NULL,
    started_at timestamp with time zone NOT NULL,
    duration_ms integer NOT NULL,
    worker_no integer NOT NULL,
    status smallint,
    error text,
    response_headers jsonb,
    response_body bytea
);

CREATE TABLE outbox.recorded_attempts (
    event_id uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    attempt_no integer NOT NULL,
    workspace_id text NOT NULL,
    endpoint_version integer NOT NULL,
    started_at timestamp with time zone NOT NULL,
    duration_ms integer NOT NULL,
    worker_no integer NOT NULL,
    status smallint,
    error text,
    response_headers jsonb,
    response_body bytea
)
PARTITION BY RANGE (event_id);

CREATE VIEW outbox.known_attempts AS
 SELECT recorded_attempts.event_id,
    recorded_attempts.endpoint_id,
    recorded_attempts.attempt_no,
    recorded_attempts.workspace_id,
    recorded_attempts.endpoint_version,
    recorded_attempts.started_at,
    recorded_attempts.duration_ms,
    recorded_attempts.worker_no,
    recorded_attempts.status,
    recorded_attempts.error,
    recorded_attempts.response_headers,
    recorded_attempts.response_body,
    NULL::timestamp with time zone AS response_gone_at
   FROM outbox.recorded_attempts
UNION ALL
 SELECT kept_attempts.event_id,
    kept_attempts.endpoint_id,
    kept_attempts.attempt_no,
    kept_attempts.workspace_id,
    kept_attempts.endpoint_version,
    kept_attempts.started_at,
    kept_attempts.duration_ms,
    kept_attempts.worker_no,
    kept_attempts.status,
    kept_attempts.error,
    kept_attempts.response_headers,
    kept_attempts.response_body,
    NULL::timestamp with time zone AS response_gone_at
   FROM outbox.kept_attempts
UNION ALL
 SELECT bare_attempts.event_id,
    bare_attempts.endpoint_id,
    bare_attempts.attempt_no,
    bare_attempts.workspace_id,
    bare_attempts.endpoint_version,
    bare_attempts.started_at,
    bare_attempts.duration_ms,
    bare_attempts.worker_no,
    bare_attempts.status,
    bare_attempts.error,
    NULL::jsonb AS response_headers,
    NULL::bytea AS response_body,
    bare_attempts.response_gone_at
   FROM outbox.bare_attempts;

CREATE TABLE outbox.worker_processes (
    worker_no integer NOT NULL,
    name text NOT NULL,
    version text NOT NULL,
    started_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    seen_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    stopped_at timestamp with time zone,
    in_flight integer DEFAULT 0 NOT NULL,
    capacity integer NOT NULL
)
WITH (fillfactor='50');

CREATE VIEW outbox.attempts AS
 SELECT a.event_id,
    a.endpoint_id,
    a.attempt_no,
    a.workspace_id,
    a.started_at,
    a.duration_ms,
    outbox.shown_url(v.url) AS url,
    outbox.sent_headers(a.event_id, a.attempt_no, a.started_at, ( SELECT e.traceparent
           FROM outbox.known_events e
          WHERE ((e.event_id = a.event_id) AND (e.workspace_id = a.workspace_id))
         LIMIT 1), v.signature_header, v.header_names) AS request_headers,
    ( SELECT convert_from(outbox.event_body(e.event_id, e.event_type, e.created_at, e.workspace_id, e.payload), 'UTF8'::name) AS convert_from
           FROM outbox.known_events e
          WHERE ((e.event_id = a.event_id) AND (e.workspace_id = a.workspace_id))
         LIMIT 1) AS request_body,
    a.status,
    a.response_headers,
    outbox.readable(a.response_body) AS response_body,
    a.error,
    COALESCE(w.name, ('worker '::text || a.worker_no)) AS worker,
    a.endpoint_version,
    a.response_gone_at
   FROM ((outbox.known_attempts a
     LEFT JOIN outbox.endpoint_versions v ON (((v.endpoint_id = a.endpoint_id) AND (v.version = a.endpoint_version) AND (v.workspace_id = a.workspace_id))))
     LEFT JOIN outbox.worker_processes w ON ((w.worker_no = a.worker_no)));

CREATE VIEW outbox.attempt_log AS
 SELECT event_id,
    endpoint_id,
    attempt_no,
    workspace_id,
    ( SELECT e.event_type
           FROM outbox.known_events e
          WHERE ((e.event_id = a.event_id) AND (e.workspace_id = a.workspace_id))
         LIMIT 1) AS event_type,
    started_at,
    duration_ms,
    status,
    error,
    "substring"(url, '^https?://(\[[^]]*\]|[^/:?#]+)'::text) AS url_host,
    url,
    request_headers,
    request_body,
    response_headers,
    response_body,
    worker,
    endpoint_version,
    response_gone_at
   FROM outbox.attempts a;

CREATE TABLE outbox.endpoint_minutes (
    endpoint_id uuid NOT NULL,
    workspace_id text NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    worker_no integer NOT NULL,
    attempts integer NOT NULL,
    successes integer NOT NULL,
    timeouts integer NOT NULL,
    latency_counts integer[] NOT NULL,
    in_flight integer NOT NULL,
    in_flight_limit integer NOT NULL,
    circuit text NOT NULL,
    waits_for text,
    CONSTRAINT endpoint_minutes_circuit_check CHECK ((circuit = ANY (ARRAY['closed'::text, 'open'::text, 'half_open'::text])))
);

CREATE TABLE outbox.shards (
    shard smallint NOT NULL,
    worker_no integer,
    CONSTRAINT shards_shard_check CHECK (((shard >= 0) AND (shard <= 63)))
)
WITH (fillfactor='50');

CREATE VIEW outbox.endpoint_reports AS
 SELECT n.endpoint_id,
    n.workspace_id,
    outbox.hold_of(n.state, n.state_reason, n.hold_reason) AS hold,
        CASE
            WHEN (w.worker_no IS NULL) THEN 'no worker'::text
            WHEN (m.at > (statement_timestamp() - '00:03:00'::interval)) THEN m.waits_for
            ELSE NULL::text
        END AS waits_for,
    w.name AS worker,
    m.at AS reported_at,
    m.circuit,
    m.in_flight_limit,
        CASE
            WHEN (m.at > (statement_timestamp() - '00:03:00'::interval)) THEN m.in_flight
            ELSE 0
        END AS in_flight
   FROM (((outbox.endpoints n
     LEFT JOIN outbox.shards s ON ((s.shard = n.shard)))
     LEFT JOIN outbox.worker_processes w ON (((w.worker_no = s.worker_no) AND (w.stopped_at IS NULL) AND (w.expires_at > statement_timestamp()))))
     LEFT JOIN LATERAL ( SELECT e.at,
            e.circuit,
            e.in_flight,
            e.in_flight_limit,
            e.waits_for
           FROM outbox.endpoint_minutes e
          WHERE ((e.endpoint_id = n.endpoint_id) AND (e.at > (statement_timestamp() - '1 day'::interval)))
          ORDER BY e.at DESC
         LIMIT 1) m ON (true));

CREATE VIEW outbox.backlog AS
 SELECT n.endpoint_id,
    n.workspace_id,
    outbox.shown_url(n.url) AS url,
    o.waiting,
    o.due,
    o.leased,
        CASE
            WHEN (r.hold IS NOT NULL) THEN (o.waiting - o.leased)
            WHEN (r.waits_for IS NOT NULL) THEN o.due
            ELSE (0)::bigint
        END AS held,
    COALESCE(r.hold,
        CASE
            WHEN (o.due > 0) THEN COALESCE(r.waits_for, 'due'::text)
            WHEN (o.leased > 0) THEN 'leased'::text
            ELSE 'retry or schedule'::text
        END) AS why,
    o.oldest_due_at,
    o.next_attempt_at
   FROM ((outbox.endpoints n
     CROSS JOIN LATERAL ( SELECT count(*) AS waiting,
            count(*) FILTER (WHERE (d.lease_expires_at > statement_timestamp())) AS leased,
            count(*) FILTER (WHERE ((d.next_attempt_at <= statement_timestamp()) AND ((d.lease_expires_at > statement_timestamp()) IS NOT TRUE))) AS due,
            min(d.next_attempt_at) FILTER (WHERE ((d.next_attempt_at <= statement_timestamp()) AND ((d.lease_expires_at > statement_timestamp()) IS NOT TRUE))) AS oldest_due_at,
            min(d.next_attempt_at) AS next_attempt_at
           FROM outbox.open_deliveries d
          WHERE ((d.endpoint_id = n.endpoint_id) AND (d.workspace_id = n.workspace_id))) o)
     LEFT JOIN outbox.endpoint_reports r ON (((r.endpoint_id = n.endpoint_id) AND (r.workspace_id = n.workspace_id))))
  WHERE (o.waiting > 0);

CREATE TABLE outbox.finished_deliveries (
    event_id uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    workspace_id text NOT NULL,
    state text NOT NULL,
    reason text,
    priority smallint NOT NULL,
    attempt_count integer NOT NULL,
    failed_count smallint NOT NULL,
    lost_count smallint NOT NULL,
    replay_count smallint NOT NULL,
    last_status smallint,
    last_error text,
    next_attempt_at timestamp with time zone NOT NULL,
    ordering_key text,
    ordering_seq bigint,
    created_at timestamp with time zone NOT NULL,
    finished_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT finished_deliveries_state_check CHECK ((state = ANY (ARRAY['delivered'::text, 'dead'::text, 'canceled'::text])))
)
PARTITION BY RANGE (event_id);

CREATE TABLE outbox.kept_deliveries (
    event_id uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    workspace_id text NOT NULL,
    state text NOT NULL,
    reason text,
    priority smallint NOT NULL,
    attempt_count integer NOT NULL,
    failed_count smallint NOT NULL,
    lost_count smallint NOT NULL,
    replay_count smallint NOT NULL,
    last_status smallint,
    last_error text,
    next_attempt_at timestamp with time zone NOT NULL,
    ordering_key text,
    ordering_seq bigint,
    created_at timestamp with time zone NOT NULL,
    finished_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT finished_deliveries_state_check CHECK ((state = ANY (ARRAY['delivered'::text, 'dead'::text, 'canceled'::text])))
);

CREATE VIEW outbox.deliveries AS
 SELECT o.event_id,
    o.endpoint_id,
    o.workspace_id,
    'pending'::text AS state,
    o.attempt_count,
    o.next_attempt_at,
    o.last_status,
    o.last_error,
    o.created_at,
    NULL::timestamp with time zone AS finished_at,
    NULL::text AS reason,
    o.priority,
    o.failed_count,
    o.lost_count,
    o.replay_count,
    o.lease_expires_at,
    o.leased_by,
    o.ordering_key
   FROM outbox.open_deliveries o
UNION ALL
 SELECT f.event_id,
    f.endpoint_id,
    f.workspace_id,
    f.state,
    f.attempt_count,
    f.next_attempt_at,
    f.last_status,
    f.last_error,
    f.created_at,
    f.finished_at,
    f.reason,
    f.priority,
    f.failed_count,
    f.lost_count,
    f.replay_count,
    NULL::timestamp with time zone AS lease_expires_at,
    NULL::integer AS leased_by,
    f.ordering_key
   FROM outbox.finished_deliveries f
UNION ALL
 SELECT k.event_id,
    k.endpoint_id,
    k.workspace_id,
    k.state,
    k.attempt_count,
    k.next_attempt_at,
    k.last_status,
    k.last_error,
    k.created_at,
    k.finished_at,
    k.reason,
    k.priority,
    k.failed_count,
    k.lost_count,
    k.replay_count,
    NULL::timestamp with time zone AS lease_expires_at,
    NULL::integer AS leased_by,
    k.ordering_key
   FROM outbox.kept_deliveries k;

CREATE VIEW outbox.dead_letters AS
 SELECT d.event_id,
    d.endpoint_id,
    d.workspace_id,
    e.event_type,
    d.reason,
    d.attempt_count,
    d.last_status,
    d.last_error,
    d.finished_at,
    d.replay_count,
    d.lost_count,
    n.state AS endpoint_state,
    outbox.shown_url(n.url) AS url,
    ( SELECT p.payload
           FROM outbox.known_events p
          WHERE ((p.event_id = d.event_id) AND (p.workspace_id = d.workspace_id))
         LIMIT 1) AS payload,
    e.event_created_at
   FROM ((outbox.deliveries d
     LEFT JOIN LATERAL ( SELECT min(k.event_type) AS event_type,
            min(k.created_at) AS event_created_at
           FROM outbox.known_events k
          WHERE ((k.event_id = d.event_id) AND (k.workspace_id = d.workspace_id))) e ON (true))
     LEFT JOIN outbox.endpoints n ON (((n.endpoint_id = d.endpoint_id) AND (n.workspace_id = d.workspace_id))))
  WHERE (d.state = 'dead'::text);

CREATE VIEW outbox.delivery_log AS
 SELECT d.event_id,
    d.endpoint_id,
    d.workspace_id,
    e.event_type,
        CASE
            WHEN (d.state <> 'pending'::text) THEN d.state
            WHEN (d.lease_expires_at > statement_timestamp()) THEN 'leased'::text
            WHEN (r.hold IS NOT NULL) THEN 'held'::text
            WHEN ((d.next_attempt_at <= statement_timestamp()) AND (r.waits_for IS NOT NULL)) THEN 'held'::text
            ELSE 'pending'::text
        END AS state,
        CASE
            WHEN (d.state <> 'pending'::text) THEN d.reason
            WHEN (d.lease_expires_at > statement_timestamp()) THEN NULL::text
            WHEN (r.hold IS NOT NULL) THEN r.hold
            WHEN (d.next_attempt_at > statement_timestamp()) THEN
            CASE
                WHEN (d.failed_count > 0) THEN 'retry'::text
                ELSE 'scheduled'::text
            END
            WHEN (r.waits_for IS NOT NULL) THEN r.waits_for
            WHEN (d.lease_expires_at IS NOT NULL) THEN 'lease lost'::text
            WHEN ((d.ordering_key IS NOT NULL) AND (EXISTS ( SELECT
               FROM outbox.open_deliveries o,
                outbox.settings s
              WHERE ((o.event_id = d.event_id) AND (o.endpoint_id = d.endpoint_id) AND (o.workspace_id = d.workspace_id) AND ((EXISTS ( SELECT
                       FROM outbox.open_deliveries b
                      WHERE ((b.endpoint_id = o.endpoint_id) AND (b.ordering_key = o.ordering_key) AND (b.ordering_seq < o.ordering_seq) AND ((b.failed_count = 0) OR (b.lease_expires_at IS NOT NULL) OR (b.next_attempt_at <= statement_timestamp()) OR (b.created_at > (statement_timestamp() - s.ordered_skip_after)))))) OR (EXISTS ( SELECT
                       FROM outbox.fan_out_queue q
                      WHERE ((q.workspace_id = o.workspace_id) AND (q.ordering_key = o.ordering_key) AND (q.seq < o.ordering_seq))))))))) THEN 'earlier event of its ordering key'::text
            ELSE 'due'::text
        END AS why,
    d.attempt_count,
    d.failed_count,
    d.lost_count,
    d.replay_count,
    d.last_status,
    d.last_error,
    d.next_attempt_at,
    d.priority,
    d.ordering_key,
    outbox.shown_url(n.url) AS url,
    w.name AS worker,
    d.lease_expires_at,
    e.event_created_at,
    d.created_at,
    d.finished_at,
        CASE
            WHEN (d.state = 'delivered'::text) THEN ((EXTRACT(epoch FROM (d.finished_at - GREATEST(e.event_created_at, e.deliver_at))) * (1000)::numeric))::bigint
            ELSE NULL::bigint
        END AS total_ms
   FROM ((((outbox.deliveries d
     LEFT JOIN LATERAL ( SELECT min(k.event_type) AS event_type,
            min(k.created_at) AS event_created_at,
            min(k.deliver_at) AS deliver_at
           FROM outbox.known_events k
          WHERE ((k.event_id = d.event_id) AND (k.workspace_id = d.workspace_id))) e ON (true))
     LEFT JOIN outbox.endpoints n ON (((n.endpoint_id = d.endpoint_id) AND (n.workspace_id = d.workspace_id))))
     LEFT JOIN outbox.worker_processes w ON (((w.worker_no = d.leased_by) AND (d.lease_expires_at > statement_timestamp()))))
     LEFT JOIN LATERAL ( SELECT p.hold,
            p.waits_for
           FROM outbox.endpoint_reports p
          WHERE ((d.state = 'pending'::text) AND (p.endpoint_id = d.endpoint_id) AND (p.workspace_id = d.workspace_id))
         LIMIT 1) r ON (true));

CREATE VIEW outbox.endpoint_health AS
 SELECT n.endpoint_id,
    n.workspace_id,
    outbox.shown_url(n.url) AS url,
    n.description,
    n.state,
    n.state_reason,
    n.hold_reason,
    n.filter_error,
    n.failing_since,
    r.in_flight,
    r.in_flight_limit,
    n.max_in_flight,
    n.max_per_second,
    r.circuit,
    h.attempts,
    h.successes,
    h.timeouts,
    ((h.successes)::numeric(12,4) / (NULLIF(h.attempts, 0))::numeric) AS success_rate,
    h.per_second,
    outbox.latency_percentile(l.counts, (0.5)::double precision) AS p50_ms,
    outbox.latency_percentile(l.counts, (0.95)::double precision) AS p95_ms,
    outbox.latency_percentile(l.counts, (0.99)::double precision) AS p99_ms,
    o.waiting,
    o.oldest_waiting_at,
    COALESCE(r.hold,
        CASE
            WHEN q.due THEN COALESCE(r.waits_for, 'due'::text)
            WHEN (EXISTS ( SELECT
               FROM outbox.open_deliveries x
              WHERE ((x.endpoint_id = n.endpoint_id) AND (x.workspace_id = n.workspace_id)))) THEN 'retry, schedule or lease'::text
            ELSE NULL::text
        END) AS why,
    r.worker,
    r.reported_at,
    n.ordered,
    n.state_changed_at,
    n.created_at
   FROM (((((outbox.endpoints n
     LEFT JOIN outbox.endpoint_reports r ON (((r.endpoint_id = n.endpoint_id) AND (r.workspace_id = n.workspace_id))))
     LEFT JOIN LATERAL ( SELECT COALESCE(sum(m.attempts), (0)::bigint) AS attempts,
            COALESCE(sum(m.successes), (0)::bigint) AS successes,
            COALESCE(sum(m.timeouts), (0)::bigint) AS timeouts,
            round(((COALESCE(sum(m.attempts) FILTER (WHERE (m.at > (statement_timestamp() - '00:05:00'::interval))), (0)::bigint))::numeric / 300.0), 2) AS per_second
           FROM outbox.endpoint_minutes m
          WHERE ((m.endpoint_id = n.endpoint_id) AND (m.at > (statement_timestamp() - '01:00:00'::interval)))) h ON (true))
     LEFT JOIN LATERAL ( SELECT array_agg(b.amount ORDER BY b.place) AS counts
           FROM ( SELECT u.place,
                    sum(u.amount) AS amount
                   FROM outbox.endpoint_minutes m,
                    LATERAL unnest(m.latency_counts) WITH ORDINALITY u(amount, place)
                  WHERE ((m.endpoint_id = n.endpoint_id) AND (m.at > (statement_timestamp() - '01:00:00'::interval)))
                  GROUP BY u.place) b) l ON (true))
     LEFT JOIN LATERAL ( SELECT count(*) AS waiting,
            min(d.created_at) AS oldest_waiting_at
           FROM outbox.open_deliveries d
          WHERE ((d.endpoint_id = n.endpoint_id) AND (d.workspace_id = n.workspace_id))) o ON (true))
     LEFT JOIN LATERAL ( SELECT (count(*) FILTER (WHERE (f.next_attempt_at <= statement_timestamp())) > 0) AS due
           FROM ((( VALUES ((0)::smallint), ((1)::smallint), ((2)::smallint)) p(priority)
             CROSS JOIN ( VALUES (true), (false)) u(unordered))
             CROSS JOIN LATERAL ( SELECT d.next_attempt_at
                   FROM outbox.open_deliveries d
                  WHERE ((d.endpoint_id = n.endpoint_id) AND (d.priority = p.priority) AND ((d.ordering_key IS NULL) = u.unordered) AND ((d.lease_expires_at IS NULL) OR (d.lease_expires_at <= statement_timestamp())))
                  ORDER BY d.next_attempt_at
                 LIMIT 1) f)) q ON (true))
  WHERE (n.state <> 'deleted'::text);

CREATE VIEW outbox.event_log AS
 SELECT e.event_id,
    e.workspace_id,
    e.event_type,
    e.payload,
    e.ordering_key,
    e.priority,
    e.deliver_at,
    e.traceparent,
    e.created_at,
    d.deliveries,
    d.delivered,
    d.dead,
    d.canceled,
    d.pending,
    c.canceled_at,
    c.canceled_by,
    e.payload_gone_at
   FROM ((outbox.known_events e
     LEFT JOIN LATERAL ( SELECT count(*) AS deliveries,
            count(*) FILTER (WHERE (k.state = 'delivered'::text)) AS delivered,
            count(*) FILTER (WHERE (k.state = 'dead'::text)) AS dead,
            count(*) FILTER (WHERE (k.state = 'canceled'::text)) AS canceled,
            count(*) FILTER (WHERE (k.state = 'pending'::text)) AS pending
           FROM outbox.deliveries k
          WHERE ((k.event_id = e.event_id) AND (k.workspace_id = e.workspace_id))) d ON (true))
     LEFT JOIN outbox.canceled_events c ON ((c.event_id = e.event_id)));

CREATE VIEW outbox.fan_out_backlog AS
 SELECT workspace_id,
    priority,
    count(*) AS waiting,
    outbox.event_id_time((min(((event_id)::text COLLATE "C")))::uuid) AS oldest_created_at
   FROM outbox.fan_out_queue q
  GROUP BY workspace_id, priority;

ALTER TABLE outbox.fan_out_queue ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME outbox.fan_out_queue_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE outbox.filter_failures (
    event_id uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    workspace_id text NOT NULL,
    error text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE TABLE outbox.idempotency_keys (
    workspace_id text NOT NULL,
    idempotency_key text NOT NULL,
    event_id uuid NOT NULL,
    fingerprint bytea NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT idempotency_keys_idempotency_key_check CHECK (((length(idempotency_key) >= 1) AND (length(idempotency_key) <= 200)))
);

CREATE TABLE outbox.late_results (
    event_id uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    attempt_no integer NOT NULL,
    workspace_id text NOT NULL,
    endpoint_version integer NOT NULL,
    started_at timestamp with time zone NOT NULL,
    duration_ms integer NOT NULL,
    worker_no integer NOT NULL,
    status smallint,
    error text,
    response_headers jsonb,
    response_body bytea,
    lease_token uuid NOT NULL,
    recorded_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE VIEW outbox.latency_by_hour AS
 SELECT h.hour,
    l.deliveries,
    l.p50_ms,
    l.p95_ms,
    l.p99_ms,
    l.max_ms
   FROM ((outbox.settings s
     CROSS JOIN LATERAL generate_series(date_trunc('hour'::text, (statement_timestamp() - LEAST(s.delivery_retention, s.event_retention))), statement_timestamp(), '01:00:00'::interval) h(hour))
     CROSS JOIN LATERAL ( SELECT count(*) AS deliveries,
            percentile_disc((0.5)::double precision) WITHIN GROUP (ORDER BY t.total_ms) AS p50_ms,
            percentile_disc((0.95)::double precision) WITHIN GROUP (ORDER BY t.total_ms) AS p95_ms,
            percentile_disc((0.99)::double precision) WITHIN GROUP (ORDER BY t.total_ms) AS p99_ms,
            max(t.total_ms) AS max_ms
           FROM ( SELECT ((EXTRACT(epoch FROM (d.finished_at - GREATEST(e.created_at, e.deliver_at))) * (1000)::numeric))::bigint AS total_ms
                   FROM (outbox.finished_deliveries d
                     JOIN outbox.known_events e ON (((e.event_id = d.event_id) AND (e.workspace_id = d.workspace_id))))
                  WHERE ((d.event_id >= outbox.event_id_floor(h.hour)) AND (d.event_id < outbox.event_id_floor((h.hour + '01:00:00'::interval))) AND (e.event_id >= outbox.event_id_floor(h.hour)) AND (e.event_id < outbox.event_id_floor((h.hour + '01:00:00'::interval))) AND (d.state = 'delivered'::text) AND (d.replay_count = 0))) t) l)
  WHERE (l.deliveries > 0);

CREATE TABLE outbox.lost_leases (
    event_id uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    workspace_id text NOT NULL,
    attempt_no integer NOT NULL,
    lease_token uuid NOT NULL,
    worker_no integer,
    expired_at timestamp with time zone NOT NULL,
    recorded_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE VIEW outbox.lost_lease_log AS
 SELECT l.event_id,
    l.endpoint_id,
    l.workspace_id,
    l.attempt_no,
    COALESCE(w.name, ('worker '::text || l.worker_no)) AS worker,
    l.expired_at,
    l.recorded_at,
    r.started_at AS late_started_at,
    r.status AS late_status,
    r.error AS late_error
   FROM ((outbox.lost_leases l
     LEFT JOIN outbox.worker_processes w ON ((w.worker_no = l.worker_no)))
     LEFT JOIN LATERAL ( SELECT t.started_at,
            t.status,
            t.error
           FROM outbox.late_results t
          WHERE ((t.event_id = l.event_id) AND (t.endpoint_id = l.endpoint_id) AND (t.lease_token = l.lease_token))
          ORDER BY t.recorded_at
         LIMIT 1) r ON (true));

CREATE TABLE outbox.operation_events (
    operation_id uuid NOT NULL,
    event_id uuid NOT NULL,
    replayed_at timestamp with time zone
);

CREATE VIEW outbox.operation_log AS
 SELECT operation_id,
    kind,
    state,
    workspace_id,
    event_id,
    endpoint_id,
    parameters,
    affected,
    reason,
    requested_by,
    created_at
   FROM outbox.operations o;

CREATE TABLE outbox.schema_definitions (
    name text NOT NULL,
    sha256 text NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE outbox.schema_migrations (
    version integer NOT NULL,
    name text NOT NULL,
    sha256 text NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE outbox.tenant_logins (
    login_role text NOT NULL,
    workspace_id text NOT NULL
);

CREATE VIEW outbox.tenant_attempts WITH (security_barrier='true') AS
 SELECT a.event_id,
    a.endpoint_id,
    a.attempt_no,
    a.workspace_id,
    a.started_at,
    a.duration_ms,
    outbox.mask_url(v.url) AS url,
    outbox.sent_headers(a.event_id, a.attempt_no, a.started_at, ( SELECT e.traceparent
           FROM outbox.known_events e
          WHERE ((e.event_id = a.event_id) AND (e.workspace_id = a.workspace_id))
         LIMIT 1), v.signature_header, v.header_names) AS request_headers,
    ( SELECT convert_from(outbox.event_body(e.event_id, e.event_type, e.created_at, e.workspace_id, e.payload), 'UTF8'::name) AS convert_from
           FROM outbox.known_events e
          WHERE ((e.event_id = a.event_id) AND (e.workspace_id = a.workspace_id))
         LIMIT 1) AS request_body,
    a.status,
    "substring"(a.error, '^[a-z_]+'::text) AS error
   FROM ((outbox.tenant_logins t
     JOIN outbox.known_attempts a ON ((a.workspace_id = t.workspace_id)))
     LEFT JOIN outbox.endpoint_versions v ON (((v.endpoint_id = a.endpoint_id) AND (v.version = a.endpoint_version) AND (v.workspace_id = a.workspace_id))))
  WHERE (t.login_role = SESSION_USER);

CREATE VIEW outbox.tenant_deliveries WITH (security_barrier='true') AS
 SELECT d.event_id,
    d.endpoint_id,
    d.workspace_id,
    ( SELECT e.event_type
           FROM outbox.known_events e
          WHERE ((e.event_id = d.event_id) AND (e.workspace_id = d.workspace_id))
         LIMIT 1) AS event_type,
    d.state,
    d.reason,
    d.attempt_count,
    d.next_attempt_at,
    d.last_status,
    "substring"(d.last_error, '^[a-z_]+'::text) AS last_error,
    d.created_at,
    d.finished_at
   FROM ((outbox.tenant_logins t
     JOIN outbox.endpoints n ON ((n.workspace_id = t.workspace_id)))
     JOIN outbox.deliveries d ON (((d.endpoint_id = n.endpoint_id) AND (d.workspace_id = n.workspace_id))))
  WHERE (t.login_role = SESSION_USER);

CREATE VIEW outbox.tenant_endpoints WITH (security_barrier='true') AS
 SELECT n.endpoint_id,
    n.workspace_id,
    outbox.mask_url(n.url) AS url,
    n.event_types,
    n.description,
    n.filter,
    n.ordered,
    n.max_in_flight,
    n.max_per_second,
    n.timeout,
    n.retry_schedule,
    n.header_names,
    n.state,
        CASE
            WHEN (n.state = 'disabled'::text) THEN n.state_reason
            ELSE NULL::text
        END AS state_reason,
    n.hold_reason,
    n.failing_since,
    n.created_at,
    n.updated_at
   FROM (outbox.tenant_logins t
     JOIN outbox.endpoints n ON ((n.workspace_id = t.workspace_id)))
  WHERE (t.login_role = SESSION_USER);

CREATE VIEW outbox.tenant_events WITH (security_barrier='true') AS
 SELECT e.event_id,
    e.workspace_id,
    e.event_type,
    e.payload,
    e.ordering_key,
    e.priority,
    e.deliver_at,
    e.traceparent,
    e.created_at,
    e.payload_gone_at
   FROM (outbox.tenant_logins t
     JOIN outbox.known_events e ON ((e.workspace_id = t.workspace_id)))
  WHERE (t.login_role = SESSION_USER);

CREATE TABLE outbox.vault_keys (
    key_id text NOT NULL,
    public_key bytea NOT NULL,
    active boolean DEFAULT true NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT vault_keys_key_id_check CHECK ((key_id ~ '^[0-9A-F]{16}$'::text))
);

ALTER TABLE outbox.worker_processes ALTER COLUMN worker_no ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME outbox.worker_processes_worker_no_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE VIEW outbox.workers AS
 SELECT worker_no,
    name,
    version,
        CASE
            WHEN (stopped_at IS NOT NULL) THEN 'stopped'::text
            WHEN (expires_at > statement_timestamp()) THEN 'live'::text
            ELSE 'expired'::text
        END AS state,
    ( SELECT count(*) AS count
           FROM outbox.shards s
          WHERE (s.worker_no = w.worker_no)) AS shards,
    in_flight,
    capacity,
    started_at,
    seen_at,
    expires_at,
    stopped_at
   FROM outbox.worker_processes w;

ALTER TABLE ONLY outbox.endpoint_vault
    ADD CONSTRAINT endpoint_vault_pkey PRIMARY KEY (endpoint_id, workspace_id);

CREATE FUNCTION outbox.store_secret(endpoint outbox.endpoints, sealed bytea, overlap interval) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'outbox', 'pg_temp';

ALTER TABLE ONLY outbox.bare_attempts
    ADD CONSTRAINT bare_attempts_pkey PRIMARY KEY (event_id, endpoint_id, attempt_no, workspace_id);

ALTER TABLE ONLY outbox.bare_events
    ADD CONSTRAINT bare_events_pkey PRIMARY KEY (event_id, workspace_id);

ALTER TABLE ONLY outbox.canceled_events
    ADD CONSTRAINT canceled_events_pkey PRIMARY KEY (event_id);

ALTER TABLE ONLY outbox.endpoint_versions
    ADD CONSTRAINT endpoint_versions_pkey PRIMARY KEY (endpoint_id, version, workspace_id);

ALTER TABLE ONLY outbox.endpoints
    ADD CONSTRAINT endpoints_pkey PRIMARY KEY (endpoint_id, workspace_id);

ALTER TABLE ONLY outbox.event_types
    ADD CONSTRAINT event_types_pkey PRIMARY KEY (name);

ALTER TABLE ONLY outbox.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (event_id, workspace_id);

ALTER TABLE ONLY outbox.fan_out_queue
    ADD CONSTRAINT fan_out_queue_pkey PRIMARY KEY (seq);

ALTER TABLE ONLY outbox.finished_deliveries
    ADD CONSTRAINT finished_deliveries_pkey PRIMARY KEY (event_id, endpoint_id, workspace_id);

ALTER TABLE ONLY outbox.home
    ADD CONSTRAINT home_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY outbox.idempotency_keys
    ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (workspace_id, idempotency_key);

ALTER TABLE ONLY outbox.kept_attempts
    ADD CONSTRAINT kept_attempts_pkey PRIMARY KEY (event_id, endpoint_id, attempt_no, workspace_id);

ALTER TABLE ONLY outbox.kept_deliveries
    ADD CONSTRAINT kept_deliveries_pkey PRIMARY KEY (event_id, endpoint_id, workspace_id);

ALTER TABLE ONLY outbox.kept_events
    ADD CONSTRAINT kept_events_pkey PRIMARY KEY (event_id, workspace_id);

ALTER TABLE ONLY outbox.open_deliveries
    ADD CONSTRAINT open_deliveries_pkey PRIMARY KEY (event_id, endpoint_id, workspace_id);

ALTER TABLE ONLY outbox.operation_events
    ADD CONSTRAINT operation_events_pkey PRIMARY KEY (operation_id, event_id);

ALTER TABLE ONLY outbox.operations
    ADD CONSTRAINT operations_pkey PRIMARY KEY (operation_id);

ALTER TABLE ONLY outbox.partition_registry
    ADD CONSTRAINT partition_registry_pkey PRIMARY KEY (parent, lower_bound);

ALTER TABLE ONLY outbox.recorded_attempts
    ADD CONSTRAINT recorded_attempts_pkey PRIMARY KEY (event_id, endpoint_id, attempt_no, workspace_id);

ALTER TABLE ONLY outbox.schema_definitions
    ADD CONSTRAINT schema_definitions_pkey PRIMARY KEY (name);

ALTER TABLE ONLY outbox.schema_migrations
    ADD CONSTRAINT schema_migrations_pkey PRIMARY KEY (version);

ALTER TABLE ONLY outbox.set_aside_events
    ADD CONSTRAINT set_aside_events_pkey PRIMARY KEY (event_id);

ALTER TABLE ONLY outbox.settings
    ADD CONSTRAINT settings_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY outbox.shards
    ADD CONSTRAINT shards_pkey PRIMARY KEY (shard);

ALTER TABLE ONLY outbox.tenant_logins
    ADD CONSTRAINT tenant_logins_pkey PRIMARY KEY (login_role, workspace_id);

ALTER TABLE ONLY outbox.vault_keys
    ADD CONSTRAINT vault_keys_pkey PRIMARY KEY (key_id);

ALTER TABLE ONLY outbox.worker_processes
    ADD CONSTRAINT worker_processes_pkey PRIMARY KEY (worker_no);

CREATE INDEX bare_attempts_failed_idx ON ONLY outbox.bare_attempts USING btree (endpoint_id, started_at) WHERE ((status IS NULL) OR (status < 200) OR (status > 299));

CREATE INDEX bare_attempts_started_idx ON ONLY outbox.bare_attempts USING brin (started_at) WITH (autosummarize='on');

CREATE INDEX bare_events_payload_idx ON ONLY outbox.bare_events USING btree (event_id) WHERE (payload IS NOT NULL);

CREATE INDEX bare_events_workspace_idx ON ONLY outbox.bare_events USING btree (workspace_id, event_id);

CREATE INDEX canceled_events_at_idx ON outbox.canceled_events USING btree (canceled_at);

CREATE INDEX endpoint_minutes_at_idx ON outbox.endpoint_minutes USING btree (at);

CREATE INDEX endpoint_minutes_endpoint_idx ON outbox.endpoint_minutes USING btree (endpoint_id, at);

CREATE INDEX endpoints_deleted_idx ON outbox.endpoints USING btree (state_changed_at) WHERE ((state = 'deleted'::text) AND (drained_at IS NULL));

CREATE INDEX endpoints_shard_idx ON outbox.endpoints USING btree (shard);

CREATE INDEX endpoints_workspace_idx ON outbox.endpoints USING btree (workspace_id);

CREATE INDEX events_workspace_idx ON ONLY outbox.events USING btree (workspace_id, event_id);

CREATE INDEX fan_out_queue_fair_idx ON outbox.fan_out_queue USING btree (priority, bucket, seq);

CREATE INDEX fan_out_queue_ordering_idx ON outbox.fan_out_queue USING btree (workspace_id, ordering_key, seq) WHERE (ordering_key IS NOT NULL);

CREATE INDEX filter_failures_created_idx ON outbox.filter_failures USING btree (created_at);

CREATE INDEX filter_failures_event_idx ON outbox.filter_failures USING btree (event_id);

CREATE INDEX finished_deliveries_dead_idx ON ONLY outbox.finished_deliveries USING btree (endpoint_id, finished_at) WHERE (state = 'dead'::text);

CREATE INDEX finished_deliveries_endpoint_idx ON ONLY outbox.finished_deliveries USING btree (endpoint_id, event_id);

CREATE INDEX idempotency_keys_created_idx ON outbox.idempotency_keys USING btree (created_at);

CREATE INDEX kept_attempts_failed_idx ON outbox.kept_attempts USING btree (endpoint_id, started_at) WHERE ((status IS NULL) OR (status < 200) OR (status > 299));

CREATE INDEX kept_deliveries_dead_idx ON outbox.kept_deliveries USING btree (endpoint_id, finished_at) WHERE (state = 'dead'::text);

CREATE INDEX kept_deliveries_endpoint_idx ON outbox.kept_deliveries USING btree (endpoint_id, event_id);

CREATE INDEX kept_deliveries_finished_idx ON outbox.kept_deliveries USING btree (finished_at);

CREATE INDEX kept_events_workspace_idx ON outbox.kept_events USING btree (workspace_id, event_id);

CREATE INDEX late_results_event_idx ON outbox.late_results USING btree (event_id, endpoint_id);

CREATE INDEX late_results_recorded_idx ON outbox.late_results USING btree (recorded_at);

CREATE INDEX lost_leases_event_idx ON outbox.lost_leases USING btree (event_id, endpoint_id);

CREATE INDEX lost_leases_recorded_idx ON outbox.lost_leases USING btree (recorded_at);

CREATE INDEX open_deliveries_due_idx ON outbox.open_deliveries USING btree (endpoint_id, priority, ((ordering_key IS NULL)), next_attempt_at);

CREATE INDEX open_deliveries_ordered_idx ON outbox.open_deliveries USING btree (endpoint_id, ordering_key, ordering_seq) WHERE (ordering_key IS NOT NULL);

CREATE INDEX operation_events_event_idx ON outbox.operation_events USING btree (event_id);

CREATE INDEX operation_events_left_idx ON outbox.operation_events USING btree (operation_id, event_id) WHERE (replayed_at IS NULL);

CREATE INDEX operations_created_idx ON outbox.operations USING btree (created_at);

CREATE INDEX operations_endpoint_idx ON outbox.operations USING btree (endpoint_id, created_at) WHERE (endpoint_id IS NOT NULL);

CREATE INDEX operations_event_idx ON outbox.operations USING btree (event_id) WHERE (event_id IS NOT NULL);

CREATE INDEX operations_running_idx ON outbox.operations USING btree (created_at) WHERE (state = 'running'::text);

CREATE INDEX recorded_attempts_failed_idx ON ONLY outbox.recorded_attempts USING btree (endpoint_id, started_at) WHERE ((status IS NULL) OR (status < 200) OR (status > 299));

CREATE INDEX recorded_attempts_started_idx ON ONLY outbox.recorded_attempts USING brin (started_at) WITH (autosummarize='on');

CREATE UNIQUE INDEX vault_keys_active_idx ON outbox.vault_keys USING btree (active) WHERE active;

CREATE INDEX worker_processes_live_idx ON outbox.worker_processes USING btree (worker_no) WHERE (stopped_at IS NULL);

CREATE TRIGGER accept_event BEFORE INSERT ON outbox.events FOR EACH ROW EXECUTE FUNCTION outbox.accept_event();

CREATE TRIGGER change_delivery INSTEAD OF INSERT OR DELETE OR UPDATE ON outbox.deliveries FOR EACH ROW EXECUTE FUNCTION outbox.change_delivery();

CREATE TRIGGER check_endpoint BEFORE INSERT OR UPDATE ON outbox.endpoints FOR EACH ROW EXECUTE FUNCTION outbox.check_endpoint();

CREATE TRIGGER keep_event BEFORE UPDATE ON outbox.events FOR EACH ROW EXECUTE FUNCTION outbox.keep_event();

CREATE TRIGGER record_endpoint_version AFTER INSERT OR UPDATE ON outbox.endpoints FOR EACH ROW EXECUTE FUNCTION outbox.record_endpoint_version();
