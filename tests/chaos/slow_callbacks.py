"""
A worker that tells which callbacks held its loop: `python -m tests.chaos.slow_callbacks run`.

On asyncio's own loop, whose handles can be measured; uvloop's cannot, and both run the same
callbacks. Time of the processor is that of the loop's thread alone: what a machine with more
threads than cores makes a callback wait is in the wall time. A line on standard error for each
callback that took some.
"""

import asyncio
import gc
import json
import os
import sys
import time

from worker.__main__ import main
from worker.app import worker

LEAST_SECONDS = 0.005

run = asyncio.Handle._run


class Collecting:
    """The time of the processor that collecting garbage took, on the loop's thread."""

    seconds = 0.0
    since = 0.0


def on_collection(phase, _info):
    if phase == "start":
        Collecting.since = time.thread_time()
    else:
        Collecting.seconds += time.thread_time() - Collecting.since


def measured(handle):
    collected, wall, began = Collecting.seconds, time.perf_counter(), time.thread_time()
    run(handle)
    took = time.thread_time() - began
    if took >= LEAST_SECONDS:
        tell(
            handle,
            cpu_ms=took,
            wall_ms=time.perf_counter() - wall,
            collecting_ms=Collecting.seconds - collected,
        )


def tell(handle, **seconds):
    milliseconds = {name: round(1000 * value, 1) for name, value in seconds.items()}
    line = {"action": "slow_callback", **milliseconds, "what": what(handle)}
    os.write(2, json.dumps(line).encode() + b"\n")


def what(handle) -> str:
    """The task, and where it stands now; of anything else the callback."""
    task = getattr(handle._callback, "__self__", None)
    if not isinstance(task, asyncio.Task):
        return repr(handle._callback)[:200]
    frames = task.get_stack(limit=1)
    place = f" at {frames[0].f_code.co_filename}:{frames[0].f_lineno}" if frames else ""
    return f"{task.get_coro().__qualname__}{place}"


if __name__ == "__main__":
    gc.callbacks.append(on_collection)
    asyncio.Handle._run = measured
    worker._loop_factory = lambda: asyncio.new_event_loop
    sys.exit(main())
