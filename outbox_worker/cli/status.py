"""status: rates, latency, backlog, the worst endpoints and the workers; once, or live with --watch.

Reads: views for outbox_reader and the minute rollups. Writes: nothing.
Guarantee: counting the backlog, which costs more the more waits, takes at most a tenth of a watcher's time.
"""

import time
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from outbox_worker.cli.moments import spoken
from outbox_worker.cli.output import AsJson, Listing, Output, cell, facts_table
from outbox_worker.cli.session import Connection, rows, session

MINUTES = 30
_BLOCKS = "·▁▂▃▄▅▆▇█"
_WORST = [
    "url",
    "workspace_id",
    "state",
    "why",
    "failing_since",
    "attempts",
    "success_rate",
    "p95_ms",
    "circuit",
    "endpoint_id",
]
_WORKERS = ["name", "state", "shards", "in_flight", "capacity", "seen_at", "version"]


def status(
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until interrupted.")] = False,
    interval: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds between two looks.")] = 2,
    worst: Annotated[
        int,
        typer.Option(
            min=0,
            max=1000,
            help="How many endpoints to list, the worst first: disabled or held, then by circuit, success rate and attempts.",
        ),
    ] = 10,
    as_json: AsJson = False,
) -> None:
    """Show how things stand: rates, latency, backlog, workers, and the endpoints that need a person first.

    Rates, latency and attempts are as the workers reported them, each minute; a dot is a minute without attempts.
    """
    output = Output(as_json=as_json)
    with session() as connection:
        backlog = Backlog(connection)
        if not output.terminal or not watch:
            show(output, look(connection, backlog, worst))
            while watch:
                time.sleep(interval)  # the pace that was asked for
                show(output, look(connection, backlog, worst))
            return
        with Live(
            drawn(look(connection, backlog, worst)), console=output.screen, screen=True, auto_refresh=False
        ) as live:
            while True:
                time.sleep(interval)  # the pace that was asked for
                live.update(drawn(look(connection, backlog, worst)), refresh=True)


class Backlog:
    """The sums of what waits, counted again only when ten times the cost of the last count has passed."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.sums: dict[str, Any] = {}
        self.due = 0.0

    def look(self) -> dict[str, Any]:
        begun = time.monotonic()
        if begun >= self.due:
            self.sums = rows(
                self.connection,
                """
                select coalesce(sum(b.waiting), 0)::bigint as waiting, coalesce(sum(b.due), 0)::bigint as due,
                       coalesce(sum(b.leased), 0)::bigint as leased, coalesce(sum(b.held), 0)::bigint as held,
                       extract(epoch from clock_timestamp() - min(b.oldest_due_at))::float8 as oldest_due_seconds,
                       (select coalesce(sum(f.waiting), 0)::bigint from outbox.fan_out_backlog f) as events_not_fanned_out,
                       clock_timestamp() as counted_at
                from outbox.backlog b
                """,
            )[0]
            now = time.monotonic()
            self.due = now + 10 * (now - begun)
        return self.sums


def look(connection: Connection, backlog: Backlog, worst: int) -> dict[str, Any]:
    minutes = rows(
        connection,
        """
        select g.minute, coalesce(sum(m.attempts), 0)::bigint as attempts, coalesce(sum(m.successes), 0)::bigint as successes,
               coalesce(sum(m.timeouts), 0)::bigint as timeouts, max(m.at) as reported_at
        from generate_series(date_trunc('minute', statement_timestamp()) - make_interval(mins => %(minutes)s),
                             statement_timestamp(), interval '1 minute') as g (minute)
        left join (select e.at, e.attempts, e.successes, e.timeouts from outbox.endpoint_minutes e
                   where e.at >= date_trunc('minute', statement_timestamp()) - make_interval(mins => %(minutes)s)) m
               on date_trunc('minute', m.at) = g.minute
        group by g.minute order by g.minute
        """,
        {"minutes": MINUTES},
    )
    rates = rows(
        connection,
        """
        select coalesce(sum(u.attempts), 0)::bigint as attempts, coalesce(sum(u.successes), 0)::bigint as successes,
               coalesce(round(sum(u.successes) / nullif(sum(u.attempts), 0)::numeric, 4), null)::float8 as success_rate,
               coalesce(round(sum(u.attempts) / 300.0, 2), 0)::float8 as per_second
        from outbox.endpoint_minutes u where u.at > statement_timestamp() - interval '5 minutes'
        """,
    )[0]
    latency = rows(
        connection,
        """
        select outbox.latency_percentile(l.counts, 0.5) as p50_ms, outbox.latency_percentile(l.counts, 0.95) as p95_ms,
               outbox.latency_percentile(l.counts, 0.99) as p99_ms
        from (select array_agg(b.amount order by b.place) as counts
              from (select u.place, sum(u.amount)::bigint as amount
                    from outbox.endpoint_minutes m, unnest(m.latency_counts) with ordinality as u (amount, place)
                    where m.at > statement_timestamp() - interval '5 minutes'
                    group by u.place) b) l
        """,
    )[0]
    endpoints = rows(
        connection,
        """
        select h.endpoint_id, h.workspace_id, h.url, h.state, coalesce(h.filter_error, h.why) as why, h.attempts, h.successes,
               round(h.success_rate, 4) as success_rate, h.p95_ms, h.circuit, h.failing_since, h.per_second
        from outbox.endpoint_health h
        where h.state <> 'active' or h.hold_reason is not null or h.filter_error is not null or h.failing_since is not null
           or h.success_rate < 1 or h.circuit <> 'closed' or h.why in ('slots', 'rate', 'host', 'suspects', 'claim', 'no worker')
        order by (h.state = 'disabled' or h.hold_reason is not null) desc,
                 array_position(array['open', 'half_open'], h.circuit),
                 coalesce(h.success_rate, case when h.failing_since is null then 1 else 0 end), h.attempts desc,
                 h.endpoint_id
        limit %s
        """,
        [worst],
    )
    workers = rows(
        connection,
        """
        select w.worker_no, w.name, w.version, w.state, w.shards, w.in_flight, w.capacity, w.started_at, w.seen_at
        from outbox.workers w
        where w.state = 'live' or w.expires_at > statement_timestamp() - interval '10 minutes'
        order by w.state = 'live' desc, w.worker_no
        """,
    )
    return {
        "at": rows(connection, "select clock_timestamp() as at")[0]["at"],
        "rates": {
            **rates,
            **latency,
            "counted_until": max(
                (minute["reported_at"] for minute in minutes if minute["reported_at"]), default=None
            ),
        },
        "backlog": backlog.look(),
        "worst_endpoints": endpoints,
        "workers": workers,
        "minutes": without_lone_gaps(minutes),
    }


def without_lone_gaps(minutes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out a single minute without a report, and the one that is not over: workers report about each minute."""
    if minutes and not minutes[-1]["reported_at"]:
        minutes = minutes[:-1]
    reported = [True, *(bool(minute["reported_at"]) for minute in minutes), True]
    return [
        minute
        for before, this, after, minute in zip(reported, reported[1:], reported[2:], minutes, strict=False)
        if this or not (before and after)
    ]


