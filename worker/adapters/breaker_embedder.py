"""
The port `Embedder` behind circuit breakers, one a model: what is ill is left alone.

Owns one `core.breaker.Gate` for each model that was asked for, and says what each end of a call
means to it. The gate alone decides; an aiobreaker `CircuitBreaker` follows it by `open`,
`half_open` and `close`, and holds the state and its listeners. Nothing is called through that
library, and none of its times is read: it lets every caller probe, takes excluded errors for
successes, replaces the error that opened it, and its clock is right in UTC only (the canaries
in the tests).

Never retries and never waits: who is refused gets `BreakerOpen`. Every error of the embedder
passes through as it is.

Invariants: never two probes of a model at once; while open, no call; refused texts, throttled
and cancelled calls never open it (but a provider that asks for more than minutes does); one
model opens no other's, but by what concerns the account: the key, or the quota.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

from aiobreaker import CircuitBreaker

from worker.config import BreakerOptions
from worker.core.breaker import Gate, Permit, State
from worker.core.model import Vector
from worker.core.retry import MAX_HINT_SECONDS
from worker.errors import (
    BreakerOpen,
    Forbidden,
    KeyRefused,
    ProviderMisconfigured,
    ProviderUnavailable,
    QuotaExhausted,
    RateLimited,
    RejectedInput,
)
from worker.ports import Clock, Embedder, EmbeddingRequest

# What no call can get round until somebody repairs it: of one model, and of all.
OF_THE_MODEL = (ProviderMisconfigured,)
OF_THE_ACCOUNT = (KeyRefused, QuotaExhausted)

IN_USE_SECONDS = 60.0
"""A model that nobody asked for in this time says nothing about what can be embedded."""


class StateChange(NamedTuple):
    """
    A change of a model's state, and why.

    `error` is what opened it. `alarms`: it was opened until somebody repairs something, or by
    the provider's wish, for the first time since it was closed; where all models are parked
    at once, the one whose call said so.
    """

    model: str
    before: State
    after: State
    error: Exception | None
    wait_seconds: float
    alarms: bool


@dataclass(frozen=True, slots=True)
class _Surroundings:
    options: BreakerOptions
    clock: Clock
    jitter: Callable[[], float]
    on_state: Callable[[StateChange], None]


class ModelBreaker:
    """
    The breaker of one model.

    `circuit` is the library's view, for further listeners; it follows and decides nothing.
    `is_parked` tells whether it was said, since it was closed, that no call can succeed for a
    while. `parked_by` is what has to be repaired before it can go on, None where nothing has.
    """

    def __init__(self, model: str, around: _Surroundings) -> None:
        self._model = model
        self._around = around
        self._gate = Gate(around.options)
        self._cause = ""
        self.is_parked = False
        self._was_forbidden = False
        self.parked_by: ProviderUnavailable | None = None
        self.used_at = -inf
        self.circuit = CircuitBreaker(name=f"embedding model {model}")
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
        """Whether the model is left alone, but for a probe."""
        return self.state is not State.CLOSED

    @property
    def wait_seconds(self) -> float:
        """When a call may get through, 0 where one would now."""
        return self._gate.wait_seconds(self._around.clock())

    def describe(self) -> Mapping[str, Any]:
        """Return the state in words."""
        return {
            "state": self.state.value,
            "wait_seconds": round(self.wait_seconds, 2),
            "error": self._cause if self.is_open else None,
        }

    def refuse(self) -> None:
        """
        Refuse who would be refused, without asking for a permit.

        Raises:
            BreakerOpen: no call gets through now.
        """
        if wait_seconds := self.wait_seconds:
            raise BreakerOpen(
                f"model {self._model!r} is left alone: {self._cause}",
                retry_after_seconds=wait_seconds,
            )

    def admit(self) -> Permit:
        """
        Return a permit for one call.

        Raises:
            BreakerOpen: no call gets through now.
        """
        self.used_at = self._around.clock()
        self.refuse()
        permit = self._gate.admit(self.used_at)
        assert permit is not None
        self._follow()
        return permit

    def left(self, permit: Permit) -> None:
        """Take a permit back whose call says nothing."""
        self._gate.left(permit)

    def answered(self, permit: Permit) -> None:
        """Take note of a call that was answered."""
        self._was_forbidden = False
        self._gate.succeeded(permit, self._around.clock())
        self._follow()

    def failed(self, permit: Permit, error: ProviderUnavailable) -> bool:
        """Take note of a call that failed; tell whether it has parked the model."""
        seconds = self._park_seconds(error)
        has_parked = False
        if seconds is not None:
            has_parked = self._gate.open_until(permit, self.spread(seconds))
        elif isinstance(error, RateLimited | Forbidden):
            self._gate.left(permit)
        else:
            self._gate.failed(permit, self._around.clock(), self._around.jitter())
        if has_parked and isinstance(error, (*OF_THE_MODEL, *OF_THE_ACCOUNT)):
            self.parked_by = error
        self._follow(error, parks=seconds is not None)
        return has_parked

    def park(self, error: ProviderUnavailable, until: float) -> None:
        """Leave the model alone for what was said to another one."""
        self._gate.park(until)
        self.parked_by = error
        self.is_parked = True
        self._cause = str(error)  # also where it was open already, for another one
        self._follow(error, parks=True)

    def probe_now(self) -> None:
        """Let the next caller find out whether it is over."""
        self._gate.probe_from(self._around.clock())

    def spread(self, seconds: float) -> float:
        """Return when to come back: who was told the same does not at the same moment."""
        around = self._around
        return around.clock() + seconds + around.jitter() * around.options.max_open_seconds

    def _park_seconds(self, error: ProviderUnavailable) -> float | None:
        """Return for how long no call can succeed, None where the next one may."""
        options = self._around.options
        if isinstance(error, Forbidden):
            # A firewall may forbid one text; the second in a row is everybody's.
            again, self._was_forbidden = self._was_forbidden, True
            return options.park_seconds if again else None
        if isinstance(error, (*OF_THE_MODEL, *OF_THE_ACCOUNT)):
            return options.park_seconds
        if not isinstance(error, RateLimited):
            return None
        hint = error.retry_after_seconds or 0.0
        return hint if options.park_hint_seconds < hint <= MAX_HINT_SECONDS else None

    def _follow(self, error: Exception | None = None, *, parks: bool = False) -> None:
        """Bring the library's state to that of the gate, and tell of the change."""
        before, after = self.state, self._gate.state
        if before is after:
            return
        self._drive[after]()
        if error is not None:
            self._cause = str(error)
        if after is State.CLOSED:
            self.parked_by = None
        alarms = parks and not self.is_parked
        self.is_parked = after is not State.CLOSED and (self.is_parked or parks)
        self._around.on_state(
            StateChange(self._model, before, after, error, self.wait_seconds, alarms)
        )


