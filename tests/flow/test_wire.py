"""What the worker really sends, verified by the published libraries, unchanged."""

# ruff: noqa: N802  (the ids are the catalogue's)

from __future__ import annotations

import json

import psycopg
import pytest
import standardwebhooks
import stripe
import svix

from tests.support.factories import SHORT, make_endpoint, publish
from tests.support.receiver import status
from tests.support.waiting import eventually

OWN_HEADER = "Edesy-Signature"


def standard(secret, body, headers):
    return standardwebhooks.Webhook(secret).verify(body, headers)


def svixs(secret, body, headers):
    return svix.Webhook(secret).verify(body, headers)


def stripes(secret, body, headers):
    stripe.WebhookSignature.verify_header(body.decode(), headers[OWN_HEADER.lower()], secret, tolerance=300)


VERIFIERS = [
    pytest.param(standard, standardwebhooks.WebhookVerificationError, id="standardwebhooks"),
    pytest.param(svixs, svix.WebhookVerificationError, id="svix"),
    pytest.param(stripes, stripe.SignatureVerificationError, id="stripe"),
]


def lowered(request):
    return {name.lower(): value for name, value in request.headers}


@pytest.fixture
async def rotated(shop, receiver, working):
    """One request signed in the middle of a rotation, with both secrets."""
    endpoint, old = make_endpoint(shop, receiver.url)
    async with working():
        publish(shop, payload={"text": "ünïcode \\u0022 “quotes”", "big": 12345678901234567890})
        await eventually(lambda: receiver.requests)
        new = shop.execute("select outbox.rotate_secret(%s)", [endpoint]).fetchone()[0]
        publish(shop)
        await eventually(lambda: len(receiver.requests) == 2)
        ended = shop.execute("select outbox.rotate_secret(%s, '0 s')", [endpoint]).fetchone()[0]
        publish(shop)
        await eventually(lambda: len(receiver.requests) == 3)
    return receiver.requests, old, new, ended


@pytest.mark.parametrize(("verify", "refused"), VERIFIERS)
async def test_published_libraries_verify_what_was_sent_also_during_a_rotation(rotated, verify, refused):
    """Before, during (both secrets) and after a rotation; a replaced secret no longer verifies."""
    (before, during, after), old, new, ended = rotated
    verify(old, before.body, lowered(before))
    verify(old, during.body, lowered(during))
    verify(new, during.body, lowered(during))
    verify(ended, after.body, lowered(after))
    for secret in (old, new):
        with pytest.raises(refused):
            verify(secret, after.body, lowered(after))


@pytest.mark.parametrize(("verify", "refused"), VERIFIERS)
async def test_published_libraries_refuse_a_changed_byte_and_an_old_timestamp(rotated, verify, refused):
    """The signature covers every byte of the body and the time of the attempt."""
    (request, *_), old, _, _ = rotated
    changed = request.body.replace(b'"ws_1"', b'"ws_2"')
    with pytest.raises(refused):
        verify(old, changed, lowered(request))
    headers = lowered(request)
    earlier = str(int(headers["webhook-timestamp"]) - 3600)
    headers["webhook-timestamp"] = earlier
    headers[OWN_HEADER.lower()] = "t=" + earlier + "," + headers[OWN_HEADER.lower()].split(",", 1)[1]
    with pytest.raises(refused):
        verify(old, request.body, headers)


