"""The watchers of the event loop and of memory say what is wrong, once, and stop cleanly."""

import asyncio
import threading
import tracemalloc

import pytest

from worker.telemetry import LoopLag, MemoryGrowth, StallWatchdog, debug_loop
from worker.telemetry.memory_growth import Growth


class Enough(Exception):
    pass


class LateLoop:
    """A clock and a sleep that wakes as late as it is told, then stops."""

    def __init__(self, *late_seconds: float) -> None:
        self.now = 0.0
        self._late = list(late_seconds)

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        if not self._late:
            raise Enough
        self.now += seconds + self._late.pop(0)


async def watched(loop: LateLoop, alarm_seconds: float = 0.05) -> tuple[list, list, list]:
    lags, alarms, beats = [], [], []
    lag = LoopLag(
        alarm_seconds,
        record=lags.append,
        alarm=alarms.append,
        beat=lambda: beats.append(loop.now),
        clock=loop.clock,
        sleep=loop.sleep,
    )
    with pytest.raises(Enough):
        await lag.run()
    return lags, alarms, beats


async def test_the_lag_is_how_much_later_than_asked_the_loop_wakes() -> None:
    lags, alarms, beats = await watched(LateLoop(0.0, 0.2, 0.001))
    assert lags == pytest.approx([0.0, 0.2, 0.001])
    assert alarms == []
    assert len(beats) == 3


async def test_a_lag_that_lasts_is_an_alarm_once_per_window() -> None:
    _, alarms, _ = await watched(LateLoop(*[0.08] * 250))
    assert alarms == pytest.approx([0.08, 0.08])


async def test_a_single_pause_is_no_alarm() -> None:
    _, alarms, _ = await watched(LateLoop(*[0.0] * 95, *[3.0] * 5, *[0.0] * 100))
    assert alarms == []


async def test_a_tenth_of_late_wakes_is_an_alarm() -> None:
    _, alarms, _ = await watched(LateLoop(*[0.0] * 89, *[0.3] * 11))
    assert alarms == pytest.approx([0.3])


async def test_the_lag_of_a_real_loop_is_measured_until_cancelled() -> None:
    measured = asyncio.Event()
    lag = LoopLag(1, record=lambda _: measured.set(), alarm=lambda _: None)
    task = asyncio.get_running_loop().create_task(lag.run())
    async with asyncio.timeout(10):
        await measured.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class TestStallWatchdog:
    def test_a_silent_loop_is_reported_once_per_stall(self) -> None:
        now = [0.0]
        reports: list[tuple[float, str]] = []
        watchdog = StallWatchdog(
            1.0, lambda *report: reports.append(report), clock=lambda: now[0]
        )
        now[0] = 1.0
        watchdog.check()
        assert reports == []
        now[0] = 1.5
        watchdog.check()
        now[0] = 9.0
        watchdog.check()
        assert [seconds for seconds, _ in reports] == [1.5]
        watchdog.beat()
        now[0] = 9.5
        watchdog.check()
        now[0] = 11.0
        watchdog.check()
        assert [seconds for seconds, _ in reports] == [1.5, 2.0]

    def test_the_report_shows_where_the_thread_hangs(self) -> None:
        reported = threading.Event()
        reports: list[str] = []

        def report(_: float, stack: str) -> None:
            reports.append(stack)
            reported.set()

        watchdog = StallWatchdog(0.02, report)
        watchdog.start()

        def a_callback_that_blocks() -> None:
            assert reported.wait(10)

        a_callback_that_blocks()
        watchdog.stop()
        watchdog.stop()
        assert "a_callback_that_blocks" in reports[0]
        assert not [
            thread for thread in threading.enumerate() if thread.name == "stall-watchdog"
        ]

    def test_stopping_one_that_never_started_is_safe(self) -> None:
        StallWatchdog(1.0, lambda *_: None).stop()


async def test_memory_growth_names_the_line_that_grew() -> None:
    kept: list[bytes] = []
    reports: list[list[Growth]] = []

    async def sleep(_: float) -> None:
        if reports:
            raise Enough
        kept.extend(bytes(1000) for _ in range(2000))

    with pytest.raises(Enough):
        await MemoryGrowth(reports.append, sleep=sleep).run()
    assert not tracemalloc.is_tracing()
    (report,) = reports
    assert len(report) <= 10
    largest = max(report, key=lambda growth: growth.grown_bytes)
    assert "test_telemetry_watch.py" in largest.line
    assert largest.grown_bytes > 1_900_000


async def test_the_debug_mode_reports_slow_callbacks() -> None:
    loop = asyncio.new_event_loop()
    debug_loop(loop)
    assert loop.get_debug()
    assert loop.slow_callback_duration == 0.1
    loop.close()
