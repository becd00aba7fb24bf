-- Endpoints, their versions, and their sealed secrets.

create table outbox.endpoints (
    endpoint_id       uuid not null default outbox.uuid7(),
    workspace_id      text not null check (length(workspace_id) between 1 and 200),
    url               text not null,
    event_types       text[] not null check (cardinality(event_types) between 1 and 200),
    description       text not null default '' check (length(description) <= 2000),
    filter            jsonpath,
    ordered           boolean not null default false,
    max_in_flight     integer check (max_in_flight between 1 and 10000),
    max_per_second    numeric check (max_per_second > 0 and max_per_second <= 100000),
    timeout           interval check (timeout between '100 ms' and '60 s'),
    retry_schedule    interval[] check (cardinality(retry_schedule) between 1 and 50
                                        and interval '0 s' < all (retry_schedule) and interval '30 days' >= all (retry_schedule)),
    header_names      text[] not null default '{}',
    state             text not null default 'active' check (state in ('active', 'paused', 'disabled', 'deleted')),
    state_reason      text,
    state_changed_at  timestamptz not null default now(),
    hold_reason       text check (hold_reason in ('origin_changed', 'secret_unreadable')),
    filter_error      text,
    failing_since     timestamptz,
    failing_noticed   boolean not null default false,
    version           integer not null default 1,
    sealed_at         timestamptz not null default now(),
    shard             smallint not null generated always as ((abs(hashtext(endpoint_id::text)::bigint) % 64)::smallint) stored,
    created_at        timestamptz not null default now(),
    updated_at        timestamptz not null default now(),
    primary key (endpoint_id, workspace_id)
) with (fillfactor = 80);
create index endpoints_workspace_idx on outbox.endpoints (workspace_id);
create index endpoints_shard_idx on outbox.endpoints (shard, endpoint_id);
create index endpoints_deleted_idx on outbox.endpoints (state_changed_at) where state = 'deleted';

comment on table outbox.endpoints is 'One consumer: a URL with its subscription, limits and state. Secrets live sealed in endpoint_vault.';
comment on column outbox.endpoints.endpoint_id is 'Identifier, unique across databases.';
comment on column outbox.endpoints.workspace_id is 'The tenant that owns the endpoint.';
comment on column outbox.endpoints.url is 'Where deliveries are POSTed.';
comment on column outbox.endpoints.event_types is 'The subscription: exact names, prefix.*, or * (which leaves operational types out).';
comment on column outbox.endpoints.description is 'Free text for people.';
comment on column outbox.endpoints.filter is 'jsonpath predicate on the payload, evaluated with @@; null takes everything.';
comment on column outbox.endpoints.ordered is 'Deliver the events of one ordering key one at a time, in order.';
comment on column outbox.endpoints.max_in_flight is 'Most requests at once, over all workers; null leaves it to the adaptive limit.';
comment on column outbox.endpoints.max_per_second is 'Most requests a second, over all workers; null is no limit.';
comment on column outbox.endpoints.timeout is 'Deadline of the whole exchange; null takes the worker''s setting, which also bounds it.';
comment on column outbox.endpoints.retry_schedule is 'Delays after each failed attempt; null takes 30 s, 2 min, 10 min, 1 h, 4 h, 12 h, 24 h.';
comment on column outbox.endpoints.header_names is 'Names of the custom headers; the values are sealed.';
comment on column outbox.endpoints.state is 'active, paused (by a person), disabled (gone or failing) or deleted.';
comment on column outbox.endpoints.state_reason is 'Why the state is not active: gone, failing, or what a person gave.';
comment on column outbox.endpoints.state_changed_at is 'When the state last changed.';
comment on column outbox.endpoints.hold_reason is 'Why deliveries wait although the endpoint is active: its secrets belong to another origin, or cannot be opened.';
comment on column outbox.endpoints.filter_error is 'The filter ran past its deadline and matches nothing until it is changed.';
comment on column outbox.endpoints.failing_since is 'First failure since the last success; null while it answers.';
comment on column outbox.endpoints.failing_noticed is 'Whether endpoint.failing was published for this run of failures.';
comment on column outbox.endpoints.version is 'Counts changes of what is sent; each is kept in endpoint_versions.';
comment on column outbox.endpoints.sealed_at is 'When the secret or the headers were last sealed.';
comment on column outbox.endpoints.shard is 'Which of 64 shards; one worker at a time owns a shard and enforces its endpoints'' limits.';
comment on column outbox.endpoints.created_at is 'When the endpoint was created.';
comment on column outbox.endpoints.updated_at is 'When the row last changed.';

