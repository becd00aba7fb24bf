-- Time-ordered identifiers and the settings that the database itself must know.

-- A version 7 UUID (RFC 9562, 5.7): 48 bits of Unix milliseconds, then random bits.
create function outbox.uuid7() returns uuid
language sql volatile parallel safe
as $$
    select encode(
        set_bit(set_bit(
            overlay(uuid_send(gen_random_uuid())
                    placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3)
                    from 1 for 6),
            52, 1), 53, 1), 'hex')::uuid
$$;
comment on function outbox.uuid7() is
    'A new time-ordered UUID, version 7 (RFC 9562): the first 48 bits are Unix milliseconds of the database clock.';

create function outbox.event_id_floor(at timestamptz) returns uuid
language sql immutable strict parallel safe
as $$
    select (lpad(to_hex(floor(extract(epoch from at) * 1000)::bigint), 12, '0') || '00000000000000000000')::uuid
$$;
comment on function outbox.event_id_floor(timestamptz) is
    'The smallest event id of a moment: `event_id >= outbox.event_id_floor(t)` finds events from t on and prunes partitions.';

create function outbox.event_id_time(event_id uuid) returns timestamptz
language sql immutable strict parallel safe
as $$
    select to_timestamp(('x' || lpad(left(replace(event_id::text, '-', ''), 12), 16, '0'))::bit(64)::bigint / 1000.0)
$$;
comment on function outbox.event_id_time(uuid) is
    'The moment an event id was made, to the millisecond: the inverse of outbox.event_id_floor.';

create table outbox.settings (
    only_row               boolean primary key default true check (only_row),
    max_payload_bytes      integer not null default 262144 check (max_payload_bytes between 1024 and 16777216),
    max_delay              interval not null default '30 days' check (max_delay between '0 s' and '365 days'),
    allowed_ports          integer[] not null default '{80,443,8080,8443}'
                           check (cardinality(allowed_ports) between 1 and 100 and 1 <= all (allowed_ports) and 65535 >= all (allowed_ports)),
    allow_plain_http       boolean not null default false,
    allow_ip_literals      boolean not null default false,
    signature_header       text not null default 'Edesy-Signature' check (signature_header ~ '^[A-Za-z][A-Za-z0-9-]{0,62}$'
                                  and lower(signature_header) !~ '^(webhook-.*|content-.*|proxy-.*|x-amz-.*|x-goog-.*|metadata.*|host|connection|transfer-encoding|upgrade|te|trailer|keep-alive|expect|http2-settings|user-agent|accept-encoding|cookie|authorization|traceparent|tracestate)$'),
    idempotency_retention  interval not null default '7 days' check (idempotency_retention >= '1 hour'),
    partition_width        interval not null default '7 days' check (partition_width between '1 hour' and '31 days'),
    partitions_ahead       interval not null default '28 days' check (partitions_ahead >= '4 days'),
    event_retention        interval not null default '90 days' check (event_retention >= '3 days'),
    delivery_retention     interval not null default '90 days' check (delivery_retention >= '3 days'),
    attempt_retention      interval not null default '90 days' check (attempt_retention >= '3 days'),
    dead_letter_retention  interval not null default '730 days' check (dead_letter_retention >= '3 days'),
    failing_notice_after   interval not null default '1 day' check (failing_notice_after > '0 s'),
    disable_after          interval not null default '5 days' check (disable_after > '0 s'),
    ordered_skip_after     interval not null default '24 hours' check (ordered_skip_after > '0 s'),
    max_lost_leases        integer not null default 5 check (max_lost_leases between 1 and 100)
);
insert into outbox.settings default values;

comment on table outbox.settings is 'One row: what the database itself must know. Only the owner writes it.';
comment on column outbox.settings.only_row is 'Always true: there is exactly one row.';
comment on column outbox.settings.max_payload_bytes is 'Largest payload accepted, in bytes of payload::text.';
comment on column outbox.settings.max_delay is 'How far ahead deliver_at may lie.';
comment on column outbox.settings.allowed_ports is 'Ports an endpoint''s URL may name.';
comment on column outbox.settings.allow_plain_http is 'Whether endpoints may be http://; for a demo, never for production.';
comment on column outbox.settings.allow_ip_literals is 'Whether endpoints may name an IP address; for a demo, never for production.';
comment on column outbox.settings.signature_header is 'Name of the product''s own signature header (t=…,v1=…).';
comment on column outbox.settings.idempotency_retention is 'How long an idempotency key is remembered.';
comment on column outbox.settings.partition_width is 'Time range of one partition made from now on.';
comment on column outbox.settings.partitions_ahead is 'How far ahead partitions are made.';
comment on column outbox.settings.event_retention is 'Age at which partitions of events are dropped.';
comment on column outbox.settings.delivery_retention is 'Age at which partitions of finished deliveries are dropped.';
comment on column outbox.settings.attempt_retention is 'Age at which partitions of attempts are dropped.';
comment on column outbox.settings.dead_letter_retention is 'Age at which dead letters kept beyond their partition are deleted.';
comment on column outbox.settings.failing_notice_after is 'An endpoint failing this long without one success gets the operational event endpoint.failing.';
comment on column outbox.settings.disable_after is 'An endpoint failing this long without one success is disabled.';
comment on column outbox.settings.ordered_skip_after is 'On an ordered endpoint, how long a failing delivery holds back the later events of its ordering key.';
comment on column outbox.settings.max_lost_leases is 'This many lost leases of one delivery make it a dead letter (crash_loop).';