class BreakerEmbedder:
    """An embedder that is not asked for a model while that model is ill."""

    def __init__(
        self,
        embedder: Embedder,
        options: BreakerOptions,
        *,
        clock: Clock,
        jitter: Callable[[], float],
        on_state: Callable[[StateChange], None] = lambda _: None,
    ) -> None:
        self._embedder = embedder
        self._around = _Surroundings(options, clock, jitter, on_state)
        self._models: dict[str, ModelBreaker] = {}

    @property
    def models(self) -> Mapping[str, ModelBreaker]:
        """The breakers of the models that were asked for."""
        return dict(self._models)

    def of(self, model: str) -> ModelBreaker:
        """Return the breaker of a model, made at its first use."""
        if model not in self._models:
            self._models[model] = ModelBreaker(model, self._around)
        return self._models[model]

    @property
    def is_held(self) -> bool:
        """
        Whether nothing can be embedded: every model that is in use is left alone.

        One that has to be repaired itself does not count: others may be fine that nobody has
        asked for yet, and it would hold them up for as long as nobody repairs it.
        """
        counting = [one for one in self._models.values() if not _is_unfit(one)]
        return any(one.is_open for one in counting) and not any(map(self._is_asked, counting))

    def sets_aside(self, model: str) -> bool:
        """Tell whether a model is left alone although others may be asked."""
        found = self._models.get(model)
        return found is not None and found.is_open and not self.is_held

    def is_alone_in_use(self, model: str) -> bool:
        """Tell whether nobody is served by any other model."""
        return not any(
            self._is_asked(one) for name, one in self._models.items() if name != model
        )

    async def embed(self, request: EmbeddingRequest) -> list[Vector]:
        """
        Return one vector a text, in order.

        Raises:
            BreakerOpen: nothing was sent; ask again after `retry_after_seconds`.
            RejectedInput, ProviderUnavailable: as the embedder does.
        """
        breaker = self.of(request.model)
        permit = breaker.admit()
        try:
            vectors = await self._embedder.embed(request)
        except RejectedInput:
            self._answered(breaker, permit)
            raise
        except ProviderUnavailable as error:
            if breaker.failed(permit, error) and isinstance(error, OF_THE_ACCOUNT):
                self._park_others(breaker, error)
            raise
        except BaseException:
            breaker.left(permit)
            raise
        self._answered(breaker, permit)
        return vectors

    async def close(self) -> None:
        """Release the connections."""
        await self._embedder.close()

    def _answered(self, breaker: ModelBreaker, permit: Permit) -> None:
        is_over = isinstance(breaker.parked_by, OF_THE_ACCOUNT)
        breaker.answered(permit)
        if is_over and not breaker.is_open:
            for other in self._models.values():
                if isinstance(other.parked_by, OF_THE_ACCOUNT):
                    other.probe_now()

    def _park_others(self, told: ModelBreaker, error: ProviderUnavailable) -> None:
        until = told.spread(self._around.options.park_seconds)
        for other in self._models.values():
            # What is parked already, and for its own sake, is not asked any sooner for this.
            if other is not told and not other.is_parked:
                other.park(error, until)

    def _is_asked(self, breaker: ModelBreaker) -> bool:
        is_used = self._around.clock() - breaker.used_at < IN_USE_SECONDS
        return is_used and not breaker.is_open


def _is_unfit(breaker: ModelBreaker) -> bool:
    """Tell whether a model waits for somebody to repair what concerns it alone."""
    error = breaker.parked_by
    return error is not None and not isinstance(error, OF_THE_ACCOUNT)
