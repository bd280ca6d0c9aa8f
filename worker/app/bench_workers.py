"""
Workers of a benchmark: each a process of its own, that tells what it has done.

Started by `spawn`, as a worker on another machine would be: nothing is inherited but the
settings. They do not hear a Ctrl-C at the terminal; they drain when their pipe closes.
"""

import asyncio
import logging
import multiprocessing
import resource
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

from worker.adapters.pg_client import Database
from worker.app.assembly import Worker
from worker.app.observation import Observation
from worker.app.process import log_as, run_loop
from worker.app.worker import work
from worker.config import Settings
from worker.core.lifecycle import Phase
from worker.errors import ConfigError, WorkerError
from worker.ops.bench import LOOK_SECONDS, Look, look_at, summed

_BEYOND_DRAIN_SECONDS = 20.0
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # getrusage(2) of macOS, and of Linux


class BenchWorkers:
    """So many workers with the same settings; `async with` starts and drains them."""

    def __init__(self, settings: Settings, count: int) -> None:
        self._settings = settings
        self._count = count
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._pipes: list[Connection] = []
        self._looks: list[Look] = []

    async def __aenter__(self) -> Self:
        """Start them; they are at work some seconds later."""
        context = multiprocessing.get_context("spawn")
        # Blocked signals are inherited: an interrupt is for us, who then end them in order.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(self._count):
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(
                    target=be_a_worker, args=(self._settings, theirs), daemon=True
                )
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
                self._looks.append(Look(idle=1))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let them drain, and wait for it."""
        for pipe in self._pipes:
            pipe.close()
        patience_seconds = self._settings.kafka.drain_seconds + _BEYOND_DRAIN_SECONDS
        for process in self._processes:
            await asyncio.to_thread(process.join, patience_seconds)
            if process.is_alive():
                process.kill()
                await asyncio.to_thread(process.join)

    def look(self) -> Look:
        """
        Return what they have done so far.

        Raises:
            ConfigError: one has ended by itself; its reason, where it had one.
        """
        for number, pipe in enumerate(self._pipes):
            try:
                while pipe.poll():
                    told = pipe.recv()
                    if isinstance(told, str):
                        raise ConfigError(f"a worker has ended: {told}")
                    self._looks[number] = told
            except (EOFError, OSError) as error:
                raise ConfigError("a worker has ended by itself") from error
        return summed(self._looks)


def be_a_worker(settings: Settings, pipe: Connection) -> None:
    """Work until the pipe is closed at its other end, and tell what was done meanwhile."""
    log_as(replace(settings.telemetry, log_level="error", log_format="console"))
    # What it calls an error is often a broker that is asked again a moment later.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        run_loop(_work(settings, pipe))
    except WorkerError as error:
        pipe.send(str(error))


async def _work(settings: Settings, pipe: Connection) -> None:
    stop = asyncio.Event()

    def tell(worker: Worker, _database: Database, _observation: Observation) -> None:
        worker.runner.beside.append(partial(_tell, worker, pipe, stop))

    await work(settings, stop, tell)


async def _tell(worker: Worker, pipe: Connection, stop: asyncio.Event) -> None:
    while True:
        used = resource.getrusage(resource.RUSAGE_SELF)
        look = look_at(
            worker.counters,
            partitions=len(list(worker.lives.in_phase(Phase.RUNNING))),
            cpu_seconds=time.process_time(),
            peak_bytes=used.ru_maxrss * _MAXRSS_BYTES,
        )
        try:
            pipe.send(look)
        except OSError:  # nobody listens any more
            stop.set()
            return
        await asyncio.sleep(LOOK_SECONDS)
