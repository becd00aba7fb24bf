"""Payload paths: which jsonpaths an index can be made of, and which searches such an index answers.

Reads: what was typed. Writes: nothing.
Guarantee: a path that is accepted names fixed keys, so that no payload can make the index expression fail; an equality is
recognised only where the indexed condition means exactly the same.
"""

import json
import re
from dataclasses import dataclass

import typer

_STEP = r'(?:\.(?:[A-Za-z_][A-Za-z0-9_]*|"[^"\\]+")|\[(?:\*|\d{1,6})\])'
_PATH = re.compile(rf"\${_STEP}+")
_EQUALITY = re.compile(
    rf'\s*(?P<path>\${_STEP}+)\s*==\s*(?P<value>"[^"\\]*"|-?\d+(?:\.\d+)?|true|false)\s*', re.ASCII
)
_PLAIN_KEY = re.compile(r'\."([A-Za-z_][A-Za-z0-9_]*)"')
_EVERY = "[*]"


@dataclass(frozen=True, slots=True)
class Equality:
    """`$.order.id == 17`: every element at the path (a single value is one) and the array that must be contained."""

    path: str
    value: str


def payload_path(text: str) -> str:
    """Give the path whose values are indexed; for typer's `parser`."""
    path = text.strip()
    if _PATH.fullmatch(path):
        return path + _EVERY
    if not path.startswith("$"):
        found = "it does not begin with $"
    elif re.search(r"==|!=|<|>|\?|&&|\|\||\blike_regex\b|\bstarts with\b", path):
        found = "it holds a condition, which belongs into search --jsonpath"
    elif path == "$":
        found = "it names the whole payload"
    else:
        found = "it is more than keys, [*] and [0]"
    raise typer.BadParameter(
        f"cannot index {text!r}: {found}. Give the path to one value, such as '$.order.id', '$.items[*].sku' or "
        "'$.\"a key\".id'."
    )


def equality(jsonpath: str) -> Equality | None:
    """Recognise `PATH == VALUE`; None for every other predicate."""
    found = _EQUALITY.fullmatch(jsonpath)
    if found is None:
        return None
    try:
        value = json.dumps([json.loads(found["value"])])
    except ValueError:  # 017, or a control character: PostgreSQL will say what it makes of it
        return None
    return Equality(found["path"] + _EVERY, value if '"' in found["value"] else f"[{found['value']}]")


def shown(normal: str) -> str:
    """Write PostgreSQL's form of an indexed path, `$."order"."id"[*]`, as people type it: `$.order.id`."""
    return _PLAIN_KEY.sub(r".\1", normal).removesuffix(_EVERY)


def condition(path: str) -> str:
    """Write the SQL condition that the index answers."""
    quoted = path.replace("'", "''")
    return f"jsonb_path_query_array(payload, '{quoted}{_EVERY}') @> '[…]'"