async def test_the_request_is_what_the_design_says(shop, receiver, working):
    """One POST: our headers, the custom ones, traceparent when the event carries one; nothing else."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    make_endpoint(shop, receiver.url + "in?a=b", headers={"x-one": "1"})
    async with working():
        event_id = publish(shop, traceparent=trace)
        await eventually(lambda: receiver.requests)
    request = receiver.requests[0]
    assert (request.method, request.path) == ("POST", "/in?a=b")
    headers = lowered(request)
    assert set(headers) == {
        "host", "content-type", "content-length", "user-agent", "webhook-id", "webhook-timestamp", "webhook-signature",
        OWN_HEADER.lower(), "webhook-attempt", "traceparent", "x-one",
    }  # fmt: skip
    assert headers["webhook-id"] == str(event_id)
    assert headers["traceparent"] == trace
    assert headers["content-type"] == "application/json"
    body = json.loads(request.body)
    assert list(body) == ["id", "type", "timestamp", "workspace_id", "data"]


async def test_the_body_is_the_databases_text_byte_for_byte_and_the_attempt_log_shows_it(
    shop, receiver, working
):
    """Numbers, escapes and key order are jsonb's own; never parsed and dumped again."""
    make_endpoint(shop, receiver.url)
    async with working():
        event_id = shop.execute(
            """select outbox.publish('ws_1', 'message.sent', '{"zz": 1.10, "a": 1e400, "u": "\\u00e9\\ud83d\\ude00", "d": {"d": []}}')"""
        ).fetchone()[0]
        await eventually(lambda: receiver.requests)
        text = shop.execute("select payload::text from outbox.events").fetchone()[0]
        assert receiver.requests[0].body.endswith(f'"data": {text}}}'.encode())
        shown = await eventually(
            lambda: shop.execute(
                "select request_body from outbox.attempts where event_id = %s", [event_id]
            ).fetchone()
        )
        assert shown[0].encode() == receiver.requests[0].body
        shop.execute("select outbox.replay(%s)", [event_id])
        await eventually(lambda: len(receiver.requests) == 2)
    assert receiver.requests[0].body == receiver.requests[1].body
    assert lowered(receiver.requests[0])["webhook-id"] == lowered(receiver.requests[1])["webhook-id"]


@pytest.mark.parametrize(
    ("payload", "sqlstate"),
    [
        pytest.param('{"a": "\\u0000"}', "22P05", id="nul"),
        pytest.param('{"a": "' + "x" * 5_000_000 + '"}', "OB003", id="5 MB"),
        pytest.param('{"a": 1e131071}', None, id="131,072 digits fit"),
        pytest.param(
            '{"a": [' + ",".join(["1e131071"] * 3) + "]}", "OB003", id="393,216 digits from 33 bytes"
        ),
        pytest.param('{"a": ' + "[" * 1000 + "]" * 1000 + "}", None, id="1,000 levels"),
    ],
)
async def test_H16_a_payload_is_refused_or_sent_byte_exact_at_each_attempt(
    shop, receiver, working, payload, sqlstate
):
    """NUL and size are refused with a code; odd numbers and deep nesting arrive as PostgreSQL prints them, twice alike."""
    make_endpoint(shop, receiver.url, retry_schedule=SHORT)
    statement = "select outbox.publish('ws_1', 'message.sent', %s::jsonb)"
    if sqlstate is not None:
        with pytest.raises(psycopg.Error) as raised:
            shop.execute(statement, [payload])
        assert raised.value.sqlstate == sqlstate
        return
    receiver.script("/", status(500), status(200))
    async with working():
        shop.execute(statement, [payload])
        await eventually(lambda: len(receiver.requests) == 2)
    text = shop.execute("select payload::text from outbox.events").fetchone()[0]
    assert receiver.requests[0].body == receiver.requests[1].body
    assert receiver.requests[0].body.endswith(f'"data": {text}}}'.encode())


async def test_the_name_of_the_products_header_is_a_setting(shop, receiver, working):
    """outbox.settings.signature_header names it."""
    shop.execute("update outbox.settings set signature_header = 'Acme-Signature'")
    make_endpoint(shop, receiver.url)
    async with working():
        publish(shop)
        await eventually(lambda: receiver.requests)
    assert "acme-signature" in lowered(receiver.requests[0])
    assert OWN_HEADER.lower() not in lowered(receiver.requests[0])


async def test_the_time_signed_is_the_databases_whatever_the_workers_clock_says(
    shop, receiver, working, monkeypatch
):
    """A worker whose clock is wrong by a day still signs valid requests."""
    import time  # noqa: PLC0415  (the module is what is patched)

    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() - 86_400)
    _, secret = make_endpoint(shop, receiver.url)
    async with working():
        publish(shop)
        await eventually(lambda: receiver.requests)
    monkeypatch.undo()
    standard(secret, receiver.requests[0].body, lowered(receiver.requests[0]))
