"""
Whether so many of a partition's records would be dead letters that it is held instead.

Owns how the last records of one partition ended. A flood of dead letters is most often an
outage in disguise, such as a bad deploy of a publisher or of the provider: letters that nobody
reads help nobody. So above a share of a large sample the guard holds the partition, and later
lets a few records through as a probe: if they go well the flood is over, else it is held again.
Never waits, never reads a clock.

Invariants: of a sample that is too small nobody is held; while held nothing is let through but
the records of a probe.
"""

from collections import deque
from enum import Enum

from worker.config import DeadLetterOptions


class FloodState(Enum):
    """What is let through."""

    FREE = "free"
    HELD = "held"
    PROBING = "probing"


class FloodGuard:
    """
    The guard of one partition under one claim.

    `is_told`: the database says that it is held. `held_at` is when that was written.

        >>> guard = FloodGuard(DeadLetterOptions(sample_records=20, max_share=0.1))
        >>> for number in range(17):
        ...     guard.passed(now=0.0)
        >>> [guard.admits(now=0.0) for number in range(3)]
        [True, True, False]
        >>> guard.state.value, guard.problem
        ('held', '3 of the last 20 records would be dead letters')
    """

    def __init__(self, options: DeadLetterOptions, *, is_held: bool = False) -> None:
        self._options = options
        self._ends: deque[tuple[float, bool]] = deque()
        self._dead = 0
        self._taken = 0
        self.state = FloodState.PROBING if is_held else FloodState.FREE
        self.problem = ""
        self.is_told = is_held
        self.held_at: float | None = None

    @property
    def room(self) -> int | None:
        """How many records may still be polled; None: any number."""
        match self.state:
            case FloodState.FREE:
                return None
            case FloodState.HELD:
                return 0
            case FloodState.PROBING:
                return max(0, self._options.probe_records - self._taken)

    def took(self, records: int) -> None:
        """Take note that so many were polled."""
        self._taken += records

    def admits(self, now: float) -> bool:
        """Let one more dead letter through, and count it; else the partition is held."""
        if self.state is FloodState.FREE:
            while self._ends and self._ends[0][0] <= now - self._options.window_seconds:
                self._forget()
            if len(self._ends) + 1 >= self._options.sample_records:
                self._judge(dead=self._dead + 1, of=len(self._ends) + 1)
        if self.state is FloodState.HELD:
            return False
        self._count(now, dead=True)
        return True

    def passed(self, now: float) -> None:
        """Count a record that ended well."""
        self._count(now, dead=False)

    def idle(self) -> None:
        """Judge a probe by what there was: nothing is left to poll, nothing in flight."""
        if self.state is FloodState.PROBING:
            self._judge(dead=self._dead, of=len(self._ends))

    def _count(self, now: float, *, dead: bool) -> None:
        self._ends.append((now, dead))
        self._dead += dead
        if self.state is FloodState.PROBING:
            if len(self._ends) >= self._options.probe_records:
                self._judge(dead=self._dead, of=len(self._ends))
        elif len(self._ends) >= self._options.sample_records:
            self._forget()

    def _judge(self, *, dead: int, of: int) -> None:
        if dead > self._options.max_share * of:
            self.state = FloodState.HELD
            self.problem = f"{dead} of the last {of} records would be dead letters"
        else:
            self.state = FloodState.FREE

    def _forget(self) -> None:
        self._dead -= self._ends.popleft()[1]
