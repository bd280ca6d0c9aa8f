"""What a process that works until a signal does about signals."""

import asyncio
import signal

from worker.app.process import stopped_by_signals

DRAIN_SECONDS = 600


class Stop(asyncio.Event):
    """A stop that can be waited for each time it is set."""

    def __init__(self) -> None:
        super().__init__()
        self.times: asyncio.Queue[None] = asyncio.Queue()

    def set(self) -> None:
        super().set()
        self.times.put_nowait(None)


async def test_a_signal_that_comes_after_another_stop_is_the_first_and_is_told():
    stop = Stop()
    with stopped_by_signals(stop, DRAIN_SECONDS) as was_signalled:
        stop.set()
        await stop.times.get()
        assert not was_signalled()
        signal.raise_signal(signal.SIGTERM)
        await stop.times.get()  # the second one would have ended this process
        assert was_signalled()


async def test_signals_do_afterwards_what_they_did_before():
    def handler(*_: object) -> None:
        """Be there."""

    before = {
        number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        with stopped_by_signals(asyncio.Event(), DRAIN_SECONDS):
            assert all(signal.getsignal(number) is not handler for number in before)
        assert all(signal.getsignal(number) is handler for number in before)
    finally:
        for number, one in before.items():
            signal.signal(number, one)
