"""The style of the statements that the worker runs, and of the definitions that others call."""

from __future__ import annotations

import re

import pytest

from outbox_worker import sqlfiles

QUERIES = sorted(file.name for file in (sqlfiles.sql_root() / "queries").iterdir())
KEYWORDS = "select|insert|update|delete|from|where|with|join|order by|group by|limit|returning|create|function|begin|end"


@pytest.mark.parametrize("name", QUERIES)
def test_a_statement_says_its_purpose_parameters_index_and_hazard(name):
    """Four labels at the top, the first being the file's own name."""
    text = sqlfiles.read(f"queries/{name}").decode()
    assert text.startswith(f"-- {name.removesuffix('.sql')}: ")
    for label in ("-- params:", "-- index:", "-- hazard:"):
        assert label in text


@pytest.mark.parametrize("name", QUERIES)
def test_a_statement_casts_every_parameter_and_names_every_column(name):
    """No select *, no parameter without a type, no name without its schema, no upper-case keyword."""
    text = re.sub(r"--.*", "", sqlfiles.read(f"queries/{name}").decode())
    assert not re.search(r"select\s+\*|\.\*", text)
    assert not re.search(r"%\(\w+\)s(?!::)", text)
    assert not re.search(rf"\b({KEYWORDS.upper()})\b", text)
    assert ";" not in text


@pytest.mark.parametrize("name", [*sqlfiles.definitions(), *sqlfiles.migrations()])
def test_definitions_are_lower_case_and_pin_the_search_path_of_definer_functions(name):
    """`security definer` never without `set search_path`."""
    text = re.sub(r"--.*|'(?:[^']|'')*'", "", sqlfiles.read(name).decode())
    assert not re.search(rf"\b({KEYWORDS.upper()})\b", text)
    for match in re.finditer(r"security definer([^$;]*?)(?:as \$\$|begin atomic)", text):
        assert "set search_path = pg_catalog" in match[1]
