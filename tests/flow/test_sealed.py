"""What is sealed for one place is used for no other: moved URLs, broken and copied blobs, deleted endpoints.

Reads and writes: a clone of the template database; a receiver on loopback.
Guarantee: an endpoint whose secret or headers are not for its origin, or cannot be opened, is held and charged nothing.
If it is wrong: a customer's credentials are sent to somebody else.
"""

# ruff: noqa: N802  (the ids are the catalogue's)

from __future__ import annotations

import asyncio

import psycopg
import pysequoia
import pytest

from tests.support import receiver as act
from tests.support.factories import make_endpoint, new_key, publish, state_of
from tests.support.waiting import eventually


@pytest.mark.parametrize("way", ["update_endpoint", "operator"])
async def test_N25_url_and_headers_changed_at_once_hold_until_the_secret_is_renewed(
    shop, receiver, working, connect, way
):
    """New headers for the new host do not carry the old secret there; nothing is sent, nothing is charged."""
    endpoint, _ = make_endpoint(
        shop, "https://hooks.example.com/in", headers={"authorization": "Bearer marker"}
    )
    headers = '{"authorization": "Bearer fresh"}'
    if way == "update_endpoint":
        arguments = [endpoint, receiver.url, headers]
        connect("app_login").execute("select outbox.update_endpoint(%s, url => %s, headers => %s)", arguments)
    else:
        move = "update outbox.endpoints set url = %s, description = 'moved' where endpoint_id = %s"
        connect("operator_login").execute(move, [receiver.url, endpoint])
        connect("app_login").execute("select outbox.set_endpoint_headers(%s, %s)", [endpoint, headers])
    hold = "select hold_reason from outbox.endpoints"
    assert shop.execute(hold).fetchone() == ("origin_changed",)
    async with working():
        event_id = publish(shop)
        await eventually(lambda: state_of(shop, event_id) == "pending")
        connect("app_login").execute("select outbox.rotate_secret(%s)", [endpoint])
        assert shop.execute(hold).fetchone() == (None,)
        await eventually(lambda: state_of(shop, event_id) == "delivered")
    assert shop.execute("select attempt_count from outbox.deliveries").fetchone() == (1,)
    (request,) = receiver.requests
    assert dict(request.headers)["authorization"] == "Bearer fresh"
    assert (
        " " not in {name.lower(): value for name, value in request.headers}["webhook-signature"]
    )  # the old one is gone


def test_N25_a_url_moved_back_is_held_no_more(shop, receiver):
    """What was sealed for the origin serves it again; another path of the same origin never held."""
    endpoint, _ = make_endpoint(shop, f"{receiver.url}a", headers={"x-key": "1"})
    for url, hold in [
        (f"{receiver.url}b?c", None),
        ("https://hooks.example.com/", "origin_changed"),
        ("https://hooks.example.com:8443/", "origin_changed"),
        (receiver.url, None),
    ]:
        shop.execute("update outbox.endpoints set url = %s where endpoint_id = %s", [url, endpoint])
        assert shop.execute("select hold_reason from outbox.endpoints").fetchone() == (hold,)


def test_N25_no_update_ends_the_hold_of_a_moved_url(shop, receiver):
    """Not even the owner's UPDATE of the column; only what the worker could use ends it."""
    endpoint, _ = make_endpoint(shop, receiver.url)
    shop.execute(
        "update outbox.endpoints set url = 'https://hooks.example.com/' where endpoint_id = %s", [endpoint]
    )
    for change in (
        "hold_reason = null",
        "hold_reason = 'secret_unreadable'",
        "sealed_at = now()",
        "state = 'paused'",
    ):
        shop.execute(f"update outbox.endpoints set {change}")
        assert shop.execute("select hold_reason from outbox.endpoints").fetchone() == ("origin_changed",)


