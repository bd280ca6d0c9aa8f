"""
A worker that tells how long it waits for others: `python -m tests.chaos.timed run`.

Everything it does with the provider, the database and the brokers has a limit of its own in the
settings. Whenever a kind of operation has come closer to its limit, or further beyond it, than
ever before, a line of the log says so; `overruns` reads them. `/state` tells its tasks as well,
and the log every work that was begun and not ended (`unfinished`).
"""

import asyncio
import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic
from typing import Any

import structlog
from asyncpg import Connection
from asyncpg.pool import Pool

from tests.support.verdicts import Verdict
from tests.support.worker_process import WorkerProcess
from worker.adapters import kafka_dead_letters
from worker.adapters.http_embedder import HttpEmbedder
from worker.adapters.kafka_dead_letters import KafkaDeadLetters
from worker.adapters.kafka_source import KafkaSource
from worker.app.observation import Observation
from worker.cli.root import main as run
from worker.core.model import Work
from worker.pipeline.dispatch import Dispatch
from worker.pipeline.ingest import Stumbled
from worker.pipeline.settle import Settle

SLACK_SECONDS = 1.0
ACTION = "waited"
TASKS = "asyncio_tasks"
UNFINISHED = "unfinished"
FIRST = {"HttpEmbedder", "Connection", "KafkaSource"}
"""What meets a silent peer first; a letter or a free connection is seldom just wanted."""
_carried: ContextVar[Sequence[Work]] = ContextVar("carried", default=())

log = structlog.get_logger(__name__)

Limit = Callable[..., float | None]
"""Of a method, by its own arguments; None: of this call there is none."""


def _of_a_request(embedder: HttpEmbedder, *_) -> float:
    return embedder._options.timeout_seconds


def _of_a_statement(connection: Connection, *_, **__) -> float | None:
    # A migration, which a worker asks for at its start, may take as long as it takes.
    return connection._config.command_timeout


def _of_a_free_connection(_pool: Pool, timeout: float) -> float:
    return timeout


def _of_a_group_request(source: KafkaSource, *_) -> float:
    return source._limit_seconds


def _of_a_letter(*_) -> float:
    return kafka_dead_letters._PUBLISH_SECONDS


LIMITS: dict[tuple[type, tuple[str, ...]], Limit] = {
    (HttpEmbedder, ("_attempt",)): _of_a_request,
    (Connection, ("execute", "executemany", "fetch", "fetchrow", "fetchval")): _of_a_statement,
    (Pool, ("_acquire",)): _of_a_free_connection,
    (
        KafkaSource,
        ("committed", "bounds", "landmark", "topic_ids", "batch", "commit", "confirm"),
    ): _of_a_group_request,
    (KafkaDeadLetters, ("publish",)): _of_a_letter,
}


@dataclass
class Wait:
    """The wait of one kind of operation that came closest to its limit, or furthest beyond."""

    operation: str
    seconds: float
    limit: float

    @property
    def excess(self) -> float:
        return self.seconds - self.limit

    def __str__(self) -> str:
        return f"{self.operation} {self.seconds:.1f} of {self.limit:g} s"


def watch(owner: type, name: str, limit: Limit) -> None:
    """Time every call of a method from now on."""
    call = getattr(owner, name)
    operation = f"{owner.__name__}.{name}"
    worst: Wait | None = None

    @functools.wraps(call)
    async def timed(*args: Any, **more: Any) -> Any:
        nonlocal worst
        began = monotonic()
        try:
            return await call(*args, **more)
        finally:
            own = limit(*args, **more)
            if own is not None:
                worst = _noted(Wait(operation, monotonic() - began, own), worst)

    setattr(owner, name, timed)


def _noted(wait: Wait, worst: Wait | None) -> Wait:
    if worst is not None and wait.excess <= worst.excess:
        return worst
    log.info("waited", action=ACTION, **vars(wait))
    return wait


def count_tasks() -> None:
    """Let `/state` tell how many tasks there are."""
    state = Observation.state

    def counted(self: Observation) -> dict[str, Any]:
        return {**state(self), TASKS: len(asyncio.all_tasks())}

    Observation.state = counted


def tell_unfinished() -> None:
    """Log where the record of each work stands that is left to the next owner, once begun."""
    carry, carry_together, released = (
        Dispatch._carry,
        Dispatch._carry_together,
        Settle.released,
    )

    async def carried(self: Dispatch, work: Work, stumbled: Stumbled | None = None) -> None:
        _carried.set([work])  # of this task alone
        await carry(self, work, stumbled)

    async def carried_together(self: Dispatch, works: list[Work]) -> None:
        _carried.set(works)
        await carry_together(self, works)

    def told(self: Settle, work: Work) -> None:
        if work in _carried.get():
            log.info("left unfinished", action=UNFINISHED, place=list(work.position))
        released(self, work)

    Dispatch._carry, Dispatch._carry_together = carried, carried_together
    Settle.released = told


def unfinished(worker: WorkerProcess) -> set[tuple[str, int, int]]:
    """Where the records stand whose works a worker has begun, and left to the next owner."""
    return {tuple(line["place"]) for line in worker.lines() if line.get("action") == UNFINISHED}


def overruns(workers: Iterable[WorkerProcess], fault_seconds: float) -> list[Verdict]:
    """Judge what these workers have waited for, in faults of that length."""
    waits = [
        Wait(line["operation"], line["seconds"], line["limit"])
        for worker in workers
        for line in worker.lines()
        if line.get("action") == ACTION
    ]
    latest = max(waits, key=lambda wait: wait.excess, default=None)
    reached = {kind(wait) for wait in waits if wait.excess > -0.1}
    due = {kind(wait) for wait in waits if wait.limit + SLACK_SECONDS < fault_seconds} & FIRST
    return [
        Verdict(
            f"no operation waits beyond its own deadline + {SLACK_SECONDS:g} s",
            f"at most {latest}",
            latest is not None and latest.excess <= SLACK_SECONDS,
        ),
        Verdict(
            "tested: deadlines are reached, of all that wait less than a fault lasts",
            ", ".join(sorted(reached)),
            bool(due) and due <= reached,
        ),
    ]


def kind(wait: Wait) -> str:
    return wait.operation.partition(".")[0]


if __name__ == "__main__":
    for (owner, names), limit in LIMITS.items():
        for name in names:
            watch(owner, name, limit)
    count_tasks()
    tell_unfinished()
    sys.exit(run())
