"""
What a process that works until a signal is made of: its log, its event loop, its signals.

The first signal drains; the second ends at once; a timer ends what does not end by itself.
"""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import structlog

from worker.config import TelemetryOptions
from worker.telemetry import configure_logging

log = structlog.get_logger(__name__)

T = TypeVar("T")

_EXIT_AFTER_DRAIN_SECONDS = 10.0
"""Commit 3 s, leaving the group up to 5 s, then whatever hangs is ended."""
_GC_THRESHOLDS = 50_000, 20, 50
"""Nothing makes cycles on the way of a document, so collections find nothing: with CPython's
own (700, 10, 10) they took a tenth of all processor time."""


def log_as(options: TelemetryOptions) -> None:
    """Send every line of this process's log through one format."""
    configure_logging(options)
    # At debug it logs every record that it sends, and so the text of a dead letter.
    logging.getLogger("aiokafka.producer").setLevel(logging.INFO)


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run what is all that this process does; an error comes without the groups around it."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            return runner.run(main)
        except BaseExceptionGroup as group:
            raise _first(group) from group


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def spare_the_collector() -> None:
    """
    Let garbage collections look at what comes from now on only.

    What is loaded by now lives as long as the process. To look through it took a full
    collection 50 to 80 ms, in which the loop stood still.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


@contextmanager
def stopped_by_signals(
    stop: asyncio.Event, drain_seconds: float
) -> Iterator[Callable[[], bool]]:
    """
    Set `stop` at the first signal; end the process at the second, or after a drain.

    Yields what tells whether there was a signal. Afterwards they do what they did before.
    """
    loop = asyncio.get_running_loop()
    limit_seconds = drain_seconds + _EXIT_AFTER_DRAIN_SECONDS

    def on_signal(number: int) -> None:
        if ending:
            os._exit(128 + number)
        log.info("stopping", action="stopping", signal=signal.Signals(number).name)
        stop.set()
        timer = loop.call_later(limit_seconds, os._exit, 1)
        ending.append(timer)

    ending: list[asyncio.TimerHandle] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield lambda: bool(ending)
    finally:
        # uvloop leaves the handlers of a closed loop in place (seen in 0.23), and each loop
        # leaves Python's own behind, which for SIGTERM is none.
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
        for timer in ending:
            timer.cancel()


async def until_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Return the result of `work`, or None where the stop came first."""
    async with asyncio.TaskGroup() as group:
        working = group.create_task(work)
        stopping = group.create_task(stop.wait())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not working.done():
            working.cancel()
            return None
    return working.result()
