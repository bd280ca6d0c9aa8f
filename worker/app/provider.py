"""
The provider as a worker calls it: within its limits, behind a breaker, over HTTP.

Owns the nesting of the port's wrappers and what the breaker's changes mean: a log line, an
alarm where a person is needed, and after an outage the width of before it.
"""

from collections.abc import Callable

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
    """An embedder with all its guards; `breaker` tells whether it is left alone."""

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
        self._width = options.concurrency
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
        )

    def _changed(self, change: StateChange) -> None:
        if change.before is State.CLOSED:
            self._width = self._limit.value
        if change.after is State.CLOSED:
            self._limit.resume(self._width)
        say = log.error if change.alarms else log.warning
        say(
            f"the provider's breaker is {change.after.value}",
            action="breaker",
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