def test_deleting_an_endpoint_destroys_what_was_sealed_for_it(shop, receiver):
    """Secret, previous secret and headers are gone at once, and the endpoint does not come back."""
    endpoint, _ = make_endpoint(shop, receiver.url, headers={"x-key": "1"})
    kept, _ = make_endpoint(shop, receiver.url)
    shop.execute("select outbox.rotate_secret(%s)", [endpoint])
    shop.execute("select outbox.delete_endpoint(%s)", [endpoint])
    assert shop.execute("select endpoint_id from outbox.endpoint_vault").fetchall() == [(kept,)]
    for revive in ("select outbox.rotate_secret(%s)", "select outbox.resume_endpoint(%s)"):
        with pytest.raises(psycopg.Error) as raised:
            shop.execute(revive, [endpoint])
        assert raised.value.sqlstate == "OB009"
    with pytest.raises(psycopg.Error) as raised:
        shop.execute("update outbox.endpoints set state = 'active' where endpoint_id = %s", [endpoint])
    assert raised.value.sqlstate == "OB008"


TAMPERED = {
    "another key's": lambda _seal: pysequoia.encrypt(
        b"{}", [pysequoia.Cert.from_bytes(new_key()[1])], armor=False
    ),
    "empty": lambda _seal: b"",
    "noise": lambda _seal: bytes(range(256)),
    "cut short": lambda seal: seal(b'{"value": "x"}')[:-30],
    "flipped": lambda seal: seal(b'{"value": "x"}')[:-1] + b"\x00",
    "no envelope": lambda seal: seal(b"whsec_x"),
    "a list": lambda seal: seal(b'["value"]'),
    "no value": lambda seal: seal(b"{}"),
    "a number": lambda seal: seal(b'{"value": 1}'),
    "deep": lambda seal: seal(b'{"value": ' + b"[" * 100_000),
    "not text": lambda seal: seal(b"\xff\xfe"),
}


async def test_H14_every_kind_of_broken_blob_holds_its_endpoint_and_no_other(
    shop, receiver, working, vault_key
):
    """Missing key, damage, or an envelope that is none: held, an alert, no attempt charged, the worker goes on."""
    ours = pysequoia.Cert.from_bytes(vault_key[1])

    def seal(content):
        return pysequoia.encrypt(content, [ours], armor=False)

    intact, _ = make_endpoint(shop, receiver.url)
    broken = []
    for make in TAMPERED.values():
        for blob in ("secret", "headers"):
            endpoint, _ = make_endpoint(shop, f"{receiver.url}broken", headers={"x-a": "1"})
            shop.execute(
                f"update outbox.endpoint_vault set {blob} = %s where endpoint_id = %s", [make(seal), endpoint]
            )
            broken.append(endpoint)
    async with working():
        event_id = publish(shop)
        await eventually(lambda: state_of(shop, event_id, intact) == "delivered", 30)
        held = "select count(*) from outbox.endpoints where hold_reason = 'secret_unreadable'"
        await eventually(lambda: shop.execute(held).fetchone() == (len(broken),), 30)
        charged = "select coalesce(sum(attempt_count), 0), count(*) from outbox.open_deliveries"
        await eventually(lambda: shop.execute(charged).fetchone() == (0, len(broken)), 30)
    assert {request.path for request in receiver.requests} == {"/"}


async def test_a_signature_header_renamed_to_a_custom_one_holds_that_endpoint_and_stops_no_other(
    shop, receiver, working
):
    """A rule that becomes stricter later: what was stored before is held, and the worker still settles and goes on."""
    renamed = asyncio.Event()
    receiver.script("/clash", act.hold(renamed, act.status(500)))
    clashing, _ = make_endpoint(shop, f"{receiver.url}clash", headers={"x-own": "1"})
    other, _ = make_endpoint(shop, receiver.url)
    held = "select hold_reason from outbox.endpoints where endpoint_id = %s"
    failing = "select failing_since is not null from outbox.endpoints where endpoint_id = %s"
    async with working():
        first = publish(shop)
        await eventually(lambda: state_of(shop, first, other) == "delivered")
        await eventually(lambda: len(receiver.requests) == 2)
        shop.execute("update outbox.settings set signature_header = 'X-Own'")
        renamed.set()  # the failure is written to the endpoint's row, under the new rule
        await eventually(lambda: shop.execute(failing, [clashing]).fetchone() == (True,))
    async with working(name="another"):
        second = publish(shop)
        await eventually(lambda: state_of(shop, second, other) == "delivered")
        await eventually(lambda: shop.execute(held, [clashing]).fetchone() == ("secret_unreadable",))
    assert shop.execute(held, [other]).fetchone() == (None,)
    shop.execute("select outbox.pause_endpoint(%s)", [clashing])
