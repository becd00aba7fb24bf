"""Signatures: the published vectors, and the libraries that receivers verify them with.

Guarantee: the libraries standardwebhooks, svix and stripe accept what we sign, and refuse it changed or old.
"""

# ruff: noqa: N802  (the ids are the catalogue's)

from __future__ import annotations

import time
from base64 import b64encode
from contextlib import suppress

import pytest
import standardwebhooks
import stripe
import svix
from hypothesis import given
from hypothesis import strategies as st

from outbox_worker.signing import decode_secret, signature_headers

SECRET = "whsec_" + b64encode(bytes(range(32))).decode()
OTHER = "whsec_" + b64encode(bytes(range(100, 132))).decode()
BODY = '{"id": "01890000-0000-7000-8000-000000000000", "data": {"text": "Grüße 👋"}}'.encode()
VECTORS = [
    (
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    ),
    (
        "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
        1649367553,
        b'{"email":"test@example.com","username":"test_user"}',
        "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
    ),
]


def signed(body=BODY, *, timestamp=None, secrets=(SECRET,)):
    at = int(time.time()) if timestamp is None else timestamp
    return dict(signature_headers("msg_1", at, body, secrets, "Edesy-Signature"))


def verify_standardwebhooks(secret, body, headers):
    standardwebhooks.Webhook(secret).verify(body, headers)


def verify_svix(secret, body, headers):
    svix.Webhook(secret).verify(body, headers)


def verify_stripe(secret, body, headers):
    stripe.WebhookSignature.verify_header(body.decode(), headers["Edesy-Signature"], secret, tolerance=300)


REFUSALS = {
    verify_standardwebhooks: standardwebhooks.WebhookVerificationError,
    verify_svix: svix.WebhookVerificationError,
    verify_stripe: stripe.SignatureVerificationError,
}


@pytest.fixture(params=REFUSALS, ids=lambda verify: verify.__name__.removeprefix("verify_"))
def verify(request):
    return request.param


@pytest.mark.parametrize(
    ("secret", "event_id", "timestamp", "body", "expected"), VECTORS, ids=["python", "rust"]
)
def test_the_published_vectors_of_standard_webhooks_come_out(secret, event_id, timestamp, body, expected):
    """The specification's reference libraries carry these secrets, bodies and signatures."""
    headers = dict(signature_headers(event_id, timestamp, body, [secret], "x"))
    assert headers["webhook-id"] == event_id
    assert headers["webhook-timestamp"] == str(timestamp)
    assert headers["webhook-signature"] == expected


def test_a_published_library_accepts_the_signature(verify):
    """What we sign now verifies unchanged, characters outside ASCII included."""
    verify(SECRET, BODY, signed())


def test_both_secrets_verify_during_a_rotation(verify):
    """Two signatures, the first secret's first; a receiver with either secret accepts."""
    headers = signed(secrets=[SECRET, OTHER])
    verify(SECRET, BODY, headers)
    verify(OTHER, BODY, headers)
    first, second = headers["webhook-signature"].split(" ")
    assert first == signed(timestamp=int(headers["webhook-timestamp"]))["webhook-signature"]
    assert second.startswith("v1,")
    assert headers["Edesy-Signature"].count(",v1=") == 2


def test_a_published_library_refuses_another_secret(verify):
    """A signature proves the secret."""
    with pytest.raises(REFUSALS[verify]):
        verify(OTHER, BODY, signed())


def test_a_published_library_refuses_a_changed_byte(verify):
    """A signature covers every byte of the body."""
    with pytest.raises(REFUSALS[verify]):
        verify(SECRET, BODY.replace(b"data", b"dat4"), signed())


def test_a_published_library_refuses_an_old_timestamp(verify):
    """A recorded request cannot be replayed by another: the timestamp is signed."""
    old = signed(timestamp=int(time.time()) - 3600)
    with pytest.raises(REFUSALS[verify]):
        verify(SECRET, BODY, old)
    fresh = str(int(time.time()))
    forged = old | {
        "webhook-timestamp": fresh,
        "Edesy-Signature": f"t={fresh},{old['Edesy-Signature'].partition(',')[2]}",
    }
    with pytest.raises(REFUSALS[verify]):
        verify(SECRET, BODY, forged)


@pytest.mark.parametrize("verify_one", [verify_standardwebhooks, verify_svix])
def test_the_event_id_is_signed(verify_one):
    """A receiver's idempotency key cannot be exchanged."""
    with pytest.raises(REFUSALS[verify_one]):
        verify_one(SECRET, BODY, signed() | {"webhook-id": "msg_2"})


def test_nothing_is_sent_unsigned():
    """Without a secret there are no headers, and the error says what to do."""
    with pytest.raises(ValueError, match="rotate the secret"):
        signature_headers("msg_1", 1, b"", [], "Edesy-Signature")


@given(st.binary(min_size=24, max_size=64))
def test_H15_a_secret_of_24_to_64_bytes_is_decoded(key):
    """The key is the decoded bytes."""
    assert decode_secret("whsec_" + b64encode(key).decode()) == key


@pytest.mark.parametrize(
    "encoded",
    [
        "",
        b64encode(b"S" * 23).decode(),
        b64encode(b"S" * 65).decode(),
        b64encode(b"S" * 1_000_000).decode(),
        b64encode(b"S" * 32).decode().rstrip("="),
        b64encode(b"S" * 31).decode().replace("=", "") + "=A",
        b64encode(b"\xff" * 33).decode().replace("/", "_"),
        b64encode(b"S" * 32).decode()[:-2] + "V=",  # unused bits set
        "SECRET SECRET SECRET SECRET SECRET",
        "SECRETSECRETSECRETSECRETSECRETSECRÉT",
        b64encode(b"S" * 32).decode() + "\n",
        "=" * 44,
    ],
)  # fmt: skip
def test_H15_a_malformed_secret_is_refused_without_being_quoted(encoded):
    """Too short, too long, no base64, or a second spelling of a key; the text goes into logs."""
    for secret in (f"whsec_{encoded}", f"WHSEC_{encoded}", encoded):
        with pytest.raises(ValueError, match=r"reading a signing secret: .*; rotate the secret") as refused:
            decode_secret(secret)
        assert not encoded or encoded.strip("=") == "" or encoded.strip() not in str(refused.value)
        assert "SECR" not in str(refused.value)
        assert refused.value.__cause__ is None
        assert refused.value.__context__ is None


@given(st.text(max_size=100))
def test_any_text_is_decoded_or_refused_with_a_value_error(text):
    """No other exception comes out of a secret."""
    with suppress(ValueError):
        assert 24 <= len(decode_secret(f"whsec_{text}")) <= 64
