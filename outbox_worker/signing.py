"""Sign one attempt: Standard Webhooks 1.0 and the product's own header.

Reads: its arguments. Writes: nothing.
Guarantee: there is no unsigned request; during a rotation both secrets sign, in the order given; no error
text holds a secret.
If it is wrong: receivers refuse what we send, or accept what we did not.
"""

from __future__ import annotations

import binascii
import hmac
from base64 import b64decode, b64encode
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SECRET_PREFIX = "whsec_"  # noqa: S105  (the prefix, not a secret)
MIN_SECRET_BYTES = 24
MAX_SECRET_BYTES = 64


def signature_headers(
    event_id: str, timestamp: int, body: bytes, secrets: Sequence[str], header_name: str
) -> tuple[tuple[str, str], ...]:
    """Give the four headers that make the body verifiable. `timestamp` is the attempt's, in Unix seconds.

    Raises ValueError without a secret, or for a malformed one.
    """
    if not secrets:
        raise ValueError(
            f"signing {event_id}: there is no secret, and nothing is sent unsigned; rotate the secret"
        )
    standard = b"%b.%d.%b" % (event_id.encode(), timestamp, body)
    own = b"%d.%b" % (timestamp, body)
    # The product's header is keyed by the secret's text, prefix and all, as Stripe's libraries verify it.
    own_marks = [f"v1={hmac.digest(secret.encode(), own, 'sha256').hex()}" for secret in secrets]
    standard_marks = [
        f"v1,{b64encode(hmac.digest(decode_secret(secret), standard, 'sha256')).decode()}"
        for secret in secrets
    ]
    return (
        ("webhook-id", event_id),
        ("webhook-timestamp", str(timestamp)),
        ("webhook-signature", " ".join(standard_marks)),
        (header_name, ",".join([f"t={timestamp}", *own_marks])),
    )


@lru_cache(maxsize=4096)
def decode_secret(secret: str) -> bytes:
    """Give the bytes of a `whsec_…` string. Raises ValueError, whose text does not hold the secret."""
    encoded = secret.removeprefix(SECRET_PREFIX)
    if encoded == secret:
        raise ValueError(
            f"reading a signing secret: it does not begin with {SECRET_PREFIX}; rotate the secret"
        )
    try:
        key = b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        key = None
    # One spelling for one key: unused bits or missing padding would let two strings sign alike.
    if key is None or b64encode(key).decode() != encoded:
        raise ValueError(
            f"reading a signing secret: what follows {SECRET_PREFIX} is not base64; rotate the secret"
        )
    if not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        found = f"{len(key)} bytes long, not {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES}"
        raise ValueError(f"reading a signing secret: it is {found}; rotate the secret")
    return key
