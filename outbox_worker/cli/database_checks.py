"""What `check` looks at in the database: server, schema, rights, partitions, durability.

Reads: catalogues and settings, as the worker's login. Writes: nothing.
"""

from collections.abc import Iterator

from outbox_worker.cli.failures import CONFIGURATION, DATABASE, SCHEMA
from outbox_worker.cli.findings import Finding, Patient, fail, ok, warn
from outbox_worker.cli.session import connected, one, rows
from outbox_worker.errors import DatabaseUnavailable, SchemaError
from outbox_worker.migrate import MINIMUM_SERVER, require_schema

# What a worker cannot do without, of each kind of work.
_NEEDED = (
    ("outbox.events", "select"),
    ("outbox.fan_out_queue", "delete"),
    ("outbox.open_deliveries", "insert"),
    ("outbox.open_deliveries", "delete"),
    ("outbox.finished_deliveries", "insert"),
    ("outbox.recorded_attempts", "insert"),
    ("outbox.endpoint_vault", "select"),
    ("outbox.worker_processes", "insert"),
)


def server(patient: Patient) -> Iterator[Finding]:
    info = patient.connection.info
    version = str(one(patient.connection, "show server_version"))
    where = f"PostgreSQL {version}, database {info.dbname} at {info.host or 'local socket'}"
    if info.server_version < MINIMUM_SERVER:
        yield fail(
            "server", where, "Upgrade: outbox-worker needs PostgreSQL 15 or newer.", exit_code=DATABASE
        )
    elif one(patient.connection, "select pg_is_in_recovery()"):
        yield fail(
            "server",
            f"{where}: a read-only standby",
            "Point OUTBOX_DATABASE_URL at the primary.",
            exit_code=DATABASE,
        )
    else:
        yield ok("server", where)


def schema(patient: Patient) -> Iterator[Finding]:
    try:
        newer = require_schema(patient.connection)
    except SchemaError as error:
        yield fail("schema", str(error).partition(". ")[0], "Run: outbox-worker migrate", exit_code=SCHEMA)
        return
    if newer:
        yield warn("schema", newer, "Install the release of outbox-worker that the schema was migrated by.")
    else:
        found = one(patient.connection, "select max(version) from outbox.schema_migrations")
        yield ok("schema", f"version {found}, as this release needs it")


def home(patient: Patient) -> Iterator[Finding]:
    why = one(patient.connection, "select outbox.why_held()")
    if why:
        yield fail(
            "home",
            f"no worker may send: {why}",
            "Run: outbox-worker restored, then again with --release or --cancel-until.",
            exit_code=CONFIGURATION,
        )
    else:
        yield ok("home", "no restored copy; workers may send")


def role(patient: Patient) -> Iterator[Finding]:
    who = rows(
        patient.connection, "select rolname, rolsuper from pg_catalog.pg_roles where rolname = current_user"
    )[0]
    missing = [f"{verb} on {table}" for table, verb in _NEEDED if not may(patient, table, verb)]
    if missing:
        yield fail(
            "role",
            f"{who['rolname']} lacks: {', '.join(missing)}",
            f"Let a DBA run: grant outbox_worker to {who['rolname']};",
            exit_code=DATABASE,
        )
    elif who["rolsuper"]:
        yield warn(
            "role",
            f"{who['rolname']} is a superuser",
            "Give the worker a login of its own: create role outbox_login login in role outbox_worker;",
        )
    else:
        yield ok("role", f"{who['rolname']} has what a worker needs and is no superuser")


def may(patient: Patient, table: str, verb: str) -> bool:
    """Whether the login may, if only some columns; DELETE knows no columns."""
    whole = "select pg_catalog.has_table_privilege(%s, %s)"
    some = "select pg_catalog.has_any_column_privilege(%s, %s)"
    return bool(one(patient.connection, whole if verb == "delete" else some, [table, verb]))


