"""show: the whole story of one event on one screen."""

import json
from collections.abc import Iterator
from typing import Annotated, Any
from uuid import UUID

import typer

from outbox_worker.cli.moments import spoken
from outbox_worker.cli.output import AsJson, Output, cell, plain
from outbox_worker.cli.session import session
from outbox_worker.cli.story import Story, story_of

Line = tuple[str, str]  # the text and its style
_COLOURS = {
    "delivered": "green",
    "dead": "red",
    "canceled": "dim",
    "held": "magenta",
    "leased": "cyan",
    "pending": "yellow",
}
_EXPLAINED = 20
_SHORT = 600


def show(
    event_id: Annotated[
        UUID, typer.Argument(metavar="EVENT_ID", help="The event id, which is the webhook-id.")
    ],
    full: Annotated[
        bool,
        typer.Option("--full", help="Print request headers and whole responses, and explain every endpoint."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show everything about one event: payload, each endpoint, each attempt, who did not get it and why."""
    with session() as connection:
        story = story_of(connection, event_id, endpoints=100_000 if full else _EXPLAINED)
    output = Output(as_json=as_json)
    if as_json:
        output.json(story)
        return
    for text, style in lines(story, full=full):
        output.say(text, style)


def lines(story: Story, *, full: bool) -> Iterator[Line]:
    yield f"{story['event_type']}  {story['event_id']}", "bold"
    yield (
        f"workspace {story['workspace_id']}, recorded {cell(story['created_at'])}, priority {story['priority']}",
        "",
    )
    for name in ("deliver_at", "ordering_key", "traceparent"):
        if story[name] is not None:
            yield f"{name}: {cell(story[name])}", ""
    if story["canceled_at"]:
        said = "what waited then, and what is not fanned out, goes nowhere"
        yield f"canceled {cell(story['canceled_at'])} by {story['canceled_by']}: {said}", "red"
    yield from payload_lines(story)
    for delivery in story["deliveries"]:
        yield "", ""
        yield from delivery_lines(delivery, full=full)
    if story["not_delivered"]:
        yield "", ""
        yield "not sent to", "bold"
    for endpoint in story["not_delivered"]:
        yield f"  {endpoint['url'] or 'deleted endpoint'}  {endpoint['endpoint_id']}", ""
        yield from indented(endpoint["why"], full=True, margin=4)
    hidden = story["not_delivered_count"] - len(story["not_delivered"])
    if hidden:
        yield f"  and {hidden} more endpoints: --full explains them", ""
    if story["operations"]:
        yield "", ""
        yield "what people did", "bold"
    for operation in story["operations"]:
        yield operation_line(operation), ""


def payload_lines(story: Story) -> Iterator[Line]:
    if story["payload_gone_at"]:
        since = cell(story["payload_gone_at"])
        yield f"  payload gone since {since} (outbox.settings.payload_retention)", "yellow"
    else:
        yield from indented(
            json.dumps(story["payload"], indent=2, ensure_ascii=False), full=True, style="dim"
        )


def delivery_lines(delivery: dict[str, Any], *, full: bool) -> Iterator[Line]:
    state, why = delivery["state"], delivery["why"]
    yield f"{delivery['url'] or 'deleted endpoint'}  {delivery['endpoint_id']}", "bold"
    story = f"  {state}" + (f" ({why})" if why and why != state else "")
    if state == "delivered":
        story += f" {cell(delivery['finished_at'])}, {spoken(delivery['total_ms'] / 1000)} after the event"
    elif delivery["finished_at"]:
        story += f" {cell(delivery['finished_at'])}"
    elif state == "leased":
        story += f" by {delivery['worker']} until {cell(delivery['lease_expires_at'])}"
    else:
        story += f", next attempt {cell(delivery['next_attempt_at'])}"
    for count, word in ((delivery["replay_count"], "replayed"), (delivery["lost_count"], "lost leases")):
        story += f", {word}: {count}" if count else ""
    yield story, _COLOURS.get(state, "")
    body = None
    for attempt in delivery["attempts"]:
        again = not full and attempt["response_body"] and attempt["response_body"] == body
        yield from attempt_lines(attempt, full=full, again=bool(again))
        body = attempt["response_body"]
    for lease in delivery["lost_leases"]:
        yield (
            f"  lease lost: attempt {lease['attempt_no']} by {lease['worker']}, expired {cell(lease['expired_at'])}",
            "yellow",
        )
        if lease["late_started_at"]:
            late = lease["late_status"] or lease["late_error"]
            yield (
                f"    its result came too late: {late}, request of {cell(lease['late_started_at'])}",
                "yellow",
            )


def attempt_lines(attempt: dict[str, Any], *, full: bool, again: bool) -> Iterator[Line]:
    """What one attempt came to; `again`: its response is the one before it, which is not told twice."""
    answered = attempt["status"] is not None
    said = f"HTTP {attempt['status']}" if answered else "no answer"
    error = f"  {attempt['error']}" if attempt["error"] else ""
    good = answered and 200 <= attempt["status"] <= 299
    yield (
        (
            f"  attempt {attempt['attempt_no']}  {cell(attempt['started_at'])}  {said} in {attempt['duration_ms']} ms"
            f"  by {attempt['worker']}{error}{', with the same response' if again else ''}"
        ),
        "green" if good else "red",
    )
    if full:
        yield f"    to {attempt['url']} (version {attempt['endpoint_version']} of the endpoint)", ""
        yield from indented(headers_text(attempt["request_headers"]), full=True, mark="> ", margin=4)
    if answered and attempt["response_gone_at"]:
        yield (
            f"    response gone since {cell(attempt['response_gone_at'])} (outbox.settings.response_retention)",
            "yellow",
        )
    elif answered and full:
        yield from indented(
            headers_text(attempt["response_headers"]), full=True, mark="< ", margin=4, style="dim"
        )
    if attempt["response_body"] and not again:
        yield from indented(attempt["response_body"], full=full, mark="< ", margin=4, style="dim")


def headers_text(headers: Any) -> str:
    """Write headers as on the wire, whether stored as an object or as a list of pairs."""
    pairs = headers.items() if isinstance(headers, dict) else headers or []
    return "\n".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value, default=plain)}"
        for name, value in pairs
    )


def indented(text: str, *, full: bool, mark: str = "", margin: int = 2, style: str = "") -> Iterator[Line]:
    shown = text if full else text[:_SHORT]
    for line in shown.splitlines():
        yield " " * margin + mark + line, style
    if len(text) > len(shown):
        yield f"{' ' * margin}… {len(text) - len(shown)} more characters: --full", style


def operation_line(operation: dict[str, Any]) -> str:
    text = f"  {cell(operation['created_at'])}  {operation['kind']} by {operation['requested_by']}"
    if operation["of_many"]:
        whose = f"the endpoint {operation['endpoint_id']}" if operation["endpoint_id"] else "a list of events"
        text += f" of {whose} ({operation['affected']} deliveries, {operation['state']})"
    elif operation["endpoint_id"]:
        text += f" for endpoint {operation['endpoint_id']}"
    if not operation["of_many"] and operation["affected"] == 0:
        text += ", which moved nothing"
    return text + (f": {operation['reason']}" if operation["reason"] else "")
