"""The command line's contract: exit codes, messages, and what reaches a terminal, a pipe and a machine."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from outbox_worker.cli import COMMANDS, app, run
from outbox_worker.cli.endpoint import app as endpoint_app
from outbox_worker.cli.output import clean
from tests.support.commands import Commands

ROOT = Path(__file__).parents[2]
NOWHERE = "postgresql://somebody:hunter2@127.0.0.1:1/nowhere"
GROUPED = [name for group in COMMANDS.values() for name in group]
OF_ENDPOINT = sorted(
    command.name or command.callback.__name__ for command in endpoint_app.registered_commands
)
READING = [
    ["events"],
    ["endpoint", "list"],
    ["search"],
    ["tail"],
    ["status"],
    ["check"],
]


@pytest.fixture
def cli(dsn_of) -> Commands:
    return Commands(dsn_of())


@pytest.fixture
def offline() -> Commands:
    return Commands(None)


def in_a_process(arguments, dsn, **options):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
    return subprocess.Popen(
        [sys.executable, "-m", "outbox_worker", *arguments],
        env={**environment, "OUTBOX_DATABASE_URL": dsn, "TERM": "xterm", "COLUMNS": "120"},
        cwd=ROOT,
        **options,
    )


def test_the_version_is_printed_without_any_setting(offline):
    """`--version` needs neither settings nor a database."""
    ran = offline("--version")
    assert (ran.code, ran.out) == (0, "outbox-worker 0.1.0\n")


@pytest.mark.parametrize("command", [[], *([name] for name in GROUPED), ["endpoint"]])
def test_every_command_explains_itself(offline, command):
    """`--help` of each command is there, without settings, and without escape codes in a pipe."""
    ran = offline(*command, "--help")
    assert ran.code == 0
    assert "Usage: outbox-worker" in ran.out
    assert "\x1b" not in ran.out


@pytest.mark.parametrize("command", OF_ENDPOINT)
def test_every_endpoint_command_explains_itself(offline, command):
    """`endpoint … --help` is there for each of its commands."""
    ran = offline("endpoint", command, "--help")
    assert ran.code == 0
    assert f"outbox-worker endpoint {command}" in ran.out


def test_every_command_of_the_design_is_registered():
    """The names that people rely on."""
    designed = [
        "demo",
        "run",
        "migrate",
        "check",
        "keygen",
        "rekey",
        "index",
        "publish",
        "status",
        "tail",
        "search",
        "show",
        "replay",
        "cancel",
        "restored",
        "events",
    ]
    assert sorted(GROUPED) == sorted(designed)
    assert (
        sorted(["create", "list", "show", "update", "headers", "rotate", "pause", "resume", "delete", "test"])
        == OF_ENDPOINT
    )
    assert len(app.registered_commands) == len(designed)


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["events"], {}, "OUTBOX_DATABASE_URL is not set"),
        (["events"], {"OUTBOX_DATABSE_URL": "x"}, "OUTBOX_DATABSE_URL is not a setting"),
        (["events", "--colour"], {}, "outbox-worker events --help"),
        (["no-such-command"], {}, "no-such-command"),
        (["show", "not-a-uuid"], {}, "valid UUID"),
        (["search", "--since", "yesterday"], {}, "'yesterday' is not a time"),
        (["search", "--status", "5x"], {}, "'5x' is not an HTTP status"),
        (["replay"], {}, "say what to replay"),
        (["publish", "ws_1", "message.received"], {}, "payload"),
    ],
)
def test_bad_usage_and_bad_configuration_exit_2_and_say_what_to_do(offline, arguments, environment, said):
    """Nothing is printed on standard output, the message is on standard error."""
    ran = offline(*arguments, **environment)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_a_database_that_is_not_there_exits_3(offline):
    """What was tried, what was found, what to do; not the password."""
    ran = offline("events", OUTBOX_DATABASE_URL=NOWHERE)
    assert ran.code == 3
    assert "connecting to the database" in ran.err
    assert "Check OUTBOX_DATABASE_URL" in ran.err
    assert "hunter2" not in ran.err


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://somebody:hunter2/x@127.0.0.1/db",
        "postgresql://somebody:hunter2@127.0.0.1:port/db",
        "postgresql://somebody:5432/hunter2@127.0.0.1/db",
        "host=127.0.0.1 password=a hunter2",
        "postgresql://somebody:%zzhunter2@127.0.0.1/db",
    ],
)
@pytest.mark.parametrize("command", ["events", "migrate", "check"])
def test_a_connection_string_that_cannot_be_read_is_not_quoted(offline, url, command):
    """Libpq's own message quotes pieces of the password."""
    ran = offline(command, OUTBOX_DATABASE_URL=url)
    assert ran.code == 2
    assert "is not a connection string" in ran.out + ran.err
    assert "hunter2" not in ran.out + ran.err


