"""What a new vault key is: what the README says of it, and what pgcrypto can seal for.

Reads: nothing. Writes: nothing.
Guarantee: RSA with 3072 bits, one subkey, and the private half is not in what the database is given.
If it is wrong: the database cannot seal, or what it seals is weaker than promised.
"""

from __future__ import annotations

from pysequoia.packet import PacketPile, Tag

from outbox_worker import vault

RSA = 1  # RFC 4880, 9.1


def test_a_new_key_is_rsa_3072_with_one_subkey():
    """Primary key and subkey alike, by the bits of their modulus (RFC 4880, 5.5.2)."""
    _, public = vault.generate_key()
    packets = list(PacketPile.from_bytes(public))
    keys = [bytes(packet.body) for packet in packets if packet.tag in (Tag.PublicKey, Tag.PublicSubkey)]
    assert [(body[5], int.from_bytes(body[6:8], "big")) for body in keys] == [(RSA, 3072), (RSA, 3072)]
    assert not [packet for packet in packets if packet.tag in (Tag.SecretKey, Tag.SecretSubkey)]
