"""What a log line of an error shows: the lines of code, not what their variables held.

Reads: standard output. Writes: structlog's configuration, which is put back.
Guarantee: neither a machine's line nor a person's has local variables in it.
If it is wrong: a bug prints the secret that it was working with.
"""

from __future__ import annotations

import sys
from uuid import uuid4

import pytest
import structlog

from outbox_worker import telemetry


@pytest.fixture(params=[False, True], ids=["a-pipe", "a-terminal"])
def log(request, monkeypatch):
    kept = structlog.get_config()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: request.param, raising=False)
    telemetry.configure("debug")
    yield structlog.get_logger()
    structlog.configure(**kept)


def test_a_traceback_in_the_log_holds_no_local_variable(log, capsys):
    """Beside the exception's own text there is nothing but code."""

    def fails(end: str) -> None:
        secret = f"whsec_{end}"  # so that no line of code holds it
        raise RuntimeError(f"a bug with {len(secret)} characters")

    try:
        fails("marker")
    except RuntimeError:
        log.exception("went.wrong")
    said = capsys.readouterr().out
    assert "Traceback" in said
    assert "a bug with 12 characters" in said
    assert "whsec_marker" not in said


def test_a_delivery_that_met_a_bug_says_which_and_where_but_not_with_what(log, capsys, monkeypatch):
    """An operator reports it with this line alone."""
    monkeypatch.setattr(telemetry, "log", log)
    try:
        {"present": 1}["whsec_" + "marker"]
    except KeyError as error:
        telemetry.delivery_crashed(uuid4(), uuid4(), error)
    said = capsys.readouterr().out
    assert "KeyError" in said
    assert "test_tracebacks.py:" in said
    assert "marker" not in said
