"""The README says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from outbox_worker import sqlfiles
from outbox_worker.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def settings_table() -> str:
    """Python -c "from tests.docs.test_readme import settings_table; print(settings_table())" prints it anew."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = (
            "required"
            if field.is_required()
            else ""
            if field.default in (None, ())
            else f"`{field.default}`".lower()
        )
        rows.append(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def test_the_settings_table_is_the_settings():
    """Every field with its default and description, nothing else."""
    shown = README.split("<!-- settings: begin -->\n")[1].split("\n<!-- settings: end -->")[0]
    assert shown == settings_table()


def test_the_stages_of_the_picture_are_modules_and_statements():
    """One name for a stage in README, Python and SQL."""
    picture = README.split("```")[3]
    for stage in ("FAN OUT", "CLAIM", "DELIVER", "SETTLE", "UPKEEP"):
        assert stage in picture
        assert (ROOT / "outbox_worker" / f"{stage.lower().replace(' ', '_')}.py").exists()
    names = {Path(file.name).stem for file in (sqlfiles.sql_root() / "queries").iterdir()}
    assert {"fan_out", "claim", "settle", "reap"} <= names


@pytest.mark.parametrize(
    "word", ["util", "helper", "common", "manager", "handler", "processor", "service", "enqueue", "dequeue"]
)
def test_words_outside_the_glossary_name_nothing(word):
    """No module, function or class is called by a banned word."""
    pattern = re.compile(rf"^\s*(?:async )?(?:def|class) \w*{word}s?\b", re.MULTILINE | re.IGNORECASE)
    for file in (ROOT / "outbox_worker").rglob("*.py"):
        assert word not in file.stem
        assert not pattern.search(file.read_text()), file


def test_every_module_is_in_the_code_map():
    """A new file needs a row."""
    code_map = README.split("## Code map")[1].split("## Decisions")[0]
    for file in (ROOT / "outbox_worker").iterdir():
        if file.suffix == ".py" and not file.stem.startswith("__"):
            assert f"`{file.name}`" in code_map, file.name


def test_the_two_commands_are_the_first_sh_blocks():
    """The first block of the page runs the main job; the first under Develop passes the tests."""
    first = re.search(r"```sh\n(.*?)```", README, re.DOTALL)[1]
    develop = re.search(r"```sh\n(.*?)```", README.split("## Develop")[1], re.DOTALL)[1]
    assert first.strip().endswith("outbox-worker demo")
    assert develop.strip().endswith(".venv/bin/pytest -n auto")


def test_every_recipe_is_linked_and_what_is_shown_of_it_is_the_file():
    """The block under a recipe's link is the file that the suite runs, word for word."""
    recipes = sorted((ROOT / "tests" / "recipes").iterdir())
    shown = dict(re.findall(r"\(tests/recipes/([\w.]+)\):\n\n```\w+\n(.*?)```\n", README, re.DOTALL))
    files = {file.name: file.read_text() for file in recipes if file.is_file()}
    assert len(shown) >= 5
    for name, text in files.items():
        assert f"](tests/recipes/{name})" in README, name
        assert shown.get(name, text) == text, name
    assert set(shown) <= set(files)
