"""
The pipeline put together from ports: the same for the real worker and for simulations.

Plain constructors, no registry. Clock, jitter and CPU offload come from outside, so a
virtual-time loop can run all of it on memory adapters.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from worker.config import Settings
from worker.core.lifecycle import Lives
from worker.core.packing import PackLimits
from worker.core.scheduler import Scheduler
from worker.pipeline.decode import Decode
from worker.pipeline.dispatch import Dispatch
from worker.pipeline.embed import Embed
from worker.pipeline.floods import Floods
from worker.pipeline.give_up import GiveUp
from worker.pipeline.ingest import Ingest
from worker.pipeline.intake import Intake
from worker.pipeline.isolation import OneByOne
from worker.pipeline.marks import Marks
from worker.pipeline.partitions import Partitions
from worker.pipeline.prepare import Collections, Prepare
from worker.pipeline.refusals import Refusals
from worker.pipeline.runner import Runner, Tasks
from worker.pipeline.settle import Settle
from worker.pipeline.store import Save
from worker.pipeline.together import Together
from worker.ports import (
    Catalog,
    Claims,
    Clock,
    Crashes,
    DeadLetters,
    Embedder,
    Holds,
    Ledger,
    Offload,
    Poisons,
    Source,
    Store,
)
from worker.telemetry import Counters, Tracing

Observe = Callable[[str, float], None]
"""Told the name of a histogram and a value, once per batch."""


def _unobserved(_name: str, _value: float) -> None:
    """Take no notice."""


def _never() -> bool:
    return False


def _none(_model: str) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Ports:
    """What a worker talks to; `limits`: what the provider takes in one request."""

    make_source: Callable[[], Source]
    dead_letters: DeadLetters
    embedder: Embedder
    claims: Claims
    crashes: Crashes
    holds: Holds
    store: Store
    ledger: Ledger
    poisons: Poisons
    catalog: Catalog
    limits: PackLimits | None = None


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """
    What a simulation replaces: stop, clocks (seconds), chance in [0, 1), CPU work.

    `is_held` tells that the provider is left alone, so that nothing more is polled;
    `sets_aside` that one model is, while others are not.
    """

    stop: asyncio.Event
    clock: Clock
    wall_clock: Callable[[], float]
    jitter: Callable[[], float]
    offload: Offload
    tracing: Tracing = field(default_factory=Tracing)
    observe: Observe = _unobserved
    is_held: Callable[[], bool] = _never
    sets_aside: Callable[[str], bool] = _none


class Worker(NamedTuple):
    """A worker's parts, as far as anybody outside looks at them."""

    runner: Runner
    intake: Intake
    lives: Lives
    dispatch: Dispatch
    embed: Embed
    counters: Counters


def assemble(
    settings: Settings, ports: Ports, around: Surroundings, counters: Counters, *, owner: str
) -> Worker:
    """Put a worker together; `owner` names it in its claims."""
    tasks, lives = Tasks(), Lives()
    marks = Marks(ports.crashes, jitter=around.jitter, spawn=tasks.spawn)
    refusals = Refusals(ports.poisons, lives)
    scheduler = Scheduler(
        max_documents=settings.queue.max_documents,
        max_bytes=settings.queue.max_bytes,
        quantum_bytes=settings.queue.quantum_bytes,
    )
    ingest, together, embed = _ingest(
        settings,
        ports,
        around,
        tasks,
        lives,
        marks=marks,
        refusals=refusals,
        scheduler=scheduler,
        counters=counters,
    )
    settle = Settle(
        ports.ledger,
        ports.dead_letters,
        lives,
        counters=counters,
        wall_clock=around.wall_clock,
        jitter=around.jitter,
        spawn=tasks.spawn,
    )
    dispatch = Dispatch(
        ingest,
        together,
        settle,
        refusals,
        lives,
        scheduler,
        max_in_flight=settings.queue.max_in_flight,
        counters=counters,
        clock=around.clock,
        spawn=tasks.spawn,
    )
    decode = Decode(settings.ingest, counters)
    give_up = GiveUp(dispatch, decode, clock=around.clock)
    one_by_one = OneByOne(marks, dispatch, decode, give_up)
    partitions = Partitions(
        ports.claims,
        dispatch,
        lives,
        settings.kafka,
        crashes=ports.crashes,
        floods=Floods(ports.holds, lives, settings.dead_letters, clock=around.clock),
        one_by_one=one_by_one,
        give_up=give_up,
        owner=owner,
        counters=counters,
        clock=around.clock,
        jitter=around.jitter,
        spawn=tasks.spawn,
    )
    intake = Intake(
        dispatch,
        lives,
        decode,
        one_by_one,
        clock=around.clock,
        progress_seconds=settings.telemetry.progress_seconds,
        is_held=around.is_held,
    )
    runner = Runner(
        ports.make_source,
        partitions,
        intake,
        tasks,
        stop=around.stop,
        clock=around.clock,
        startup_timeout_seconds=settings.startup_timeout_seconds,
    )
    return Worker(runner, intake, lives, dispatch, embed, counters)


def _ingest(
    settings: Settings,
    ports: Ports,
    around: Surroundings,
    tasks: Tasks,
    lives: Lives,
    *,
    marks: Marks,
    refusals: Refusals,
    scheduler: Scheduler,
    counters: Counters,
) -> tuple[Ingest, Together, Embed]:
    collections = Collections(
        ports.catalog,
        clock=around.clock,
        grace_seconds=settings.ingest.unknown_collection_grace_seconds,
    )
    prepare = Prepare(
        ports.store,
        collections,
        refusals,
        marks,
        settings.ingest,
        offload=around.offload,
        spawn=tasks.spawn,
    )
    embed = Embed(
        ports.embedder,
        settings.embedding,
        settings.retry,
        limits=ports.limits,
        counters=counters,
        jitter=around.jitter,
        tracing=around.tracing,
        spawn=tasks.spawn,
        sets_aside=around.sets_aside,
        lets_in=lambda but: scheduler.waiting > 0 and scheduler.in_flight > but,
    )
    save = Save(
        ports.store,
        settings.ingest,
        counters=counters,
        clock=around.clock,
        tracing=around.tracing,
        observe=around.observe,
        spawn=tasks.spawn,
    )
    ingest = Ingest(
        prepare,
        embed,
        save,
        marks,
        refusals,
        settings.ingest,
        is_ending=lives.is_ending,
        jitter=around.jitter,
    )
    together = Together(
        prepare,
        embed,
        save,
        refusals,
        timeout_seconds=settings.ingest.document_timeout_seconds,
        is_ending=lives.is_ending,
    )
    return ingest, together, embed
