"""
Dashboard, alerts, Prometheus and Collector: tried with the real tools on a real worker.

`verdicts` says what was tried and held, `NOT_VERIFIED` what could not be tried here. Needs
promtool and Prometheus (Debian's package `prometheus` has both), an OpenTelemetry Collector
(`otelcol`), and Jaeger's all-in-one (`jaeger`), as far as they are there.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from pathlib import Path

from tests.manifests import collected, tools
from tests.manifests.watched_fleet import LETTERS, Prometheus, Watched, watched
from tests.support import watching
from tests.support.fleet import upsert
from tests.support.kafka import run_kafka
from tests.support.postgres import run_postgres
from tests.support.servers import open_folder
from tests.support.verdicts import Verdict
from tests.support.watching import Query
from tests.support.worker_process import PATIENCE_SECONDS

_WHAT_NEEDS = {
    "promtool": "promtool is not here: syntax and stories of the alerts, lint of /metrics",
    "prometheus": "Prometheus is not here: the queries of dashboard and alerts on real data",
    "otelcol": "no OpenTelemetry Collector (otelcol) is here: traces and metrics over OTLP",
    "jaeger": "Jaeger's all-in-one (jaeger) is not here: a backend behind the Collector",
}
NOT_VERIFIED: tuple[str, ...] = (
    *(_WHAT_NEEDS[name] for name in tools.missing(*_WHAT_NEEDS)),
    "the dashboard in a real Grafana: its queries run, its looks are not seen",
    "DNS service discovery of the workers: Prometheus is given addresses here",
    "OTLP over gRPC: workers and publishers send over HTTP",
)
# Marks of what does not happen in a run that is well.
_MAY_BE_EMPTY = {"Worker starts"}
_CHOSEN = {
    "$__rate_interval": "1m",
    "$job": ".*",
    "$instance": ".*",
}

_LOOK_SECONDS = 0.5

Check = Callable[[Watched], AsyncIterator[Verdict]]


def verdicts() -> list[Verdict]:
    """Try everything for which the tools are here."""
    return [*_of_files(), *asyncio.run(_of_a_worker())]


def _of_files() -> list[Verdict]:
    tried: list[Verdict] = []
    if tools.find("promtool"):
        stories = len(watching.load(watching.STORIES)["tests"])
        tried += [
            _tool("the alerts are valid", "promtool", "check", "rules", watching.ALERTS),
            _tool(
                f"the alerts fire when they should ({stories} stories)",
                *("promtool", "test", "rules", watching.STORIES),
            ),
            _tool(
                "Prometheus' configuration is valid",
                *("promtool", "check", "config", watching.PROMETHEUS),
            ),
        ]
    if tools.find("otelcol"):
        config = f"--config={watching.COLLECTOR}"
        tried.append(_tool("the Collector's is too", "otelcol", "validate", config))
    return tried


def _tool(claim: str, name: str, *arguments: str | Path) -> Verdict:
    held, said = tools.run(name, *arguments)
    return Verdict(claim, said or "it has nothing to say", held)


async def _of_a_worker() -> list[Verdict]:
    found: list[Verdict] = []
    with open_folder() as folder, run_kafka() as kafka, run_postgres() as postgres:
        async with watched(folder, kafka, postgres) as run:
            await run.publish_everything()
            for check in _checks():
                found += [verdict async for verdict in check(run)]
    return found


def _checks() -> list[Check]:
    needs: list[tuple[Check, set[str]]] = [
        (_lint, {"promtool"}),
        (_traces, {"otelcol"}),
        (_backend, {"otelcol", "jaeger"}),  # it shows the last 1,000 traces
        (_queries, {"prometheus"}),
        (_alerts, {"prometheus"}),
        (_metrics_sent, {"otelcol"}),
        (_own_metrics, {"otelcol", "prometheus"}),
        (_ends, set()),
    ]
    return [check for check, tool in needs if not tools.missing(*tool)]


async def _lint(run: Watched) -> AsyncIterator[Verdict]:
    assert run.worker is not None
    status, text = await run.worker.ask("/metrics")
    held, said = await asyncio.to_thread(tools.run, "promtool", "check", "metrics", text=text)
    families = sum(line.startswith("# TYPE ") for line in text.splitlines())
    yield Verdict(
        "promtool finds nothing wrong with /metrics", said or f"{families} metrics", held
    )
    assert status == 200


async def _queries(run: Watched) -> AsyncIterator[Verdict]:
    """Run every query while documents flow, until each has data."""
    prometheus = run.prometheus
    assert prometheus is not None
    shown = watching.panel_queries()
    # An alert has data where something is wrong; what it looks at has always.
    named = sorted(
        {
            selector.text
            for query in watching.alert_queries()
            for selector in watching.selectors(query.expr)
        }
    )
    needed = shown + [Query(f"series of the alerts: {text}", text) for text in named]
    flow = (upsert(f"flow{n % 50}", n, f"text {n}") for n in count(1))
    async with run.fleet.flow(flow):
        empty = await _until_answered(prometheus, needed)
    for what, queries in (("the dashboard", shown), ("the alerts", needed[len(shown) :])):
        wanted = [query for query in queries if query.of not in _MAY_BE_EMPTY]
        silent = [query.of for query in queries if query in empty]
        yield Verdict(
            f"each query of {what} has data",
            "; ".join(silent) or f"{len(wanted)} of {len(queries)}",
            not silent,
        )


async def _until_answered(prometheus: Prometheus, queries: list[Query]) -> set[Query]:
    waiting = {query for query in queries if query.of not in _MAY_BE_EMPTY}

    async def all_answered() -> bool:
        for query in sorted(waiting):
            if await prometheus.series(_chosen(query.expr)):
                waiting.discard(query)
        return not waiting

    await _comes_true(all_answered)
    for query in queries:
        if query.of in _MAY_BE_EMPTY:
            await prometheus.series(_chosen(query.expr))
    return waiting


def _chosen(expr: str) -> str:
    """Return a query as Grafana sends it, its variables replaced."""
    for name, value in _CHOSEN.items():
        expr = expr.replace(name, value)
    return expr


async def _alerts(run: Watched) -> AsyncIterator[Verdict]:
    prometheus = run.prometheus
    assert prometheus is not None
    groups = (await prometheus.ask("rules"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    sick = [rule["name"] for rule in rules if rule["health"] != "ok"]
    yield Verdict("Prometheus evaluates all alerts", f"{len(rules)}, sick: {sick}", not sick)

    async def reasons() -> set[str]:
        return {one["metric"]["reason"] for one in await prometheus.series(_FIRING)}

    async def all_fire() -> bool:
        return await reasons() == LETTERS

    held = await _comes_true(all_fire)
    told = ", ".join(sorted(await reasons()))
    yield Verdict("the letters of this run raise their alerts, and no others", told, held)


_FIRING = 'ALERTS{alertname="EmbedfleetDeadLetters", alertstate="firing"}'


async def _traces(run: Watched) -> AsyncIterator[Verdict]:
    def linked() -> set[str]:
        return {
            span.name
            for span in collected.spans(run.collector_log)
            if run.trace == span.trace or run.trace in {trace for trace, _ in span.links}
        }

    async def all_there() -> bool:
        return linked() >= {"publish", "embeddings", "store"}

    held = await _comes_true(all_there)
    yield Verdict(
        "producer, provider call and commit are linked in one trace",
        ", ".join(sorted(linked())),
        held,
    )
    row = await run.fleet.row("handbook")
    assert row is not None
    yield Verdict(
        "the provider and the row are told the publisher's trace",
        f"provider {sorted(run.told_provider)}, row {row['trace_id']}",
        run.told_provider == {run.trace} == {row["trace_id"]},
    )


async def _metrics_sent(run: Watched) -> AsyncIterator[Verdict]:
    async def came() -> bool:
        return collected.metrics(run.collector_log)["embedfleet.documents_total"] > 1

    held = await _comes_true(came)
    names = len(collected.metrics(run.collector_log))
    yield Verdict("the Collector is sent the metrics over OTLP", f"{names} of ours", held)


async def _own_metrics(run: Watched) -> AsyncIterator[Verdict]:
    prometheus = run.prometheus
    assert prometheus is not None
    query = 'sum({__name__=~"otelcol_receiver_accepted_spans(_total)?"})'

    async def counted() -> bool:
        return bool(await prometheus.series(query))

    held = await _comes_true(counted)
    found = await prometheus.series(query)
    spans = found[0]["value"][1] if found else "none"
    yield Verdict("Prometheus scrapes the Collector", f"{spans} spans accepted", held)


async def _backend(run: Watched) -> AsyncIterator[Verdict]:
    async def linked() -> bool:
        names = {
            span["operationName"]
            for trace in await run.found_by_jaeger()
            for span in trace["spans"]
            if run.trace in {reference["traceID"] for reference in span["references"]}
        }
        return names == {"embeddings", "store"}

    held = await _comes_true(linked)
    traces = len(await run.found_by_jaeger())
    yield Verdict("a backend behind the Collector shows the links", f"{traces} traces", held)


async def _ends(run: Watched) -> AsyncIterator[Verdict]:
    assert run.worker is not None
    code = await run.fleet.stop(run.worker)
    yield Verdict("the worker that was watched ends in order", f"exit code {code}", code == 0)


async def _comes_true(fact: Callable[[], Awaitable[bool]]) -> bool:
    """Wait for a fact for as long as we are patient; tell whether it came true."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await fact():  # noqa: ASYNC110 - of another process
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        return False
    return True