def show(output: Output, found: dict[str, Any]) -> None:
    if output.as_json:
        output.json(found)
    elif output.terminal:
        output.screen.print(drawn(found))
    else:
        for name, value in summary(found).items():
            output.line(f"{name}: {cell(value)}")
        for title, columns in (("worst_endpoints", _WORST), ("workers", _WORKERS)):
            for row in found[title]:
                output.line(
                    "\t".join([title[:-1].replace("_", " "), *(cell(row[column]) for column in columns)])
                )


def summary(found: dict[str, Any]) -> dict[str, Any]:
    rates, backlog = found["rates"], found["backlog"]
    live = sum(worker["state"] == "live" for worker in found["workers"])
    success = f", {rates['success_rate']:.2%} answered with 2xx" if rates["success_rate"] is not None else ""
    counted = f", counted until {cell(rates['counted_until'])}" if rates["counted_until"] else ""
    return {
        "at": found["at"],
        "last 5 minutes": f"{rates['attempts']} attempts, {rates['per_second']:g} a second{success}{counted}",
        "latency": f"p50 {rates['p50_ms']} ms, p95 {rates['p95_ms']} ms, p99 {rates['p99_ms']} ms"
        if rates["p50_ms"]
        else "no attempts",
        "events not fanned out": backlog["events_not_fanned_out"],
        "deliveries waiting": f"{backlog['waiting']}: {backlog['due']} due, {backlog['leased']} leased, {backlog['held']} held",
        "oldest due for": spoken(backlog["oldest_due_seconds"]) or "nothing is due",
        "workers live": live or "none: start one with outbox-worker run",
        "attempts a minute": sparkline([minute["attempts"] for minute in found["minutes"]]),
    }


def drawn(found: dict[str, Any]) -> RenderableType:
    parts: list[RenderableType] = [facts_table(summary(found), title="Outbox")]
    if found["worst_endpoints"]:
        parts += [Text(), Listing(found["worst_endpoints"], _WORST, title="Endpoints that need a look")]
    if found["workers"]:
        parts += [Text(), Listing(found["workers"], _WORKERS, title="Workers")]
    return Group(*parts)


def sparkline(values: list[int]) -> str:
    most = max(values, default=0)
    if not most:
        return "none"
    return "".join(_BLOCKS[-(-value * 8 // most)] for value in values) + f"  at most {most}"
