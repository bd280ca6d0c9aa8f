"""
A worker on the real parts, and the command `run`, which is one until a signal.

Owns the order in which connections are opened and closed.
"""

import asyncio
import os
import random
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import cache
from typing import Any, NamedTuple

import stamina.instrumentation
import structlog
from stamina.instrumentation import RetryDetails

from worker.adapters.admin_http import AdminServer
from worker.adapters.kafka_assignor import Fleet
from worker.adapters.kafka_dead_letters import KafkaDeadLetters
from worker.adapters.kafka_source import KafkaSource
from worker.adapters.pg_catalog import PostgresCatalog
from worker.adapters.pg_claims import PostgresClaims
from worker.adapters.pg_client import Database
from worker.adapters.pg_crashes import PostgresCrashes
from worker.adapters.pg_holds import PostgresHolds
from worker.adapters.pg_indexes import PostgresIndexes
from worker.adapters.pg_ledger import PostgresLedger
from worker.adapters.pg_poison import PostgresPoisons
from worker.adapters.pgvector_store import PgvectorStore
from worker.app.assembly import Ports, Surroundings, Worker, assemble
from worker.app.fleet_size import scaling
from worker.app.jobs import check_schema
from worker.app.observation import Observation
from worker.app.process import (
    log_as,
    run_loop,
    spare_the_collector,
    stopped_by_signals,
    until_stopped,
)
from worker.app.provider import Provider, over_http
from worker.config import Settings, TelemetryOptions
from worker.errors import ConfigError, ProviderUnavailable, StoreUnavailable, WrongDimensions
from worker.ops.index_build import IndexBuild
from worker.ops.index_upkeep import IndexUpkeep
from worker.ops.scaling import Scaling
from worker.ports import Embedder, EmbeddingRequest
from worker.telemetry import (
    Counters,
    LoopLag,
    MemoryGrowth,
    StallWatchdog,
    Telemetry,
    debug_loop,
)
from worker.telemetry.memory_growth import Growth

log = structlog.get_logger(__name__)

Beside = Callable[[Worker, Database, Observation], None]
"""Gives a worker what it does beside its work: `worker.runner.beside`."""

_TELEMETRY_SECONDS = 3.0


def run(settings: Settings) -> int:
    """
    Run a worker until a signal; returns the exit code.

    Raises:
        ConfigError: it cannot start like this.
    """
    log_as(settings.telemetry)
    run_loop(_main(settings))
    return 0


async def _main(settings: Settings) -> None:
    def upkeep(worker: Worker, database: Database, observation: Observation) -> None:
        if settings.index.build_due:
            worker.runner.beside.append(_upkeep(settings, database, observation).run)

    stop = asyncio.Event()
    with stopped_by_signals(stop, settings.kafka.drain_seconds):
        await work(settings, stop, upkeep)


async def work(settings: Settings, stop: asyncio.Event, beside: Beside) -> None:
    """
    Be a worker until the stop; `beside` says what else it does.

    Raises:
        ConfigError: it cannot start like this.
    """
    async with AsyncExitStack() as stack:
        counters = Counters()
        telemetry = _telemetry(stack, counters)
        opened = await until_stopped(stop, _open(settings, telemetry, stack))
        if opened is None:
            return
        around = _surroundings(settings, stop, telemetry, opened.provider)
        worker = assemble(settings, opened.ports, around, counters, owner=_owner())
        observation = Observation(
            worker,
            clock=time.monotonic,
            progress_seconds=settings.telemetry.progress_seconds,
            provider=opened.provider.state,
        )
        advice = scaling(settings, worker, opened.database, opened.provider, time.monotonic)
        await _observe(settings.telemetry, worker, observation, advice, telemetry, stack)
        beside(worker, opened.database, observation)
        spare_the_collector()
        log.info("started", action="started", owner=_owner(), group=settings.kafka.group)
        await worker.runner.run()
        log.info("stopped", action="stopped", outcomes=counters.outcomes.total())


def _upkeep(settings: Settings, database: Database, observation: Observation) -> IndexUpkeep:
    indexes, catalog = PostgresIndexes(database), PostgresCatalog(database)

    def has_caught_up() -> bool:
        # What a worker holds at most is soon done, also under an index.
        backlog = observation.backlog()
        return backlog is not None and backlog <= settings.queue.max_documents

    return IndexUpkeep(
        catalog,
        indexes,
        IndexBuild(
            indexes, catalog, settings.index, clock=time.monotonic, watch=lambda _: None
        ),
        check_seconds=settings.index.check_seconds,
        has_caught_up=has_caught_up,
    )


def _telemetry(stack: AsyncExitStack, counters: Counters) -> Telemetry:
    telemetry = Telemetry.start({"service.instance.id": _owner()}, counters=counters)
    stack.callback(telemetry.shutdown, _TELEMETRY_SECONDS)
    return telemetry


class _Opened(NamedTuple):
    """What a worker talks to."""

    ports: Ports
    provider: Provider
    database: Database


