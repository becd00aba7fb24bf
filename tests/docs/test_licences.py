"""Everything that is installed with the product has its licence in the README, and none that would bind a user's code."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


def installed_with_the_product() -> dict[str, metadata.Distribution]:
    """The dependencies, the demo's and theirs, as they are installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, metadata.Distribution] = {}
    waiting = [
        Requirement(line) for line in [*project["dependencies"], *project["optional-dependencies"]["demo"]]
    ]
    done = set()
    while waiting:
        wanted = waiting.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if (name, *wanted.extras) in done:
            continue
        done.add((name, *wanted.extras))
        found[name] = metadata.distribution(wanted.name)
        for line in found[name].requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in ["", *wanted.extras]
            ):
                waiting.append(needed)
    return found


def test_every_licence_is_listed():
    """The README's table has each package, and each of its packages is one that is installed."""
    table = (ROOT / "README.md").read_text().split("| licence |")[1].split("\n\n")[0]
    listed = {name for row in table.splitlines()[2:] for name in row.split("|")[2].strip().split(", ")}
    found = set(installed_with_the_product())
    assert found - listed == set()
    assert listed - found <= {"uvloop"}  # not on Windows


def test_no_licence_reaches_into_our_users_code():
    """Neither GPL nor AGPL; LGPL as a library is fine."""
    for name, distribution in installed_with_the_product().items():
        told = [distribution.metadata.get(key) or "" for key in ("License-Expression", "License")]
        told += distribution.metadata.get_all("Classifier") or []
        assert not [text for text in told if re.search(r"\bA?GPL|Affero|GNU General", text)], name
