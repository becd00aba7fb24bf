"""The doctor: each fault that it is there to find, made on purpose."""

from __future__ import annotations

import resource

import psycopg
import pytest

from outbox_worker.cli import check as doctor
from outbox_worker.cli import worker_checks
from tests.support import factories
from tests.support.commands import Commands


@pytest.fixture
def cli(db, dsn_of, vault_key) -> Commands:
    factories.install_key(db, vault_key)
    return Commands(dsn_of("worker_login"), {"OUTBOX_VAULT_KEY": vault_key[0]})


def found(ran) -> dict[str, dict]:
    """Give the worst finding of each check."""
    order = ["ok", "warn", "FAIL"]
    worst: dict[str, dict] = {}
    for row in sorted(ran.json, key=lambda row: order.index(row["level"])):
        worst[row["check"]] = row
    return worst


def test_a_healthy_set_up_has_no_fail_and_exits_0(cli, vault_key):
    """Every check reports; settings are listed and masked."""
    ran = cli("check", "--json")
    rows = found(ran)
    assert ran.code == 0, ran.out
    assert {name for name, row in rows.items() if row["level"] == "FAIL"} == set()
    assert {"settings", *doctor.CHECKS} - set(rows) == {"owner"}  # only looked at where it is set
    for name in (
        "server",
        "schema",
        "role",
        "vault",
        "clock",
        "listen",
        "egress",
        "endpoints",
        "partitions",
        "open files",
    ):
        assert rows[name]["level"] == "ok", rows[name]
    assert "max_in_flight=1000" in rows["settings"]["found"]
    assert "vault_key=***" in rows["settings"]["found"]
    password = psycopg.conninfo.conninfo_to_dict(cli.dsn)["password"]
    for text in (ran.out, cli("check").out):
        assert password not in text
        assert "PRIVATE KEY" not in text


def test_each_line_says_level_check_and_finding(cli):
    """In a pipe: tab-separated, the level first, no escape codes."""
    ran = cli("check")
    assert {line.split("\t")[0] for line in ran.lines} <= {"ok", "warn", "FAIL"}
    assert all(len(line.split("\t")) in {3, 4} for line in ran.lines)
    assert all(len(line.split("\t")) == 4 for line in ran.lines if not line.startswith("ok"))


def test_a_superuser_is_warned_about(cli, dsn_of):
    """A worker owns nothing."""
    cli.dsn = dsn_of()
    rows = found(cli("check", "--json"))
    assert rows["role"]["level"] == "warn"
    assert "superuser" in rows["role"]["found"]


def test_a_login_without_the_workers_rights_fails_with_3(cli, dsn_of):
    """What is missing is named, and the grant that gives it; the other checks still run."""
    cli.dsn = dsn_of("reader_login")
    ran = cli("check", "--json")
    rows = found(ran)
    assert ran.code == 3
    assert rows["role"]["level"] == "FAIL"
    assert "grant outbox_worker to reader_login" in rows["role"]["advice"]
    assert rows["clock"]["level"] == "ok"


def test_a_substituted_public_key_is_reported(cli, db):
    """Same key id, other bytes: whoever put it there reads every new secret."""
    db.execute("update outbox.vault_keys set public_key = public_key || '\\x00'")
    ran = cli("check", "--json")
    assert ran.code == 2
    assert "substituted" in found(ran)["vault"]["found"]


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("delete from outbox.vault_keys", "no public key is installed"),
        ("update outbox.vault_keys set key_id = '00000000DEADBEEF'", "not in the keyring"),
    ],
)
def test_a_key_that_workers_cannot_open_with_fails_with_2(cli, db, statement, said):
    """No key, or another one than this worker has."""
    db.execute(statement)
    ran = cli("check", "--json")
    assert ran.code == 2
    assert said in found(ran)["vault"]["found"]


