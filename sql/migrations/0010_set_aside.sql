-- Events that could not be fanned out.

create table outbox.set_aside_events (
    event_id      uuid primary key,
    workspace_id  text not null,
    error         text not null,
    set_aside_at  timestamptz not null default clock_timestamp()
);
comment on table outbox.set_aside_events is 'Events whose fan-out the database refused: kept out of the queue so that they stop no other. outbox.replay(event_id, endpoint_id) sends one all the same.';
comment on column outbox.set_aside_events.event_id is 'The event.';
comment on column outbox.set_aside_events.workspace_id is 'The tenant.';
comment on column outbox.set_aside_events.error is 'What the database said.';
comment on column outbox.set_aside_events.set_aside_at is 'When.';
