-- Home: the one database in which workers send, so that a copy of it sends nothing by itself.

create table outbox.home (
    only_row           boolean primary key default true check (only_row),
    system_identifier  bigint not null,
    database_oid       oid not null,
    timeline           bigint not null,
    held_because       text,
    reason             text,
    changed_by         text not null default session_user,
    changed_at         timestamptz not null default clock_timestamp()
);
comment on table outbox.home is 'One row once a worker has started: the database in which workers send. In a copy it names another one, and workers refuse to start (outbox.why_held).';
comment on column outbox.home.only_row is 'Always true: there is at most one row.';
comment on column outbox.home.system_identifier is 'The cluster (pg_control_system).';
comment on column outbox.home.database_oid is 'The database in it (pg_database.oid): renaming does not change it, copying does.';
comment on column outbox.home.timeline is 'Timeline of the cluster when a worker last started: a recovery and a failover begin a new one.';
comment on column outbox.home.held_because is 'Set by outbox.hold_restored: why workers must not send although this is their database.';
comment on column outbox.home.reason is 'Why it was held or released, in the words of who did it (set outbox.reason).';
comment on column outbox.home.changed_by is 'Login role of who changed the row last.';
comment on column outbox.home.changed_at is 'When it changed last.';
