"""
A worker's life: join the group, work until told to stop, drain, leave.

Owns the only TaskGroup; whatever waits in a task of its own was spawned through it. An
unexpected exception ends the TaskGroup and so the worker: it is stateless, Kafka delivers
again. A source that is stuck is closed and made anew; if nothing came of it either, the worker
ends. A broker that nobody has reached yet is waited for as long as a start may take; one that
is away later, for as long as it is.
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
        try:
            task = self._group.create_task(coroutine)
        except RuntimeError:  # the group has ended: what is spawned so late is not begun
            coroutine.close()
            raise
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
        self._has_joined = False
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
                stuck = await self._poll(source, stuck)
                await self._partitions.revoked()
            finally:
                self.source = None
                await source.close()
            if stuck == _STUCK_LIMIT and not self.stop.is_set():
                raise WorkerError("the consumer delivers nothing although there is lag")

    async def _poll(self, source: Source, stuck: int) -> int:
        """
        Poll until the stop, or until the source is of no use.

        Returns how many sources in a row were stuck and, but for the first, of no use at all.
        """
        try:
            has_delivered = await self._intake.run(source, self.stop)
        except BrokerUnavailable as error:
            log.warning("the consumer ended", action="consumer_ended", error=str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_SECONDS):
                    await self.stop.wait()
            return 0
        return 1 if has_delivered else stuck + 1

    async def _join(self) -> Source | None:
        """Open a source, patiently; None where the stop came first."""
        give_up_at = self._clock() + self._startup_timeout_seconds
        while not self.stop.is_set():
            self._intake.turn()
            source = self._make_source()
            self._partitions.use(source)
            try:
                if not await self._open(source):
                    break
            except BrokerUnavailable as error:
                await source.close()
                if not self._has_joined and self._clock() >= give_up_at:
                    raise ConfigError(f"the group cannot be joined: {error}") from error
                log.warning(
                    "the group cannot be joined", action="join_failed", error=str(error)
                )
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PAUSE_SECONDS):
                        await self.stop.wait()
            else:
                self.source = source
                self._has_joined = True
                return source
        return None

    async def _open(self, source: Source) -> bool:
        """Join the group, for as long as others drain; False where the stop came first."""
        limit = asyncio.timeout(None)

        async def end_at_stop() -> None:
            await self.stop.wait()
            limit.reschedule(asyncio.get_running_loop().time())

        stopping = self._tasks.spawn(end_at_stop())
        try:
            async with limit:
                await source.open(self._partitions)
        except TimeoutError:
            if not limit.expired():
                raise
            await source.close()
            return False
        finally:
            stopping.cancel()
        return True
