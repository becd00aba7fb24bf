"""Who the workers of the tests log in as, by the log of the server that they worked on.

Reads: a server's log, which names every connection (`log_connections`). Writes: nothing.
Guarantee: a session of a worker, whoever started it and how, is found by the name that it gives itself.
If it is wrong: the suite shows that a superuser can do what a worker does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LOGGED = {"log_connections": "on"}
LOGINS = {"worker_login", "outbox_demo_worker"}  # members of outbox_worker, and of nothing else
_SESSION = re.compile(r"connection authorized: user=(\S+) .*application_name=(outbox-(?:worker|listen) .*)")


def sessions_of_workers(folder: Path) -> list[tuple[str, str]]:
    """Role and name of each session that a worker opened, since the server was first started."""
    logs = [log.read_text(errors="replace") for log in folder.glob("server.log*")]
    return [match.groups() for log in logs for match in _SESSION.finditer(log)]


def workers_of_another_role(folder: Path) -> list[tuple[str, str]]:
    return [(role, name) for role, name in sessions_of_workers(folder) if role not in LOGINS]