def test_a_missing_private_key_fails_with_2(cli):
    """The keyring cannot be loaded."""
    del cli.environment["OUTBOX_VAULT_KEY"]
    ran = cli("check", "--json")
    assert ran.code == 2
    assert "keygen" in found(ran)["vault"]["found"] + found(ran)["vault"]["advice"]


def test_what_a_demo_may_and_production_must_not_is_loud(cli, db):
    """Plain http, IP literals and private networks each get a warning, and no exit code."""
    factories.allow_loopback(db)
    ran = cli("check", "--json", OUTBOX_ALLOW_NETWORKS="10.0.0.0/8")
    said = " ".join(row["found"] for row in ran.json if (row["check"], row["level"]) == ("egress", "warn"))
    assert ran.code == 0
    for word in ("PLAIN HTTP", "IP ADDRESSES", "PRIVATE NETWORKS", "10.0.0.0/8"):
        assert word in said


def test_missing_partitions_fail(cli, db):
    """Publishing would fail soon."""
    db.execute("update outbox.partition_registry set upper_bound = now() where parent = 'events'")
    ran = cli("check", "--json")
    assert ran.code == 3
    assert found(ran)["partitions"]["level"] == "FAIL"


def test_held_endpoints_are_warned_about(cli, db):
    """Their deliveries wait for a person."""
    endpoint_id, _ = factories.make_endpoint(db, "https://hooks.example.com/")
    db.execute("select outbox.hold_endpoint(%s, 1)", [endpoint_id])
    row = found(cli("check", "--json"))["endpoints"]
    assert (row["level"], row["found"]) == ("warn", "1 held: secret_unreadable")


def test_decryption_that_everybody_may_execute_is_warned_about(cli, db):
    """It is PostgreSQL's default; revoking it is the DBA's decision."""
    row = found(cli("check", "--json"))["decryption"]
    assert row["level"] == "warn"
    for function in row["found"].split("execute ")[1].split(";")[0].split(", "):
        for (signature,) in db.execute(
            "select oid::regprocedure::text from pg_proc where proname = %s", [function.split(".")[-1]]
        ).fetchall():
            db.execute(f"revoke execute on function {signature} from public")
    assert found(cli("check", "--json"))["decryption"]["level"] == "ok"


def test_notifications_that_do_not_arrive_fail_unless_poll_only(cli, monkeypatch):
    """Behind a transaction pooler LISTEN is deaf; poll only asks for nothing else."""
    monkeypatch.setattr(worker_checks, "_NOTIFY_SECONDS", 0.01)
    monkeypatch.setattr(psycopg.Connection, "notifies", lambda self, **_: iter(()))
    ran = cli("check", "--json")
    assert ran.code == 2
    assert "OUTBOX_POLL_ONLY" in found(ran)["listen"]["advice"]
    assert cli("check", "--json", OUTBOX_POLL_ONLY="true").code == 0


def test_too_few_open_files_fail(cli, monkeypatch):
    """The limit is compared with OUTBOX_MAX_IN_FLIGHT."""
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (256, 512))
    ran = cli("check", "--json")
    assert ran.code == 2
    assert found(ran)["open files"]["level"] == "FAIL"
    assert cli("check", "--json", OUTBOX_MAX_IN_FLIGHT="400").code == 0


def test_a_commit_that_may_be_lost_is_warned_about(cli, db, clone):
    """`synchronous_commit = off` as the database's default."""
    db.execute(f"alter database {clone} set synchronous_commit = off")
    row = found(cli("check", "--json"))["durability"]
    assert row["level"] == "warn"
    assert "synchronous_commit is off" in row["found"]


def test_the_owners_login_is_looked_at_where_it_is_set(cli, dsn_of):
    """It must be able to become outbox_owner."""
    good = found(cli("check", "--json", OUTBOX_OWNER_DATABASE_URL=dsn_of()))
    assert good["owner"]["level"] == "ok"
    bad = cli("check", "--json", OUTBOX_OWNER_DATABASE_URL=dsn_of("reader_login"))
    assert (bad.code, found(bad)["owner"]["level"]) == (2, "FAIL")
