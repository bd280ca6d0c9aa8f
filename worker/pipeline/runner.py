"""
A worker's life: join the group, work until told to stop, drain, leave.

Owns the only TaskGroup; whatever waits in a task of its own was spawned through it. An
unexpected exception ends the TaskGroup and so the worker: it is stateless, Kafka delivers
again. A source that is stuck is closed and made anew once, then the worker ends.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import structlog

from worker.errors import BrokerUnavailable, ConfigError, WorkerError
from worker.pipeline.intake import Intake
from worker.pipeline.partitions import Partitions
from worker.ports import Clock, Source

log = structlog.get_logger(__name__)

_STUCK_LIMIT = 2
_PAUSE_SECONDS = 1.0


class Tasks:
    """Where tasks are spawned: the runner's TaskGroup, while it is open."""

    def __init__(self) -> None:
        self._group: asyncio.TaskGroup | None = None
        self._running: set[asyncio.Task[None]] = set()

    def open(self, group: asyncio.TaskGroup) -> None:
        """Spawn into this group from now on."""
        self._group = group

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task of the worker."""
        if self._group is None:
            coroutine.close()
            raise RuntimeError("the worker is not running")
        task = self._group.create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def cancel(self) -> None:
        """Cancel what still runs: after the drain nobody waits for it."""
        for task in self._running:
            task.cancel()


class Runner:
    """
    A worker from start to stop, which the first signal sets.

    `beside` are coroutine functions that run for ever beside the work, such as monitors.
    """

    def __init__(
        self,
        make_source: Callable[[], Source],
        partitions: Partitions,
        intake: Intake,
        tasks: Tasks,
        *,
        stop: asyncio.Event,
        clock: Clock,
        startup_timeout_seconds: float,
    ) -> None:
        self._make_source = make_source
        self._partitions = partitions
        self._intake = intake
        self._tasks = tasks
        self._clock = clock
        self._startup_timeout_seconds = startup_timeout_seconds
        self.source: Source | None = None
        self.beside: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self.stop = stop

    async def run(self) -> None:
        """
        Work until `stop` is set, then drain and leave the group.

        Raises:
            ConfigError: the broker could not be reached within the start-up time.
            WorkerError: the consumer was stuck again after it had been made anew.
        """
        async with asyncio.TaskGroup() as group:
            self._tasks.open(group)
            for forever in (self._partitions.run, *self.beside):
                self._tasks.spawn(forever())
            await self._work()
            self._tasks.cancel()

    async def _work(self) -> None:
        stuck = 0
        while (source := await self._join()) is not None:
            try:
                stuck += await self._poll(source)
                await self._partitions.revoked()
            finally:
                self.source = None
                await source.close()
            if stuck == _STUCK_LIMIT:
                raise WorkerError("the consumer delivers nothing although there is lag")

    async def _poll(self, source: Source) -> bool:
        """Poll until the stop, or until the source is of no use; tell whether it was stuck."""
        try:
            await self._intake.run(source, self.stop)
        except BrokerUnavailable as error:
            log.warning("the consumer ended", action="consumer_ended", error=str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_SECONDS):
                    await self.stop.wait()
            return False
        return not self.stop.is_set()

    async def _join(self) -> Source | None:
        """Open a source, patiently; None where the stop came first."""
        deadline = self._clock() + self._startup_timeout_seconds
        while not self.stop.is_set():
            source = self._make_source()
            self._partitions.use(source)
            try:
                await source.open(self._partitions)
            except BrokerUnavailable as error:
                await source.close()
                if self._clock() >= deadline:
                    raise ConfigError(f"Kafka cannot be reached: {error}") from error
                log.warning("Kafka cannot be reached", action="join_failed", error=str(error))
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PAUSE_SECONDS):
                        await self.stop.wait()
            else:
                self.source = source
                return source
        return None
