"""
Places at which a test makes this process die, freeze or wait.

`await reach("in_transaction")` does nothing, and costs less than 0.1 us, unless
`EMBEDFLEET_FAILPOINTS` was set when this module was imported. It is a comma-separated list of
`name:action[:when]`:

- action: `kill` (SIGKILL), `stop` (SIGSTOP, until somebody sends SIGCONT), `exit` (code 70,
  with no clean-up), `delay=SECONDS`;
- when: a probability (`0.05`), or `#7`, the seventh time and no other; left out: always.

`seed:NUMBER` makes chance repeatable. What is done is told in one line on standard error before
it is done. Names are those of `NAMES`; each is reached once a batch, but for dead letters.

Never imported by the core; not for use in production.
"""

import asyncio
import json
import os
import random
import signal
from collections.abc import Awaitable, Callable
from typing import NamedTuple

VARIABLE = "EMBEDFLEET_FAILPOINTS"
NAMES = (
    "after_answer",  # the provider has answered: vectors are paid for and nowhere stored
    "in_transaction",  # document rows are written, their chunks are not, nothing is committed
    "after_commit",  # rows are committed, nobody knows it yet
    "before_kafka_commit",  # `next_offset` is in the table, Kafka has not been told
    "in_rebalance",  # drained, the last commit still to come
    "before_claim",  # the partition is assigned, the claim is about to be taken
    "after_claim",  # the claim is taken, the start is not decided
    "in_dead_letter",  # the ledger has it, the topic does not
    "after_dead_letter",  # the topic has it, the ledger does not know
)
EXIT_CODE = 70


class _Failpoint:
    """What one entry asks for, and how often its place was reached."""

    def __init__(self, action: str, when: str, chance: random.Random) -> None:
        self.action, _, seconds = action.partition("=")
        if self.action not in ("kill", "stop", "exit", "delay"):
            raise ValueError(f"{VARIABLE}: unknown action {action!r}")
        self.seconds = float(seconds or 0)
        self._number = int(when[1:]) if when.startswith("#") else None
        self._probability = 1.0 if self._number is not None else float(when or 1)
        self._chance = chance
        self._reached = 0

    def is_due(self) -> bool:
        self._reached += 1
        if self._number is not None:
            return self._reached == self._number
        return self._chance.random() < self._probability


class Failpoints:
    """
    The failpoints that are set.

        >>> points = Failpoints("in_transaction:delay=0:#2,seed:7")
        >>> [points.due("in_transaction") for _ in range(3)] == [None, ("delay", 0.0), None]
        True
    """

    def __init__(self, text: str) -> None:
        entries = [entry.split(":") for entry in text.split(",")]
        seeds = [int(entry[1]) for entry in entries if entry[0] == "seed"]
        chance = random.Random(seeds[0] if seeds else None)  # noqa: S311 - no secret
        self._points: dict[str, list[_Failpoint]] = {}
        for name, action, *when in (entry for entry in entries if entry[0] != "seed"):
            if name not in NAMES:
                raise ValueError(f"{VARIABLE}: unknown failpoint {name!r}")
            point = _Failpoint(action, "".join(when), chance)
            self._points.setdefault(name, []).append(point)

    def due(self, name: str) -> "Due | None":
        """Count that a place is reached, and return what has to be done there now."""
        due = [point for point in self._points.get(name, ()) if point.is_due()]
        return Due(due[0].action, due[0].seconds) if due else None

    async def reach(self, name: str) -> None:
        """Do at this place what was asked for."""
        due = self.due(name)
        if due is not None:
            line = {"action": "failpoint", "name": name, "does": due.action}
            os.write(2, json.dumps(line).encode() + b"\n")
            await _do(due)


class Due(NamedTuple):
    """What has to be done at a place."""

    action: str
    seconds: float


async def _do(due: Due) -> None:
    match due.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "exit":
            os._exit(EXIT_CODE)
        case "delay":
            await asyncio.sleep(due.seconds)


async def _pass(_name: str) -> None:
    """Do nothing: no failpoint is set."""


_text = os.environ.get(VARIABLE)
reach: Callable[[str], Awaitable[None]] = Failpoints(_text).reach if _text else _pass
