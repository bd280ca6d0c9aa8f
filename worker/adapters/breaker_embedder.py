"""
The port `Embedder` behind a circuit breaker: an ill provider is left alone.

Owns one `core.breaker.Gate` and says what each end of a call means to it. The gate alone
decides; an aiobreaker `CircuitBreaker` follows it by `open`, `half_open` and `close`, and holds
the state and its listeners. Nothing is called through that library, and none of its times is
read: it lets every caller probe, takes excluded errors for successes, replaces the error that
opened it, and its clock is right in UTC only (the canaries in the tests).

Never retries and never waits: who is refused gets `BreakerOpen`. Every error of the embedder
passes through as it is.

Invariants: never two probes at once; while open, no call; refused texts, throttled and
cancelled calls never open it (but a provider that asks for more than minutes does).
"""

from collections.abc import Callable
from typing import NamedTuple

from aiobreaker import CircuitBreaker

from worker.config import BreakerOptions
from worker.core.breaker import Gate, Permit, State
from worker.core.model import Vector
from worker.core.retry import MAX_HINT_SECONDS
from worker.errors import (
    BreakerOpen,
    ProviderMisconfigured,
    ProviderUnavailable,
    QuotaExhausted,
    RateLimited,
    RejectedInput,
)
from worker.ports import Clock, Embedder, EmbeddingRequest

# What no call can get round until somebody repairs it.
NEEDS_A_PERSON = (ProviderMisconfigured, QuotaExhausted)


class StateChange(NamedTuple):
    """
    A change of state, and why.

    `error` is what opened it. `alarms`: it was opened until somebody repairs something, or by
    the provider's wish, for the first time since it was closed.
    """

    before: State
    after: State
    error: Exception | None
    wait_seconds: float
    alarms: bool


class BreakerEmbedder:
    """
    An embedder that is not called while its provider is ill.

    `circuit` is the library's view, for further listeners; it follows and decides nothing.
    """

    def __init__(
        self,
        embedder: Embedder,
        options: BreakerOptions,
        *,
        clock: Clock,
        jitter: Callable[[], float],
        on_state: Callable[[StateChange], None] | None = None,
    ) -> None:
        self._embedder = embedder
        self._options = options
        self._gate = Gate(options)
        self._clock = clock
        self._jitter = jitter
        self._on_state = on_state
        self._cause = ""
        self._has_alarmed = False
        self.circuit = CircuitBreaker(name="embedding provider")
        self._drive = {
            State.CLOSED: self.circuit.close,
            State.OPEN: self.circuit.open,
            State.HALF_OPEN: self.circuit.half_open,
        }

    @property
    def state(self) -> State:
        """Open until a probe is sent, also when its time has come."""
        return State[self.circuit.current_state.name]

    @property
    def is_open(self) -> bool:
        """Whether the provider is left alone, but for a probe."""
        return self.state is not State.CLOSED

    @property
    def wait_seconds(self) -> float:
        """When a call may get through, 0 where one would now."""
        return self._gate.wait_seconds(self._clock())

    async def embed(self, request: EmbeddingRequest) -> list[Vector]:
        """
        Return one vector a text, in order.

        Raises:
            BreakerOpen: nothing was sent; ask again after `retry_after_seconds`.
            RejectedInput, ProviderUnavailable: as the embedder does.
        """
        permit = self._admitted()
        try:
            vectors = await self._embedder.embed(request)
        except RejectedInput:
            self._succeeded(permit)
            raise
        except ProviderUnavailable as error:
            self._failed(permit, error)
            raise
        except BaseException:
            self._gate.left(permit)
            raise
        self._succeeded(permit)
        return vectors

    async def close(self) -> None:
        """Release the connections."""
        await self._embedder.close()

    def _admitted(self) -> Permit:
        now = self._clock()
        permit = self._gate.admit(now)
        if permit is None:
            raise BreakerOpen(
                f"the provider is left alone: {self._cause}",
                retry_after_seconds=self._gate.wait_seconds(now),
            )
        self._follow()
        return permit

    def _succeeded(self, permit: Permit) -> None:
        self._gate.succeeded(permit, self._clock())
        self._follow()

    def _failed(self, permit: Permit, error: ProviderUnavailable) -> None:
        now = self._clock()
        seconds = _park_seconds(error, self._options)
        if seconds is not None:
            # Who was told the same does not come back at the same moment.
            spread = self._jitter() * self._options.max_open_seconds
            self._gate.open_until(permit, now + seconds + spread)
        elif isinstance(error, RateLimited):
            self._gate.left(permit)
        else:
            self._gate.failed(permit, now, self._jitter())
        self._follow(error, parks=seconds is not None)

    def _follow(self, error: Exception | None = None, *, parks: bool = False) -> None:
        """Bring the library's state to that of the gate, and tell of the change."""
        before, after = self.state, self._gate.state
        if before is after:
            return
        self._drive[after]()
        if error is not None:
            self._cause = str(error)
        alarms = parks and not self._has_alarmed
        self._has_alarmed = after is not State.CLOSED and (self._has_alarmed or parks)
        if self._on_state is not None:
            self._on_state(StateChange(before, after, error, self.wait_seconds, alarms))


def _park_seconds(error: ProviderUnavailable, options: BreakerOptions) -> float | None:
    """Return for how long no call can succeed, None where the next one may."""
    if isinstance(error, NEEDS_A_PERSON):
        return options.park_seconds
    if not isinstance(error, RateLimited):
        return None
    hint = error.retry_after_seconds or 0.0
    return hint if options.park_hint_seconds < hint <= MAX_HINT_SECONDS else None
