-- bookkeeping: what was applied, with checksums. Run as outbox_owner after bootstrap.sql at every migrate; changes
-- nothing twice.
create table if not exists outbox.schema_migrations (
    version integer primary key, name text not null, sha256 text not null, applied_at timestamptz not null default now());
create table if not exists outbox.schema_definitions (
    name text primary key, sha256 text not null, applied_at timestamptz not null default now());
comment on table outbox.schema_migrations is 'Migrations applied, with their checksums; outbox-worker migrate writes it.';
comment on column outbox.schema_migrations.version is 'Number of the migration.';
comment on column outbox.schema_migrations.name is 'Its file.';
comment on column outbox.schema_migrations.sha256 is 'Checksum of the file as applied.';
comment on column outbox.schema_migrations.applied_at is 'When.';
comment on table outbox.schema_definitions is 'Definitions applied, with their checksums; outbox-worker migrate writes it.';
comment on column outbox.schema_definitions.name is 'The file.';
comment on column outbox.schema_definitions.sha256 is 'Checksum of the file as applied.';
comment on column outbox.schema_definitions.applied_at is 'When.';