create table outbox.endpoint_versions (
    endpoint_id   uuid not null,
    workspace_id  text not null,
    version       integer not null,
    url           text not null,
    event_types   text[] not null,
    filter        jsonpath,
    header_names  text[] not null,
    signature_header text not null,
    changed_by    text not null default session_user,
    created_at    timestamptz not null default now(),
    primary key (endpoint_id, version, workspace_id)
);
comment on table outbox.endpoint_versions is 'What an endpoint was at each version: attempts name the version they were sent with.';
comment on column outbox.endpoint_versions.endpoint_id is 'The endpoint.';
comment on column outbox.endpoint_versions.workspace_id is 'The tenant that owns the endpoint.';
comment on column outbox.endpoint_versions.version is 'Number of the version, from 1.';
comment on column outbox.endpoint_versions.url is 'URL of this version.';
comment on column outbox.endpoint_versions.event_types is 'Subscription of this version.';
comment on column outbox.endpoint_versions.filter is 'Filter of this version.';
comment on column outbox.endpoint_versions.header_names is 'Names of the custom headers of this version.';
comment on column outbox.endpoint_versions.signature_header is 'Name of the product''s signature header at the time.';
comment on column outbox.endpoint_versions.changed_by is 'Login role that made the change.';
comment on column outbox.endpoint_versions.created_at is 'When the version began.';

create table outbox.vault_keys (
    key_id      text primary key check (key_id ~ '^[0-9A-F]{16}$'),
    public_key  bytea not null,
    active      boolean not null default true,
    created_at  timestamptz not null default now()
);
create unique index vault_keys_active_idx on outbox.vault_keys (active) where active;
comment on table outbox.vault_keys is 'Public keys that seal secrets and headers. The private keys exist only in the workers.';
comment on column outbox.vault_keys.key_id is 'Key id of the encryption subkey, as pgcrypto''s pgp_key_id reports it.';
comment on column outbox.vault_keys.public_key is 'OpenPGP public key with exactly one encryption subkey.';
comment on column outbox.vault_keys.active is 'The one key that new blobs are sealed with.';
comment on column outbox.vault_keys.created_at is 'When the key was installed.';

create table outbox.endpoint_vault (
    endpoint_id          uuid not null,
    workspace_id         text not null,
    secret               bytea not null,
    secret_origin        text not null,
    previous_secret      bytea,
    previous_expires_at  timestamptz,
    headers              bytea,
    headers_origin       text,
    primary key (endpoint_id, workspace_id),
    check ((previous_secret is null) = (previous_expires_at is null)),
    check ((headers is null) = (headers_origin is null))
);
comment on table outbox.endpoint_vault is 'Sealed signing secrets and custom headers. Written by functions only, opened in the worker only.';
comment on column outbox.endpoint_vault.endpoint_id is 'The endpoint.';
comment on column outbox.endpoint_vault.workspace_id is 'The tenant that owns the endpoint.';
comment on column outbox.endpoint_vault.secret is 'Current signing secret, sealed.';
comment on column outbox.endpoint_vault.secret_origin is 'Origin of the URL that the secret was sealed for.';
comment on column outbox.endpoint_vault.previous_secret is 'The secret before a rotation, sealed; signs too until previous_expires_at.';
comment on column outbox.endpoint_vault.previous_expires_at is 'End of the rotation''s overlap.';
comment on column outbox.endpoint_vault.headers is 'Custom headers, sealed; null when there are none.';
comment on column outbox.endpoint_vault.headers_origin is 'Origin of the URL that the headers were sealed for.';