@pytest.mark.parametrize("command", ["events", "search", "status", "run", "check"])
def test_a_database_without_the_schema_exits_4(cluster, empty_database, command):
    """The message names the command that makes the schema."""
    ran = Commands(cluster.dsn(empty_database))(command)
    assert ran.code == 4
    assert "outbox-worker migrate" in ran.out + ran.err


def test_a_missing_right_exits_3_and_names_the_role(cluster, clone):
    """A login that may not publish is told which role may."""
    ran = Commands(cluster.dsn(clone, "reader_login"))("publish", "ws_1", "message.received", "--example")
    assert ran.code == 3
    assert "outbox_app" in ran.err


def test_a_bug_exits_1_and_shows_its_traceback_only_at_debug(offline, monkeypatch):
    """A short message, and how to get the long one."""

    def broken() -> None:
        raise RuntimeError("out of cheese")

    monkeypatch.setattr(run, "load", broken)
    short = offline("run")
    assert short.code == 1
    assert "bug in outbox-worker: RuntimeError: out of cheese" in short.err
    assert "Traceback" not in short.err
    long = offline("run", OUTBOX_DATABASE_URL=NOWHERE, OUTBOX_LOG_LEVEL="debug")
    assert long.code == 1
    assert "Traceback" in long.err


def test_an_interrupted_command_exits_130(offline, monkeypatch):
    """Ctrl-C is not a bug."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "load", interrupted)
    assert offline("run").code == 130


@pytest.mark.parametrize("command", READING)
def test_a_pipe_gets_plain_lines_and_json_gets_objects_only(cli, command):
    """No escape codes in a pipe, whatever FORCE_COLOR says; with --json every line parses."""
    cli.environment["FORCE_COLOR"] = "1"
    assert "\x1b" not in cli(*command).out
    assert all(isinstance(row, dict) for row in cli(*command, "--json").json)


def test_a_terminal_gets_colours_and_tables(dsn_of):
    """The same command on a pseudo-terminal writes escape codes."""
    try:
        ours, theirs = pty.openpty()
    except OSError as error:  # a container without /dev/pts
        pytest.skip(f"no pseudo-terminal here: {error}")
    process = in_a_process(["events"], dsn_of(), stdout=theirs)
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
    except OSError:  # how a pseudo-terminal says that the other side is closed
        pass
    os.close(ours)
    assert process.wait(20) == 0
    assert b"\x1b[" in seen
    assert b"message.received" in seen


def test_a_reader_that_goes_away_ends_the_command_quietly(dsn_of):
    """`… | head -1` is no failure and prints no traceback."""
    process = in_a_process(["events", "--json"], dsn_of(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(20), errors) == (0, b"")


def test_migrate_creates_the_schema_and_the_second_time_changes_nothing(cluster, empty_database):
    """`--dry-run` prints SQL and changes nothing; migrate applies it, once."""
    commands = Commands(cluster.dsn(empty_database))
    dry = commands("migrate", "--dry-run")
    assert dry.code == 0
    assert "create table outbox.settings" in dry.out
    assert commands("events").code == 4
    assert "applied migrations/0001" in commands("migrate").out
    assert "nothing to apply" in commands("migrate").out
    assert commands("events").code == 0


def test_keygen_writes_a_file_for_its_owner_only_and_installs_the_public_key(
    cli, db, tmp_path, monkeypatch, vault_key
):
    """Mode 0600, the public key installed, never a second time to the same file, no key on any stream."""
    monkeypatch.setattr("outbox_worker.vault.generate_key", lambda: vault_key)
    file = tmp_path / "vault.key"
    ran = cli("keygen", "--out", file, "--json")
    assert ran.code == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text() == vault_key[0]
    installed = db.execute("select key_id from outbox.vault_keys where active").fetchone()[0]
    assert ran.json == [{"file": str(file), "installed": True, "key_id": installed}]
    again = cli("keygen", "--out", file)
    assert again.code == 2
    assert "exists already" in again.err
    assert "PRIVATE" not in ran.out + ran.err + again.out + again.err


def test_keygen_without_install_needs_no_database(offline, tmp_path, monkeypatch, vault_key):
    """A key for another machine is made without any setting."""
    monkeypatch.setattr("outbox_worker.vault.generate_key", lambda: vault_key)
    ran = offline("keygen", "--out", tmp_path / "k", "--no-install")
    assert ran.code == 0
    assert "not installed" in ran.out


def test_control_characters_are_spelled_out():
    """What a receiver answers cannot drive the terminal of whoever reads it."""
    assert clean("a\x1b[2Jb\x9b31m\u202ec\r\x00") == r"a\x1b[2Jb\x9b31m\u202ec\r\x00"
    assert clean("two\nlines\tand ünïcode ✓") == "two\nlines\tand ünïcode ✓"
