"""
Workers of a benchmark: each a process of its own, that tells what it has done.

Started by `spawn`, as a worker on another machine would be: nothing is inherited but the
settings. They do not hear a Ctrl-C at the terminal; they drain when their pipe closes.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import resource
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Self

from worker.adapters.pg_client import Database
from worker.app.assembly import Worker
from worker.app.observation import Observation
from worker.app.process import log_as, run_loop
from worker.app.worker import work
from worker.config import Settings
from worker.core.lifecycle import Phase
from worker.errors import JobFailed, WorkerError
from worker.ops.bench import LOOK_SECONDS, Look, look_at, summed

_SPAWN = multiprocessing.get_context("spawn")
_BEYOND_DRAIN_SECONDS = 20.0
"""Leaving the group takes up to 5 s, and ending the process."""
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # getrusage(2) of macOS, and of Linux


class BenchWorkers:
    """So many workers with the same settings; `async with` starts and drains them."""

    def __init__(self, settings: Settings, count: int) -> None:
        self._settings = settings
        self._count = count
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._looks: list[Look] = []

    async def __aenter__(self) -> Self:
        """Start them; they are at work some seconds later."""
        # Its start unblocks what is blocked (CPython 3.11), so it comes first.
        resource_tracker.ensure_running()
        # Blocked signals are inherited: an interrupt is for us, who then end them in order.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(self._count):
                self._start()
        except BaseException:
            self._kill()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self

    def _start(self) -> None:
        ours, theirs = _SPAWN.Pipe(duplex=False)
        process = _SPAWN.Process(target=be_a_worker, args=(self._settings, theirs), daemon=True)
        process.start()
        theirs.close()
        self._pipes.append(ours)
        self._processes.append(process)
        self._looks.append(Look(idle=1))

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let them drain, and wait for it; none is left, also where the wait is cut off."""
        for pipe in self._pipes:
            pipe.close()
        patience_seconds = self._settings.kafka.drain_seconds + _BEYOND_DRAIN_SECONDS
        loop = asyncio.get_running_loop()
        ended = [loop.create_future() for _ in self._processes]
        for process, future in zip(self._processes, ended, strict=True):
            loop.add_reader(process.sentinel, _end, future)
        try:
            await asyncio.wait(ended, timeout=patience_seconds)
        finally:
            for process in self._processes:
                loop.remove_reader(process.sentinel)
            self._kill()

    def look(self) -> Look:
        """
        Return what they have done so far.

        Raises:
            JobFailed: one has ended by itself; its reason, where it had one.
        """
        for number, pipe in enumerate(self._pipes):
            try:
                while pipe.poll():
                    told = pipe.recv()
                    if isinstance(told, str):
                        raise JobFailed(f"a worker has ended: {told}")
                    self._looks[number] = told
            except (EOFError, OSError) as error:
                raise JobFailed(
                    "a worker has ended without a word: was it killed, for want of memory?"
                ) from error
        return summed(self._looks)


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def be_a_worker(settings: Settings, pipe: Connection) -> None:
    """Work until the pipe is closed at its other end, and tell what was done meanwhile."""
    # It is no part of the fleet that a collector watches.
    os.environ["OTEL_SDK_DISABLED"] = "true"
    log_as(replace(settings.telemetry, log_level="error", log_format="console"))
    # What it calls an error is often a broker that is asked again a moment later.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        run_loop(_work(settings, pipe))
    except WorkerError as error:
        with contextlib.suppress(OSError):  # nobody listens any more
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
