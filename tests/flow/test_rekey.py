"""Key rotation: what was sealed for an earlier key is sealed again for the active one, and nothing is lost on the way.

Reads and writes: a clone of the template database, vault keys made for the session.
Guarantee: after a whole run the active private key alone delivers; a run may end anywhere and be repeated.
If it is wrong: an earlier key that has leaked stays in use, or every customer needs a new secret.
"""

# ruff: noqa: N802  (the ids are the catalogue's)

from __future__ import annotations

import pytest
from standardwebhooks import Webhook

from outbox_worker import vault
from outbox_worker.cli import rekey
from tests.support.commands import Commands
from tests.support.factories import install_key, make_endpoint, new_key, publish, state_of
from tests.support.waiting import eventually

MARK = "marker-of-rekey"
BLOBS = "select endpoint_id, secret, previous_secret, headers from outbox.endpoint_vault order by endpoint_id"


@pytest.fixture(scope="session")
def earlier_key(vault_key):
    return new_key()


@pytest.fixture(scope="session")
def lost_key():
    return new_key()


@pytest.fixture
def cli(dsn_of, vault_key, earlier_key):
    return Commands(dsn_of(), {"OUTBOX_VAULT_KEY": earlier_key[0] + vault_key[0]})


@pytest.fixture
def endpoints(shop, receiver, vault_key, earlier_key):
    """Three endpoints with all kinds of blobs, sealed for the earlier key; the other one is active now."""
    install_key(shop, earlier_key)
    made = [make_endpoint(shop, f"{receiver.url}{n}", headers={"x-api-key": f"{MARK}-{n}"}) for n in range(3)]
    shop.execute("select outbox.rotate_secret(%s)", [made[0][0]])
    install_key(shop, vault_key)
    return made


def blobs(db):
    return {
        (endpoint_id, kind): bytes(sealed)
        for endpoint_id, *row in db.execute(BLOBS)
        for kind, sealed in zip(("secret", "previous_secret", "headers"), row, strict=True)
        if sealed is not None
    }


def recipients(db):
    return {vault.recipient(sealed) for sealed in blobs(db).values()}


def key_id(key):
    return vault.encryption_key_id(key[1])


async def test_after_rekey_the_active_key_alone_delivers(
    shop, receiver, working, cli, endpoints, vault_key, earlier_key
):
    """Secrets, both of a rotation, and headers are the same as before, in envelopes with the same content."""
    ring = vault.keyring_from(earlier_key[0] + vault_key[0], "test")
    before = blobs(shop)
    assert recipients(shop) == {key_id(earlier_key)}
    ran = cli("rekey", "--json")
    assert ran.code == 0, ran.err
    assert ran.json == [
        {"key_id": key_id(vault_key), "endpoints": 3, "sealed_again": 3, "released": 0, "unreadable": 0}
    ]
    after = blobs(shop)
    assert recipients(shop) == {key_id(vault_key)}
    assert len(after) == 7
    assert {name: ring.content(sealed, "x") for name, sealed in after.items()} == {
        name: ring.content(sealed, "x") for name, sealed in before.items()
    }
    async with working():  # which has the new key and no other
        event = publish(shop)
        await eventually(lambda: all(state_of(shop, event, one) == "delivered" for one, _ in endpoints))
    for n, (_, secret) in enumerate(endpoints):
        request = next(request for request in receiver.requests if request.path == f"/{n}")
        headers = {name.lower(): value for name, value in request.headers}
        assert headers["x-api-key"] == f"{MARK}-{n}"
        Webhook(secret).verify(request.body, headers)


def test_a_second_run_writes_nothing(shop, cli, endpoints):
    """What is sealed for the active key is left alone, byte for byte; no endpoint gets a new version."""
    versions = "select endpoint_id, version from outbox.endpoints order by 1"
    before = shop.execute(versions).fetchall()
    assert cli("rekey").code == 0
    once = blobs(shop)
    ran = cli("rekey")
    assert ran.code == 0
    assert "0 of 3 endpoints sealed again" in ran.out
    assert blobs(shop) == once
    assert shop.execute(versions).fetchall() == before


def test_a_run_that_was_stopped_is_taken_up_again(shop, cli, endpoints, monkeypatch, vault_key, earlier_key):
    """Each endpoint is a transaction: what was done stays done, the next run does the rest."""
    whole, calls = vault.Keyring.seal_again, []

    def stopping(self, *arguments):
        calls.append(arguments)
        if len(calls) == 4:  # in the middle of the second endpoint
            raise KeyboardInterrupt
        return whole(self, *arguments)

    monkeypatch.setattr(vault.Keyring, "seal_again", stopping)
    assert cli("rekey").code == 130
    assert recipients(shop) == {key_id(vault_key), key_id(earlier_key)}
    monkeypatch.undo()
    assert cli("rekey", "--json").json[-1]["sealed_again"] == 2
    assert recipients(shop) == {key_id(vault_key)}


