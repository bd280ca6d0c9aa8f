"""
A worker whose wall clock jumps: `python -m tests.chaos.wrong_clock run`.

Every few seconds it is right, an hour ahead or an hour behind; `time.monotonic` stays as it is,
as it does where an operator or NTP sets a clock. What a C library asks the kernel for is right.
"""

import json
import os
import sys
import time
from datetime import UTC, datetime
from itertools import cycle

from worker.__main__ import main

HOUR_SECONDS = 3600
STEP_SECONDS = 4.0
SHIFTS = (HOUR_SECONDS, 0, -HOUR_SECONDS, HOUR_SECONDS, -HOUR_SECONDS)

right_time = time.time  # noqa: TID251 - it is made wrong here
shifts = cycle(SHIFTS)


class Clock:
    """Where the wall clock stands, besides being right."""

    shift = next(shifts)
    steps_at = time.monotonic() + STEP_SECONDS


def wrong_time() -> float:
    if time.monotonic() >= Clock.steps_at:
        Clock.shift, Clock.steps_at = next(shifts), time.monotonic() + STEP_SECONDS
        line = {"action": "clock_jumps", "to_seconds": Clock.shift}
        os.write(2, json.dumps(line).encode() + b"\n")
    return right_time() + Clock.shift


class WrongDatetime(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.fromtimestamp(wrong_time(), tz)

    @classmethod
    def utcnow(cls):
        return datetime.fromtimestamp(wrong_time(), UTC).replace(tzinfo=None)


def set_wrong() -> None:
    """Everything that is loaded, and all that asks `time` later, sees the wrong clock."""
    time.time = wrong_time  # noqa: TID251
    time.time_ns = lambda: int(wrong_time() * 1e9)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("worker", "aiobreaker", "aiokafka"):
            for attribute, value in list(vars(module).items()):
                if value is datetime:
                    setattr(module, attribute, WrongDatetime)


if __name__ == "__main__":
    import worker.app.worker  # noqa: F401 - all that a worker needs is loaded before

    set_wrong()
    sys.exit(main())