async def _open(settings: Settings, telemetry: Telemetry, stack: AsyncExitStack) -> _Opened:
    """Open what a worker talks to; Kafka's group is joined by the runner."""
    database = await _database(settings)
    stack.push_async_callback(database.close)
    embedder, provider = over_http(
        settings,
        observe=telemetry.provider_request,
        clock=time.monotonic,
        jitter=random.random,
    )
    stack.push_async_callback(embedder.close)
    telemetry.observe("provider_tokens_total", lambda: embedder.tokens)
    telemetry.observe(
        "active_connections",
        lambda: {
            "provider": embedder.active_connections,
            "database": database.active_connections,
        },
    )
    telemetry.observe("store_errors", lambda: database.errors)
    claims = PostgresClaims(database)
    telemetry.observe("blockers_ended", lambda: claims.blockers_ended)
    catalog = PostgresCatalog(database)
    await _check_dimensions(catalog, embedder)
    fleet = Fleet(await database.name(), database.name)
    dead_letters = KafkaDeadLetters(settings.kafka)
    stack.push_async_callback(dead_letters.close)
    telemetry.observe("breaker_open", provider.open_models)
    ports = Ports(
        make_source=lambda: KafkaSource(settings.kafka, fleet),
        dead_letters=dead_letters,
        embedder=provider.embedder,
        claims=claims,
        crashes=PostgresCrashes(database),
        holds=PostgresHolds(database),
        store=PgvectorStore(database),
        ledger=PostgresLedger(database),
        poisons=PostgresPoisons(database),
        catalog=catalog,
        limits=embedder.limits,
    )
    return _Opened(ports, provider, database)


async def _database(settings: Settings) -> Database:
    stamina.instrumentation.set_on_retry_hooks([_report_wait])
    patience = stamina.retry_context(
        on=StoreUnavailable,
        attempts=None,
        timeout=settings.startup_timeout_seconds,
        wait_initial=0.2,
        wait_max=2.0,
    )
    try:
        async for attempt in patience:
            with attempt:
                await check_schema(settings.database)
                return await Database.open(settings.database)
    except StoreUnavailable as error:
        waited = f"waited for {settings.startup_timeout_seconds:g} s"
        raise ConfigError(f"{error}; {waited}") from error
    raise AssertionError("unreachable")


def _report_wait(details: RetryDetails) -> None:
    log.warning(
        "the database is waited for", action="database_waits", error=str(details.caused_by)
    )


async def _check_dimensions(catalog: PostgresCatalog, embedder: Embedder) -> None:
    """Refuse collections whose model answers other dimensions; an absent provider can wait."""
    models = {(one.model, one.dimensions) for one in await catalog.collections()}
    for model, dimensions in sorted(models):
        try:
            await embedder.embed(EmbeddingRequest(model, dimensions, ["dimensions"]))
        except WrongDimensions as error:
            raise ConfigError(f"model {model!r}: {error}") from error
        except ProviderUnavailable as error:
            log.warning("provider unavailable", action="probe_failed", error=str(error))


def _surroundings(
    settings: Settings, stop: asyncio.Event, telemetry: Telemetry, provider: Provider
) -> Surroundings:
    executor = ThreadPoolExecutor(settings.ingest.cpu_threads, thread_name_prefix="cpu")
    loop = asyncio.get_running_loop()

    def offload(function: Callable[[], Any]) -> Awaitable[Any]:
        return loop.run_in_executor(executor, function)

    return Surroundings(
        stop=stop,
        clock=time.monotonic,
        wall_clock=time.time,  # noqa: TID251 - freshness is by others' clocks
        jitter=random.random,
        offload=offload,
        tracing=telemetry.tracing,
        observe=telemetry.record,
        is_held=lambda: provider.breaker.is_held,
        sets_aside=provider.breaker.sets_aside,
    )


async def _observe(
    options: TelemetryOptions,
    worker: Worker,
    observation: Observation,
    advice: Scaling,
    telemetry: Telemetry,
    stack: AsyncExitStack,
) -> None:
    observation.register(telemetry)
    _watch_loop(options, worker, stack)
    if options.admin_port is None:
        return

    async def scale() -> Mapping[str, Any]:
        return (await advice())._asdict()

    admin = AdminServer(
        options.admin_host,
        options.admin_port,
        state=observation.state,
        live=observation.live,
        ready=observation.ready,
        metrics=telemetry.metrics_text,
        scale=scale,
    )
    await admin.start()
    stack.push_async_callback(admin.close)
    log.info("admin port", action="admin_listening", port=admin.port)


def _watch_loop(options: TelemetryOptions, worker: Worker, stack: AsyncExitStack) -> None:
    watchdog = StallWatchdog(options.stall_seconds, _report_stall)
    watchdog.start()
    stack.callback(watchdog.stop)
    lag = LoopLag(
        options.loop_lag_alarm_seconds,
        record=worker.counters.event_loop_lag.record,
        alarm=_report_lag,
        beat=watchdog.beat,
    )
    worker.runner.beside.append(lag.run)
    if options.tracemalloc:
        worker.runner.beside.append(MemoryGrowth(_report_growth).run)
    if options.debug_loop:
        debug_loop(asyncio.get_running_loop())


def _report_growth(growth: list[Growth]) -> None:
    for line in growth:
        log.info("memory grows", action="memory_growth", **line._asdict())


def _report_stall(silent_seconds: float, stack: str) -> None:
    log.error(
        "event loop stalls",
        action="loop_stalled",
        seconds=round(silent_seconds, 2),
        stack=stack,
    )


def _report_lag(seconds: float) -> None:
    log.warning("event loop lags", action="loop_lag", p90_seconds=round(seconds, 3))


@cache
def _owner() -> str:
    # In a container that was restarted host and pid are those of the process before it.
    return f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