def test_what_cannot_be_opened_is_listed_and_left_as_it_is(shop, cli, endpoints, lost_key, vault_key):
    """A key that is not there and a damaged blob: exit 2, the others are sealed again, no content is shown."""
    install_key(shop, lost_key)
    (locked, _), (broken, _) = (make_endpoint(shop, "https://hooks.example.com/in") for _ in range(2))
    shop.execute("update outbox.endpoint_vault set secret = '\\xdeadbeef' where endpoint_id = %s", [broken])
    install_key(shop, vault_key)
    before = blobs(shop)
    ran = cli("rekey", "--json")
    assert ran.code == 2
    listed = {(row["endpoint_id"], row["blob"]) for row in ran.json if "blob" in row}
    assert listed == {(str(locked), "secret"), (str(broken), "secret")}
    assert key_id(lost_key) in ran.out
    assert (ran.json[-1]["sealed_again"], ran.json[-1]["unreadable"]) == (3, 2)
    assert {blobs(shop)[one, "secret"] for one in (locked, broken)} == {
        before[one, "secret"] for one in (locked, broken)
    }
    plain = cli("rekey")
    assert (plain.code, plain.out.count("left as it is: secret of endpoint")) == (2, 2)
    for text in (ran.out, ran.err, plain.out, plain.err):
        assert MARK not in text
        assert "whsec_" not in text


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("update outbox.vault_keys set public_key = public_key || '\\x00'", "substituted"),
        ("update outbox.vault_keys set key_id = '00000000DEADBEEF' where active", "not in the keyring"),
        ("delete from outbox.vault_keys", "none is installed"),
    ],
)
def test_nothing_is_sealed_for_a_key_that_is_not_our_own(shop, cli, endpoints, statement, said):
    """A public key without its private half here is refused before anything is opened."""
    shop.execute(statement)
    before = blobs(shop)
    ran = cli("rekey")
    assert ran.code == 2
    assert said in ran.err
    assert blobs(shop) == before


def test_what_changes_under_rekey_is_not_overwritten(shop, cli, endpoints, monkeypatch, vault_key):
    """A secret that is rotated while its blob is being sealed again is the one that stays."""
    whole, rotated = vault.Keyring.seal_again, []

    def rotating(self, *arguments):
        if not rotated:
            rotated.append(shop.execute("select outbox.rotate_secret(%s)", [endpoints[0][0]]).fetchone()[0])
        return whole(self, *arguments)

    monkeypatch.setattr(vault.Keyring, "seal_again", rotating)
    assert cli("rekey").code == 0
    assert recipients(shop) == {key_id(vault_key)}
    ring = vault.keyring_from(vault_key[0], "test")
    assert rotated[0].encode() in ring.content(blobs(shop)[endpoints[0][0], "secret"], "secret")


def test_another_key_made_active_meanwhile_ends_the_run(shop, cli, endpoints, monkeypatch, earlier_key):
    """Nothing is stored for a key that is active no more."""
    whole = vault.Keyring.seal_again

    def replacing(self, *arguments):
        install_key(shop, earlier_key)
        return whole(self, *arguments)

    monkeypatch.setattr(vault.Keyring, "seal_again", replacing)
    ran = cli("rekey")
    assert ran.code == 2
    assert "another key" in ran.err
    assert recipients(shop) == {key_id(earlier_key)}


async def test_an_endpoint_held_for_want_of_a_key_goes_on_after_rekey(
    shop, receiver, working, cli, endpoints
):
    """Workers had the new key only: they held the endpoints; rekey has both and ends the holds."""
    holds = "select count(*) from outbox.endpoints where hold_reason = 'secret_unreadable'"
    async with working():
        event = publish(shop)
        await eventually(lambda: shop.execute(holds).fetchone() == (3,))
        assert cli("rekey", "--json").json[-1]["released"] == 3
        await eventually(lambda: all(state_of(shop, event, one) == "delivered" for one, _ in endpoints))
    assert shop.execute("select max(attempt_count) from outbox.deliveries").fetchone() == (1,)


def test_N26_a_blob_of_another_endpoint_stays_held(shop, cli, endpoints):
    """Sealing again does not make a copied blob good."""
    (copied, _), (source, _) = endpoints[1], endpoints[2]
    shop.execute(
        "update outbox.endpoint_vault v set secret = s.secret from outbox.endpoint_vault s where v.endpoint_id = %s and s.endpoint_id = %s",
        [copied, source],
    )
    shop.execute(
        "select outbox.hold_endpoint(%s, version) from outbox.endpoints where endpoint_id = %s",
        [copied, copied],
    )
    assert cli("rekey", "--json").json[-1]["released"] == 0
    assert shop.execute(
        "select count(*) from outbox.endpoints where hold_reason = 'secret_unreadable'"
    ).fetchone() == (1,)


def test_progress_is_told_without_a_terminal(cli, endpoints, monkeypatch):
    """Plain lines in a pipe, objects with --json."""
    monkeypatch.setattr(rekey, "_TOLD_EVERY", 2)
    assert "2 of 3 endpoints looked at" in cli("rekey").lines
    assert {"looked_at": 2, "total": 3} in cli("rekey", "--json").json


def test_only_the_owner_may_rekey(cli, dsn_of, endpoints):
    """A worker's login reads blobs and writes none."""
    ran = cli("rekey", OUTBOX_OWNER_DATABASE_URL=dsn_of("worker_login"))
    assert ran.code == 3
    assert "outbox_owner" in ran.err


def test_a_key_is_made_active_only_if_the_keyring_has_it(
    shop, cli, endpoints, tmp_path, earlier_key, lost_key
):
    """First the workers get the private key, then the database the public one."""
    file = tmp_path / "next.key"
    file.touch(mode=0o600)
    file.write_text(lost_key[0])
    refused = cli("rekey", "--activate", file)
    assert (refused.code, key_id(lost_key) in refused.err) == (2, True)
    assert cli("rekey").code == 0
    file.write_text(earlier_key[0])
    assert cli("rekey", "--activate", file, "--json").json[-1]["sealed_again"] == 3
    assert recipients(shop) == {key_id(earlier_key)}
