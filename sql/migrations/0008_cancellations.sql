-- Events canceled before they were fanned out.

create table outbox.canceled_events (
    event_id      uuid primary key,
    workspace_id  text not null,
    canceled_by   text not null default session_user,
    canceled_at   timestamptz not null default clock_timestamp()
);
create index canceled_events_at_idx on outbox.canceled_events (canceled_at);
comment on table outbox.canceled_events is 'Events that outbox.cancel stopped as a whole: the fan-out passes over them.';
comment on column outbox.canceled_events.event_id is 'The event.';
comment on column outbox.canceled_events.workspace_id is 'The tenant.';
comment on column outbox.canceled_events.canceled_by is 'Login role.';
comment on column outbox.canceled_events.canceled_at is 'When.';
