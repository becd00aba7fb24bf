"""What may not be stored as a URL, tried on the table by every path that a row can take.

Reads and writes: a clone of the template database; every change is rolled back.
Guarantee: INSERT, COPY, UPDATE, MERGE and both functions are refused alike, whoever the role.
If it is wrong: a forgotten path leads into our own network.
"""

from __future__ import annotations

import os
from contextlib import closing

import psycopg
import pytest

from tests.support.hostile_corpus import BAD_URLS


@pytest.fixture(scope="module")
def rules(cluster, template):
    name = f"outbox_stored_{os.getpid()}"
    with (
        cluster.database(name, template=template),
        closing(psycopg.connect(cluster.dsn(name), autocommit=True)) as connection,
    ):
        yield connection


BY_CASE = {case: [url for row, url in BAD_URLS if row.split("-")[0] == case] for case, _ in
           (row.split("-") for row, _ in BAD_URLS)}  # fmt: skip
COLUMNS = "outbox.endpoints (workspace_id, url, event_types)"


def inserted(connection, url):
    connection.execute(f"insert into {COLUMNS} values ('ws', %s, '{{*}}')", [url])


def copied(connection, url):
    with connection.cursor() as cursor, cursor.copy(f"copy {COLUMNS} from stdin") as copy:
        copy.write_row(("ws", url, ["*"]))


def updated(connection, url):
    connection.execute("update outbox.endpoints set url = %s", [url])


def merged(connection, url):
    connection.execute(
        "merge into outbox.endpoints e using (select %s::text as url) s on true when matched then update set url = s.url",
        [url],
    )


@pytest.mark.parametrize("case", BY_CASE)
def test_no_path_stores_a_hostile_url(rules, case):
    """INSERT, COPY, UPDATE, MERGE, by superuser, owner and operator, and both functions: the table itself refuses."""
    with rules.transaction(force_rollback=True):
        rules.execute("update outbox.settings set allow_plain_http = true")
        rules.execute(
            "insert into outbox.endpoints (workspace_id, url, event_types) values ('ws', 'https://a.example/', '{*}')"
        )
        rules.execute("grant outbox_app, outbox_operator, outbox_owner to current_user")
        known = rules.execute("select endpoint_id from outbox.endpoints").fetchone()[0]
        ways = {
            "superuser": ("none", [inserted, copied, updated, merged]),
            "owner": ("outbox_owner", [inserted, copied, updated, merged]),
            "operator": ("outbox_operator", [updated]),
            "app": (
                "outbox_app",
                [
                    lambda c, url: c.execute("select outbox.create_endpoint('ws', %s, '{*}')", [url]),
                    lambda c, url: c.execute("select outbox.update_endpoint(%s, %s)", [known, url]),
                ],
            ),
        }
        for who, (role, paths) in ways.items():
            rules.execute(f"set local role {role}")
            for url in BY_CASE[case]:
                for path in paths:
                    with pytest.raises(psycopg.Error) as refused, rules.transaction():
                        path(rules, url)
                    assert refused.value.sqlstate == "OB005", (who, url, refused.value)
                    assert "cannot store the URL" in refused.value.diag.message_primary