def endpoints(patient: Patient) -> Iterator[Finding]:
    held = rows(
        patient.connection,
        "select hold_reason, count(*) as endpoints from outbox.endpoints "
        "where hold_reason is not null and state <> 'deleted' group by 1",
    )
    for row in held:
        advice = {
            "origin_changed": "Renew secret and headers for the new URL: endpoint rotate, endpoint headers.",
            "secret_unreadable": "Bring back the key that sealed them and run rekey; or: endpoint rotate, endpoint headers.",
        }
        yield warn(
            "endpoints", f"{row['endpoints']} held: {row['hold_reason']}", advice.get(row["hold_reason"], "")
        )
    if not held:
        yield ok("endpoints", "none is held")


def partitions(patient: Patient) -> Iterator[Finding]:
    alarm = one(patient.connection, "select outbox.partition_alarm()")
    if alarm:
        yield fail(
            "partitions",
            alarm,
            "Start a worker, or run: select outbox.create_partitions();",
            exit_code=DATABASE,
        )
    else:
        yield ok("partitions", "made at least 3 days ahead, none is overdue")


def decryption(patient: Patient) -> Iterator[Finding]:
    open_to_all = one(
        patient.connection,
        """
        select string_agg(distinct format('%I.%I', n.nspname, p.proname), ', ')
        from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
        where p.proname ~ '^pgp_(pub|sym)_decrypt' and has_function_privilege('public', p.oid, 'execute')
        """,
    )
    if open_to_all:
        yield warn(
            "decryption",
            f"everybody may execute {open_to_all}; outbox-worker never does (CVE-2026-2005)",
            "If nothing of yours decrypts in the database: revoke execute on these functions from public.",
        )
    else:
        yield ok("decryption", "pgcrypto's decrypt functions are not open to everybody")


def durability(patient: Patient) -> Iterator[Finding]:
    level = one(
        patient.connection, "select setting from pg_catalog.pg_settings where name = 'synchronous_commit'"
    )
    unsafe = [f"synchronous_commit is {level}"] if level == "off" else []
    unsafe += [
        f"{name} is off"
        for name in ("fsync", "full_page_writes")
        if one(patient.connection, f"show {name}") == "off"
    ]
    if unsafe:
        yield warn(
            "durability",
            ", ".join(unsafe),
            "A crash of the server can lose committed events. Turn it on, at least for the app's transactions.",
        )
    else:
        yield ok("durability", f"synchronous_commit is {level}, fsync is on")


def old_snapshots(patient: Patient) -> Iterator[Finding]:
    found = rows(
        patient.connection,
        """
        select format('session %s of %s (%s)', a.pid, a.usename, a.application_name) as who,
               now() - a.xact_start as age
        from pg_catalog.pg_stat_activity a where a.backend_xmin is not null and a.xact_start < now() - interval '1 hour'
        union all
        select 'prepared transaction ' || p.gid, now() - p.prepared from pg_catalog.pg_prepared_xacts p
        where p.prepared < now() - interval '1 hour'
        union all
        select 'replication slot ' || s.slot_name || ' (inactive)', null from pg_catalog.pg_replication_slots s
        where not s.active and (s.xmin is not null or s.catalog_xmin is not null)
        """,
    )
    for row in found:
        age = f" for {row['age']}".partition(".")[0] if row["age"] else ""
        yield warn(
            "old snapshots",
            f"{row['who']} holds back vacuum{age}",
            "End it, or the queue tables grow and slow down.",
        )
    if not found:
        sees_all = one(patient.connection, "select pg_has_role(current_user, 'pg_read_all_stats', 'usage')")
        blind = "" if sees_all else " (of its own sessions: grant pg_read_all_stats to see the others)"
        yield ok("old snapshots", f"none is older than an hour{blind}")


def owner(patient: Patient) -> Iterator[Finding]:
    if patient.settings.owner_database_url is None:
        return
    try:
        with connected(patient.settings.owner_url, variable="OUTBOX_OWNER_DATABASE_URL") as connection:
            may = one(connection, "select pg_has_role(current_user, 'outbox_owner', 'member')")
            who = one(connection, "select current_user")
    except DatabaseUnavailable as error:
        yield fail("owner", str(error), "Check OUTBOX_OWNER_DATABASE_URL.", exit_code=DATABASE)
        return
    if may:
        yield ok("owner", f"{who} may become outbox_owner")
    else:
        yield fail(
            "owner",
            f"{who} may not become outbox_owner",
            f"Let a DBA run: grant outbox_owner to {who};",
            exit_code=CONFIGURATION,
        )
