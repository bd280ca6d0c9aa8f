"""
Is the event loop alive, and who blocks it.

`LoopLag` measures on the loop how late timers wake, and says when that lasts. `StallWatchdog`
watches from a thread: when the loop's heartbeat stops it reports the stack that the loop's
thread is in, once per stall. Neither changes anything, and both cost next to nothing; asyncio's
own debug mode (`debug_loop`) makes tasks twenty times slower.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable

BEAT_SECONDS = 0.05
WINDOW_BEATS = 100  # 5 s: one garbage collection is no alarm
ALARM_SHARE = 0.9  # the 90th percentile of a window decides


class LoopLag:
    """
    The lag of the event loop, a heartbeat, and an alarm when the lag lasts.

    `beat` is called on every wake; `alarm` once per window whose 90th percentile is above
    `alarm_seconds`, with that percentile.
    """

    def __init__(
        self,
        alarm_seconds: float,
        *,
        record: Callable[[float], None],
        alarm: Callable[[float], None],
        beat: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._alarm_seconds = alarm_seconds
        self._record = record
        self._alarm = alarm
        self._beat = beat
        self._clock = clock
        self._sleep = sleep
        self._window: list[float] = []

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            asked = self._clock()
            await self._sleep(BEAT_SECONDS)
            if self._beat is not None:
                self._beat()
            self._took(max(0.0, self._clock() - asked - BEAT_SECONDS))

    def _took(self, lag_seconds: float) -> None:
        self._record(lag_seconds)
        self._window.append(lag_seconds)
        if len(self._window) < WINDOW_BEATS:
            return
        window, self._window = sorted(self._window), []
        percentile = window[int(len(window) * ALARM_SHARE)]
        if percentile > self._alarm_seconds:
            self._alarm(percentile)


class StallWatchdog:
    """
    A thread that reports where the loop hangs: `report(silent_seconds, stack)`.

    `start` is called on the loop's thread. `report` is called on the watchdog's thread.
    """

    def __init__(
        self,
        stall_seconds: float,
        report: Callable[[float, str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stall_seconds = stall_seconds
        self._report = report
        self._clock = clock
        self._beaten_at = clock()
        self._reported_at: float | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._watched = threading.get_ident()

    def beat(self) -> None:
        """Say that the loop is alive."""
        self._beaten_at = self._clock()

    def start(self) -> None:
        """Watch the calling thread."""
        self._watched = threading.get_ident()
        self.beat()
        self._thread = threading.Thread(target=self._run, name="stall-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; safe to call twice."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        """Report a stall that was not reported yet; what the thread does all the time."""
        beaten_at = self._beaten_at
        silent_seconds = self._clock() - beaten_at
        if silent_seconds <= self._stall_seconds or self._reported_at == beaten_at:
            return
        self._reported_at = beaten_at
        frame = sys._current_frames().get(self._watched)  # noqa: SLF001  documented, CPython only
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        self._report(silent_seconds, stack)

    def _run(self) -> None:
        while not self._stopping.wait(self._stall_seconds / 4):
            self.check()


def debug_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Log every callback that holds the loop for longer than 0.1 s; slow, for staging."""
    loop.set_debug(True)  # uvloop looks at the duration only in debug mode
    loop.slow_callback_duration = 0.1
