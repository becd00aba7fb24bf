"""Vault: the private keys that open what the database sealed.

Reads: the keyring (file, folder or variable), sealed blobs. Writes: a new key, when asked to make one.
Guarantee: a blob sealed for another workspace, endpoint, origin or kind is refused (Unreadable); no secret, header
value or key occurs in an error.
If it dies: nothing is stored here; endpoints open again at their next use.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pysequoia
from pysequoia.packet import Packet, PacketPile, Tag

from outbox_worker.egress import origin
from outbox_worker.errors import ConfigError, Unreadable

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from outbox_worker.settings import Settings

_VALUES = {"secret": str, "headers": dict}
BEGIN, END = "-----BEGIN PGP PRIVATE KEY BLOCK-----", "-----END PGP PRIVATE KEY BLOCK-----"


@dataclass(frozen=True, slots=True)
class SealedFor:
    """What a blob must have been sealed for."""

    workspace_id: str
    endpoint_id: UUID
    url: str


class Keyring:
    """Private keys by the id of their encryption subkey, as pgcrypto names it."""

    def __init__(self, keys: dict[str, pysequoia.Tsk]) -> None:
        self.keys = keys
        self.decryptors = {key_id: key.decryptor() for key_id, key in keys.items()}

    @property
    def key_ids(self) -> list[str]:
        return sorted(self.keys)

    def public_key(self, key_id: str) -> bytes:
        return bytes(self.keys[key_id].extract_certificate())

    def open(self, sealed: bytes, kind: str, expected: SealedFor) -> Any:
        """The sealed value, if it was sealed for exactly this."""
        try:
            envelope = json.loads(self.content(sealed, kind))
        except (ValueError, RecursionError) as error:
            raise damaged(kind, error) from None
        if not isinstance(envelope, dict) or not isinstance(envelope.get("value"), _VALUES[kind]):
            raise Unreadable(f"opening the {kind}: what is sealed is not an envelope with a {kind} in it")
        wanted = {
            "workspace_id": expected.workspace_id,
            "endpoint_id": str(expected.endpoint_id),
            "origin": origin(expected.url),
            "kind": kind,
        }
        wrong = [name for name, value in wanted.items() if envelope.get(name) != value]
        if wrong:
            raise Unreadable(f"opening the {kind}: it was sealed for another {', '.join(wrong)}")
        return envelope["value"]

    def content(self, sealed: bytes, kind: str) -> bytes:
        """What is sealed, whatever it was sealed for."""
        key_id = recipient(sealed)
        decryptor = self.decryptors.get(key_id)
        if decryptor is None:
            raise Unreadable(
                f"opening the {kind}: it is sealed for key {key_id}, which is not in the keyring"
            )
        try:
            return pysequoia.decrypt(sealed, decryptor=decryptor).bytes or b""
        except Exception as error:  # noqa: BLE001  (pysequoia raises bare Exception, with a backtrace in its text)
            raise damaged(kind, error) from None

    def seal_again(self, sealed: bytes, kind: str, key_id: str) -> bytes:
        """The same content for another key of this ring; what is given has been opened again."""
        content = self.content(sealed, kind)
        fresh: bytes = pysequoia.encrypt(content, [self.keys[key_id].extract_certificate()], armor=False)
        if recipient(fresh) != key_id or self.content(fresh, kind) != content:
            raise Unreadable(
                f"sealing the {kind} again for key {key_id}: what came out does not open to the same"
            )
        return fresh


def damaged(kind: str, error: Exception) -> Unreadable:
    return Unreadable(f"opening the {kind}: damaged or not sealed by this database ({type(error).__name__})")


def recipient(sealed: bytes) -> str:
    """Key id of a sealed message, by its first packet: a session key of version 3, pgcrypto's, or 6 (RFC 9580, 5.1)."""
    if len(sealed) < 16 or not sealed[0] & 0x80:
        return "unknown"
    if sealed[0] & 0x40:  # new packet format
        start = 2 if sealed[1] < 192 else 3 if sealed[1] < 224 else 6
    else:
        start = {0: 2, 1: 3, 2: 5}.get(sealed[0] & 3, 1)
    if sealed[start] == 6:  # not the id but the fingerprint, of which the id is the end
        return sealed[start + 3 : start + 2 + sealed[start + 1]][-8:].hex().upper()
    return sealed[start + 1 : start + 9].hex().upper()


def generate_key() -> tuple[str, bytes]:
    """A new private key, armored, and its public half for `outbox.install_vault_key`.

    RSA-3072 in the RFC 4880 profile with exactly one encryption subkey: pgcrypto knows no other kind and refuses a
    key with several subkeys, so the signing subkey that comes with a new key is left out.
    """
    full = pysequoia.Tsk.generate(
        user_id="outbox-worker vault",
        profile=pysequoia.Profile.RFC4880,
        cipher_suite=pysequoia.CipherSuite.RSA3k,
    )
    kept: list[Packet] = []
    packets = list(PacketPile.from_bytes(bytes(full)))
    for position, packet in enumerate(packets):
        subkey_at = max((i for i in range(position + 1) if packets[i].tag == Tag.SecretSubkey), default=None)
        if subkey_at is None or "encryption" in str(packets[subkey_at + 1].key_flags):
            kept.append(packet)
    key = pysequoia.Tsk.from_packets(kept)
    armored = str(pysequoia.armor(bytes(key), pysequoia.ArmorKind.SecretKey))
    return armored, bytes(key.extract_certificate())


def load_keyring(settings: Settings) -> Keyring:
    if settings.vault_key is not None:
        return keyring_from(settings.vault_key.get_secret_value(), "OUTBOX_VAULT_KEY")
    if settings.vault_key_file is None:
        raise ConfigError(
            "loading the vault keys: neither OUTBOX_VAULT_KEY_FILE nor OUTBOX_VAULT_KEY is set. "
            "Make a key with: outbox-worker keygen --out vault.key"
        )
    return keyring_in(settings.vault_key_file)


def keyring_in(path: Path) -> Keyring:
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        loose = [file for file in files if file.stat().st_mode & 0o007]
        text = "\n".join(file.read_text() for file in files if file.is_file())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"loading the vault keys: {path}: {error}. Name a readable file or folder of keys."
        ) from None
    if loose:
        raise ConfigError(
            f"loading the vault keys: {loose[0]} may be read by everybody. Run: chmod 600 {loose[0]}"
        )
    return keyring_from(text, str(path))


def keyring_from(text: str, source: str) -> Keyring:
    keys = {}
    for part in text.split(BEGIN)[1:]:
        block = BEGIN + part.split(END)[0] + END + "\n"
        try:
            key = pysequoia.Tsk.from_bytes(block.encode())
        except Exception as error:  # noqa: BLE001  (pysequoia raises bare Exception, and its text may quote the key)
            raise ConfigError(
                f"loading the vault keys: {source} holds a key that cannot be read ({type(error).__name__})."
            ) from None
        keys[encryption_key_id(bytes(key))] = key
    if not keys:
        raise ConfigError(
            f"loading the vault keys: {source} holds no OpenPGP private key. Make one with: outbox-worker keygen"
        )
    return Keyring(keys)


def encryption_key_id(key: bytes) -> str:
    subkeys = [p for p in PacketPile.from_bytes(key) if p.tag in (Tag.SecretSubkey, Tag.PublicSubkey)]
    if len(subkeys) != 1:
        raise ConfigError(
            f"loading the vault keys: a key has {len(subkeys)} subkeys, pgcrypto takes exactly one."
        )
    return str(subkeys[0].key_id).upper()
