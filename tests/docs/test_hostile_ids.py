"""The catalogue of hostile input: each case is carried by a test under its id.

Reads: the names and parameters of the tests, as pytest collects them. Writes: nothing.
Guarantee: no case is lost when tests are renamed, and none is carried by a remark alone.
If it fails: nobody can tell any more whether that input is tried.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# U: URLs. N: names, addresses and what was sealed for them. T: what a receiver does. H: headers, secrets, payloads.
CATALOGUE = """
U01 U02 U03 U04 U05 U06 U07 U08 U09 U10 U11 U12 U13 U14 U15 U16 U17 U18 U19 U20 U21 U22 U23 U24 U25 U26 U27 U29 U30
N01 N02 N04 N05 N06 N08 N09 N10 N14 N15 N17 N18 N20 N21 N22 N24 N25 N26
T01 T02 T03 T04 T05 T06 T08 T09 T10 T13 T14 T15 T16 T17 T20 T21 T22 T23 T25
H01 H02 H03 H04 H05 H06 H07 H08 H09 H12 H14 H15 H16
"""
CASES = CATALOGUE.split()
# What is refused when it is stored must be tried against the table's own trigger, whoever writes.
STORED = [case for case in CASES if case[0] == "U"] + ["N24"]


@pytest.fixture(scope="module")
def collected() -> list[str]:
    """Every test's id; asked of pytest itself in a process of its own, since this run may be a part of the suite."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
    ]
    found = subprocess.run(
        [*command, "tests/unit", "tests/sql", "tests/flow"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-2000:]
    return [line for line in found.stdout.splitlines() if "::" in line]


def carriers(case: str, tests: list[str]) -> list[str]:
    named = re.compile(rf"(?:::test_|\[|_|-){case}(?:[-_\]\[]|$)")
    return [test for test in tests if named.search(test)]


def test_every_case_is_carried_by_a_test_under_its_id(collected):
    """In the test's name or in the id of its parameters; a docstring does not count."""
    assert [case for case in CASES if not carriers(case, collected)] == []


def test_every_url_that_must_not_be_stored_is_tried_on_the_table_itself(collected):
    """By INSERT, UPDATE and COPY: a rule that only a function applies can be gone round."""
    on_the_table = [test for test in collected if "test_no_path_stores_a_hostile_url" in test]
    assert [case for case in STORED if not carriers(case, on_the_table)] == []
