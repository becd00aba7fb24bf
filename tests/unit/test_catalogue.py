"""The event catalogue: what a receiver's developer is told about each event type is complete and true.

Reads: sql/catalogue/*.json, one file per group. Writes: nothing.
Guarantee: every schema is a valid one and open to new fields, every example is a whole payload that its
schema accepts, and taking any required field out of an example makes the schema refuse it.
"""

from __future__ import annotations

import copy
import json
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from jsonschema import Draft202012Validator, FormatChecker

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = sorted((Path(__file__).resolve().parents[2] / "sql" / "catalogue").glob("*.json"))
EVENT_TYPES: list[dict[str, Any]] = [each for file in FILES for each in json.loads(file.read_text("utf-8"))]
BUSINESS = [each for each in EVENT_TYPES if not each.get("operational")]

GROUPS = {
    "messages in and out": ("message.received", "message.sent"),
    "delivery status": ("message.delivered", "message.read", "message.failed"),
    "conversation lifecycle": ("conversation.opened", "conversation.assigned", "conversation.closed"),
    "bot lifecycle": ("bot.session_started", "bot.handed_over", "bot.session_ended"),
    "bot tool calls": ("bot.tool_called", "bot.tool_failed"),
    "knowledge-base retrievals": ("bot.knowledge_retrieved",),
    "campaigns": ("campaign.scheduled", "campaign.started", "campaign.message_sent", "campaign.completed"),
    "contacts": ("contact.created", "contact.updated", "contact.merged", "contact.deleted"),
    "opt-in and opt-out": ("contact.opted_in", "contact.opted_out"),
    "leads": ("lead.created", "lead.qualified", "lead.converted", "lead.lost"),
    "orders": ("order.created", "order.paid", "order.fulfilled", "order.canceled", "order.refunded"),
    "reviews": ("review.requested", "review.received", "review.responded"),
}
OPERATIONAL = {
    "endpoint.failing": "endpoint_id url failing_since last_status last_error disables_at",
    "endpoint.disabled": "endpoint_id url reason failing_since last_status last_error",
    "delivery.dead": "event_id event_type endpoint_id attempts last_status last_error reason",
    "endpoint.test": "endpoint_id message",
}

FORMATS = FormatChecker()


@FORMATS.checks("date-time", raises=ValueError)
def is_date_time(value: object) -> bool:
    shape = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
    return not isinstance(value, str) or bool(shape.fullmatch(value) and datetime.fromisoformat(value))


@FORMATS.checks("uri", raises=ValueError)
def is_uri(value: object) -> bool:
    return not isinstance(value, str) or all(urlsplit(value)[:2])


