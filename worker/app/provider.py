"""
The provider as a worker calls it: within its limits, behind a breaker, over HTTP.

Owns the nesting of the port's wrappers and what the breaker's changes mean: a log line, an
alarm where a person is needed, and after an outage the width of before it. The width is that
of all models together, so it is brought back only where no other model has steered it since.
"""

from collections.abc import Callable, Mapping
from typing import Any

import structlog

from worker.adapters.breaker_embedder import BreakerEmbedder, StateChange
from worker.adapters.http_embedder import HttpEmbedder, Observe
from worker.adapters.limited_embedder import LimitedEmbedder
from worker.config import BreakerOptions, EmbeddingOptions, Settings
from worker.core.breaker import State
from worker.core.limits import AdaptiveLimit, RateLimits
from worker.ports import Clock, Embedder

log = structlog.get_logger(__name__)


class Provider:
    """An embedder with all its guards; `breaker` tells which models are left alone."""

    def __init__(
        self,
        http: Embedder,
        rates: RateLimits,
        options: EmbeddingOptions,
        breaker: BreakerOptions,
        *,
        clock: Clock,
        jitter: Callable[[], float],
    ) -> None:
        self._limit = AdaptiveLimit(options.concurrency)
        self._widths: dict[str, int] = {}
        self.breaker = BreakerEmbedder(
            http,
            breaker,
            clock=clock,
            jitter=jitter,
            on_state=self._changed,
        )
        self.embedder = LimitedEmbedder(
            self.breaker,
            self._limit,
            rates,
            clock=clock,
            refuse=lambda model: self.breaker.of(model).refuse(),
            max_pause_seconds=breaker.park_hint_seconds,
        )

    @property
    def held_back_seconds(self) -> float:
        """How long a request has stood before the provider's quota so far."""
        return self.embedder.held_back_seconds

    def state(self) -> Mapping[str, Any]:
        """Return what is known of each model that was asked for."""
        return {
            "requests_at_once": self._limit.value,
            "models": {name: one.describe() for name, one in self.breaker.models.items()},
        }

    def open_models(self) -> dict[tuple[str, ...], int]:
        """Return 1 for each model that is left alone, 0 for the others."""
        return {(name,): int(one.is_open) for name, one in self.breaker.models.items()}

    def _changed(self, change: StateChange) -> None:
        if change.before is State.CLOSED:
            self._widths[change.model] = self._limit.value
        if change.after is State.CLOSED and self.breaker.is_alone_in_use(change.model):
            self._limit.resume(self._widths[change.model])
        say = log.error if change.alarms else log.warning
        say(
            f"the provider's breaker is {change.after.value} for model {change.model}",
            action="breaker",
            model=change.model,
            before=change.before.value,
            after=change.after.value,
            wait_seconds=round(change.wait_seconds, 2),
            error=str(change.error) if change.error else None,
        )


def rate_limits(options: EmbeddingOptions) -> RateLimits:
    """Return the configured limits."""
    return RateLimits(options.requests_per_minute, options.tokens_per_minute)


def over_http(
    settings: Settings, *, observe: Observe, clock: Clock, jitter: Callable[[], float]
) -> tuple[HttpEmbedder, Provider]:
    """Return the embedder and its guards, of which the limits follow what its answers say."""
    rates = rate_limits(settings.embedding)
    http = HttpEmbedder(
        settings.embedding,
        observe=observe,
        listen=lambda headers: rates.observe(headers, clock()),
    )
    provider = Provider(
        http, rates, settings.embedding, settings.breaker, clock=clock, jitter=jitter
    )
    return http, provider
