-- The catalogue: what may be published, and what it means to a receiver.

create table outbox.event_types (
    name         text primary key
                 check (length(name) <= 200 and name ~ '^[a-z0-9_]+(\.[a-z0-9_]+)+$'),
    description  text not null check (length(description) between 1 and 2000),
    schema       jsonb check (jsonb_typeof(schema) = 'object'),
    example      jsonb check (jsonb_typeof(example) = 'object'),
    operational  boolean not null default false,
    built_in     boolean not null default false,
    patterns     text[] not null,
    created_at   timestamptz not null default now()
);
comment on table outbox.event_types is 'The catalogue of event types; publish refuses any other name.';
comment on column outbox.event_types.name is 'Dotted name, lower case: message.received.';
comment on column outbox.event_types.description is 'What happened, for the developer of a receiver.';
comment on column outbox.event_types.schema is 'JSON Schema of the payload: documentation for receivers, not enforced at publish.';
comment on column outbox.event_types.example is 'A complete example payload.';
comment on column outbox.event_types.operational is 'About the delivery itself; sent only to endpoints that subscribe to it by exact name.';
comment on column outbox.event_types.built_in is 'Shipped with outbox-worker; false for the app''s own.';
comment on column outbox.event_types.patterns is 'Every subscription pattern that matches this type.';
comment on column outbox.event_types.created_at is 'When the type was registered.';