def validator(event_type: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator(event_type["schema"], format_checker=FORMATS)


def every_type(event_types: list[dict[str, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("event_type", event_types, ids=lambda each: each["name"])


def leaves(value: object) -> Iterator[object]:
    match value:
        case dict():
            yield from (leaf for each in value.values() for leaf in leaves(each))
        case list():
            yield from (leaf for each in value for leaf in leaves(each))
        case _:
            yield value


def described(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference into the schema's own `$defs`."""
    return root["$defs"][schema["$ref"].rpartition("/")[2]] | schema if "$ref" in schema else schema


def objects(schema: dict[str, Any], value: object, root: dict[str, Any], path: tuple = ()) -> Iterator[tuple]:
    """Every object in a payload that has a schema with properties: its path, its schema and itself."""
    schema = described(schema, root)
    if isinstance(value, dict) and "properties" in schema:
        yield path, schema, value
        for name in schema["properties"].keys() & value.keys():
            yield from objects(schema["properties"][name], value[name], root, (*path, name))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from objects(schema["items"], each, root, (*path, index))


def subschemas(schema: object) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for each in schema.values():
            yield from subschemas(each)


def without(payload: dict[str, Any], path: tuple, name: str) -> dict[str, Any]:
    mutated = copy.deepcopy(payload)
    target: Any = mutated
    for step in path:
        target = target[step]
    del target[name]
    return mutated


def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    assert len(members) == len(pairs), f"a key occurs twice among {[name for name, _ in pairs]}"
    return members


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_of_the_catalogue_stays_readable(file: Path):
    """A file has fewer than 700 lines, no tabs, no key twice, and only the members that are known."""
    text = file.read_text("utf-8")
    assert len(text.splitlines()) < 700
    assert "\t" not in text
    for each in json.loads(text, object_pairs_hook=refuse_twice):
        assert set(each) - {"operational"} == {"name", "description", "schema", "example"}


def test_names_are_unique_and_well_formed():
    """A name is dotted, lower-case, and stands for one event type only."""
    names = [each["name"] for each in EVENT_TYPES]
    assert len(names) == len(set(names))
    assert [name for name in names if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)+", name)] == []


def test_the_catalogue_has_at_least_30_business_event_types():
    """Operational event types don't count towards the promised thirty."""
    assert len(BUSINESS) >= 30


@pytest.mark.parametrize("group", GROUPS)
def test_every_promised_group_is_covered(group: str):
    """Each kind of action that the product promises to report has its event types, none operational."""
    assert set(GROUPS[group]) <= {each["name"] for each in BUSINESS}


def test_operational_event_types_carry_exactly_the_fields_that_the_worker_writes():
    """The operational event types are these four, and their payloads' fields are fixed."""
    operational = {each["name"]: each for each in EVENT_TYPES if each not in BUSINESS}
    assert {name: set(each["schema"]["required"]) for name, each in operational.items()} == {
        name: set(fields.split()) for name, fields in OPERATIONAL.items()
    }
    assert all(each["operational"] is True for each in operational.values())


@every_type(EVENT_TYPES)
def test_a_description_is_one_or_two_sentences(event_type: dict[str, Any]):
    """A description is short enough for a list and ends as a sentence does."""
    assert len(re.findall(r"\.(?:\s|$)", event_type["description"])) in {1, 2}
    assert event_type["description"].endswith(".")
    assert 20 <= len(event_type["description"]) <= 200


@every_type(EVENT_TYPES)
def test_a_schema_is_valid_and_open_to_new_fields(event_type: dict[str, Any]):
    """A schema is a draft 2020-12 object schema; no part of it refuses fields added later."""
    schema = event_type["schema"]
    Draft202012Validator.check_schema(schema, format_checker=FORMATS)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["type"] == "object"
    for each in subschemas(schema):
        assert each.get("additionalProperties") is not False
        assert each.get("unevaluatedProperties") is not False


@every_type(EVENT_TYPES)
def test_every_format_that_a_schema_names_is_really_checked(event_type: dict[str, Any]):
    """A validator passes over formats that it does not know; ours knows each one that occurs."""
    named = {
        each["format"] for each in subschemas(event_type["schema"]) if isinstance(each.get("format"), str)
    }
    assert named <= FORMATS.checkers.keys()


@every_type(EVENT_TYPES)
def test_every_property_has_a_description(event_type: dict[str, Any]):
    """Required or not, on top or nested, a property says what it is; what is required is a property."""
    for each in subschemas(event_type["schema"]):
        properties = each.get("properties", {})
        assert set(each.get("required", ())) <= properties.keys()
        assert [name for name, its in properties.items() if not its.get("description", "").strip()] == []
    assert event_type["schema"]["required"]


@every_type(EVENT_TYPES)
def test_an_example_is_valid_and_every_field_of_it_is_documented(event_type: dict[str, Any]):
    """An example is what its schema describes, formats included, with nothing that it is silent about."""
    schema, example = event_type["schema"], event_type["example"]
    assert [error.message for error in validator(event_type).iter_errors(example)] == []
    for path, its, value in objects(schema, example, schema):
        assert value.keys() <= its["properties"].keys(), path


@every_type(EVENT_TYPES)
def test_an_example_without_a_required_field_is_refused(event_type: dict[str, Any]):
    """Whichever required field is taken out, on top or nested, the schema notices."""
    schema, example = event_type["schema"], event_type["example"]
    required = [
        (path, name) for path, its, _ in objects(schema, example, schema) for name in its.get("required", ())
    ]
    assert required
    for path, name in required:
        assert not validator(event_type).is_valid(without(example, path, name)), (*path, name)


@every_type(BUSINESS)
def test_an_example_is_a_whole_payload_and_never_just_an_id(event_type: dict[str, Any]):
    """A business event carries its context: nested objects, actor or bot, channel, a moment in time."""
    example = event_type["example"]
    assert len(list(leaves(example))) >= 6
    assert any(isinstance(value, dict) for value in example.values())
    assert example.keys() & {"actor", "bot"}
    assert "channel" in example or event_type["name"].startswith("contact.")
    assert any(is_date_time(leaf) for leaf in leaves(example) if isinstance(leaf, str))
    assert 400 <= len(json.dumps(example, ensure_ascii=False).encode()) <= 2500


@every_type(EVENT_TYPES)
def test_an_example_holds_nobodys_real_data(event_type: dict[str, Any]):
    """Numbers are +1555…, addresses and links are of example.com: nobody is called or written to."""
    for leaf in leaves(event_type["example"]):
        if isinstance(leaf, str):
            assert re.findall(r"\+\d{6,}", leaf) == re.findall(r"\+1555\d{7}\b", leaf)
            hosts = re.findall(r"(?:://|@)([\w.-]+\.\w+)", leaf)
            assert [host for host in hosts if not re.fullmatch(r"([\w-]+\.)*example\.com", host)] == []


def test_the_filter_that_the_documentation_shows_fits_message_received():
    """`$.message.type == "text"` is true of the example of message.received."""
    (received,) = (each for each in EVENT_TYPES if each["name"] == "message.received")
    assert received["example"]["message"]["type"] == "text"
