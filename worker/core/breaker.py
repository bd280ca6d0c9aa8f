"""
Whether the provider is called at all: the gate of the circuit breaker.

Owns the rate of failure over the last seconds, the open times, and the one permit of a probe.
Opens where enough of enough calls failed, or at once where one answer says that no call can
succeed for a while (parked). Once the open time is over, one caller gets through, and only its
success closes the gate. Never waits, never reads a clock, never rolls dice: `now` and `jitter`
are arguments. Which outcomes are failures is the caller's to say.

Invariants: never two probes at once; a call that began before the gate opened or closed last
has no effect; an open time that nobody asked for is at most `max_open_seconds`.
"""

from collections import deque
from enum import Enum
from typing import NamedTuple

from worker.config import BreakerOptions

# While a probe is under way, its end is looked for this often: asking costs no request, and
# after a good probe all go on within this time.
PROBE_POLL_SECONDS = 0.25

# 2 ** 64 times any time is above any cap, and 2.0 ** 1024 overflows.
_MAX_DOUBLINGS = 64


class State(Enum):
    """The three states of a circuit breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Permit(NamedTuple):
    """The right to make one call; it is given back once, with how the call ended."""

    era: int
    is_probe: bool = False


class Gate:
    """
    The decisions of a circuit breaker.

        >>> gate = Gate(BreakerOptions(min_calls=2))
        >>> for permit in [gate.admit(now=0.0), gate.admit(now=0.0)]:
        ...     gate.failed(permit, now=0.0, jitter=0.0)
        >>> gate.state.value, gate.admit(now=0.0), gate.wait_seconds(now=0.0)
        ('open', None, 0.05)
        >>> probe = gate.admit(now=0.05)
        >>> gate.admit(now=0.05) is None  # exactly one
        True
        >>> gate.succeeded(probe, now=0.2)
        >>> gate.state.value
        'closed'
    """

    def __init__(self, options: BreakerOptions) -> None:
        self.options = options
        self._state = State.CLOSED
        # Counts openings and closings, so that a call knows whether it is from before.
        self._era = 0
        self._ended: deque[tuple[float, bool]] = deque()
        self._failures = 0
        self._openings = 0
        self._open_until = 0.0
        self._is_probing = False

    @property
    def state(self) -> State:
        """Open until a probe is admitted, also when its time has come."""
        return self._state

    def admit(self, now: float) -> Permit | None:
        """Return a permit for one call, None where it must wait for `wait_seconds`."""
        if self._state is State.CLOSED:
            return Permit(self._era)
        if self._is_probing or now < self._open_until:
            return None
        self._state = State.HALF_OPEN
        self._is_probing = True
        return Permit(self._era, is_probe=True)

    def wait_seconds(self, now: float) -> float:
        """Return when to ask again, 0 where a call would be admitted now."""
        if self._state is State.CLOSED:
            return 0.0
        return PROBE_POLL_SECONDS if self._is_probing else max(0.0, self._open_until - now)

    def succeeded(self, permit: Permit, now: float) -> None:
        """Take note of a call that was answered; a probe closes the gate."""
        if not self._ends(permit):
            return
        if permit.is_probe:
            self._change(State.CLOSED)
            self._openings = 0
        else:
            self._count(now, failed=False)

    def failed(self, permit: Permit, now: float, jitter: float) -> None:
        """
        Take note of a call that found the provider ill; enough of them open the gate.

        Args:
            permit: what `admit` returned.
            now: the time of a monotonic clock.
            jitter: a random number, 0 <= jitter < 1.
        """
        if not self._ends(permit):
            return
        self._count(now, failed=True)
        if permit.is_probe or self._is_ill():
            self._change(State.OPEN)
            self._open_until = now + self._open_seconds(jitter)
            self._openings += 1

    def open_until(self, permit: Permit, until: float) -> bool:
        """
        Take note of an answer after which no call can succeed before this time.

        Returns whether the call counts: one from before the last change says nothing new.
        """
        if not self._ends(permit):
            return False
        self.park(until)
        return True

    def park(self, until: float) -> None:
        """Open until this time, for what an answer to somebody else's call says."""
        self._change(State.OPEN)
        self._open_until = until

    def probe_from(self, now: float) -> None:
        """Let the next caller be the probe: what it was parked for may be over."""
        self._open_until = min(self._open_until, now)

    def left(self, permit: Permit) -> None:
        """Take a permit back whose call says nothing: cancelled, or throttled."""
        self._ends(permit)

    def _ends(self, permit: Permit) -> bool:
        """Take a permit back; tell whether its call counts."""
        if permit.is_probe:
            self._is_probing = False
        return permit.era == self._era

    def _count(self, now: float, *, failed: bool) -> None:
        self._ended.append((now, failed))
        self._failures += failed
        while self._ended[0][0] <= now - self.options.window_seconds:
            self._failures -= self._ended.popleft()[1]

    def _is_ill(self) -> bool:
        calls = len(self._ended)
        return (
            calls >= self.options.min_calls
            and self._failures / calls >= self.options.failure_rate
        )

    def _open_seconds(self, jitter: float) -> float:
        doublings = min(self._openings, _MAX_DOUBLINGS)
        longest = min(
            self.options.max_open_seconds, self.options.min_open_seconds * 2.0**doublings
        )
        return longest * (jitter if self.options.jitter == "full" else (1 + jitter) / 2)

    def _change(self, state: State) -> None:
        self._state = state
        self._era += 1
        self._ended.clear()
        self._failures = 0
