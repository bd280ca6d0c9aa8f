"""
How many requests may be under way at once, and how many may be sent in a minute.

Owns the limit that the semaphore follows (AIMD) and the buckets of requests and of tokens a
minute (RPM, TPM), and what the provider's headers say about both. Never waits, never reads a
clock: who is told to wait comes back, in turn, and asks again, so a new limit holds at once
and one who leaves takes nothing along.

Invariants: a limit is at least 1 and at most what is configured; over any window of time no
more passes than the rate and one burst (or one request, where that is larger); nobody is told
to wait longer than a minute, unless the provider asks for it.
"""

import re
from collections.abc import Mapping
from math import inf
from typing import Literal

from worker.core.retry import MAX_HINT_SECONDS, parse_retry_after

Kind = Literal["requests", "tokens"]
KINDS: tuple[Kind, Kind] = ("requests", "tokens")

MINUTE_SECONDS = 60.0

# A shorter wait may be lost in the rounding of a clock that shows days, and would not end.
_LEAST_WAIT_SECONDS = 0.001

# A bucket saves one second's worth: little enough for a provider that counts by the minute
# (1.7 % above its limit in the first one), enough for timers that are late.
_BURST_SECONDS = 1.0

# `Retry-After` counts in seconds: who grows faster comes back at the width that was refused.
_GROWTH_SECONDS = 1.0

_NUMBER = re.compile(r"\d{1,15}(?:\.\d{0,15})?", re.ASCII)


class AdaptiveLimit:
    """
    How many requests may be under way: less when throttled, more when that went well.

    A tenth less (at least 1) on a throttle, but once for all calls that began before it: they
    say nothing about the new limit. One more after a round trip in which the limit was reached
    and nobody was throttled, but at most one a second. The numbers are those of Netflix'
    concurrency-limits (AIMDLimit), but for the growth: one a call would throttle every tenth of
    them, and so would one a round trip of 50 ms where a quota is saved up for a second.

        >>> limit = AdaptiveLimit(most=10)
        >>> calls = [limit.begin() for _ in range(10)]
        >>> limit.has_room
        False
        >>> for call in calls:
        ...     limit.throttled(call)
        >>> limit.value
        9
        >>> for call in [limit.begin() for _ in range(9)]:
        ...     limit.answered(call, now=0.0)
        >>> limit.value
        10
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._value = most
        # Counts the cuts: a call knows by it whether it began before the last one.
        self._round = 0
        self._in_flight = 0
        # Answers since the limit was reached, None before that.
        self._answers: int | None = None
        self._grows_at = -inf

    @property
    def value(self) -> int:
        """How many may be under way."""
        return self._value

    @property
    def is_narrowed(self) -> bool:
        """Whether the provider's refusals have made it less than what was asked for."""
        return self._value < self._most

    @property
    def in_flight(self) -> int:
        """How many are under way; after a cut perhaps more than may be."""
        return self._in_flight

    @property
    def has_room(self) -> bool:
        """Whether one more may begin."""
        return self._in_flight < self._value

    def begin(self) -> int:
        """Begin a call where there is room; it ends once, with the number returned."""
        assert self.has_room
        self._in_flight += 1
        if self._answers is None and self._in_flight >= self._value:
            self._answers = 0
        return self._round

    def answered(self, begun: int, now: float) -> None:
        """End a call that was answered, whatever the answer."""
        self._in_flight -= 1
        if begun != self._round or self._answers is None:
            return
        self._answers += 1
        if self._answers >= self._value and now >= self._grows_at:
            self._grows_at = now + _GROWTH_SECONDS
            self._change(self._value + 1)

    def throttled(self, begun: int) -> None:
        """End a call that the provider refused because of its limits."""
        self._in_flight -= 1
        if begun == self._round:
            self._round += 1
            self._change(self._value * 9 // 10)

    def ended(self, _begun: int) -> None:
        """End a call that says nothing about limits: it failed, or was given up."""
        self._in_flight -= 1

    def resume(self, value: int) -> None:
        """Go back to the limit that held before an outage; what began before it is past."""
        self._round += 1
        self._change(value)

    def _change(self, value: int) -> None:
        self._value = max(1, min(self._most, value))
        self._answers = None


class TokenBucket:
    """
    A rate, and what may be saved up of it.

    What is more than the burst is saved for while somebody waits for it. More than a minute's
    worth counts as a minute's: no saving would make it fit, and the provider will say so.

        >>> bucket = TokenBucket(rate_per_minute=60, burst=2)
        >>> [bucket.reserve(1, now=0.0) for _ in range(3)]
        [0.0, 0.0, 1.0]
        >>> bucket.reserve(1, now=1.0)
        0.0
    """

    def __init__(self, rate_per_minute: float, burst: float) -> None:
        self._per_minute = rate_per_minute
        self._burst = burst
        self._level = burst
        self._at = -inf

    def reserve(self, amount: float, now: float) -> float:
        """Take an amount and return 0, or take nothing and return when to ask again."""
        wait = self.wait_seconds(amount, now)
        if not wait:
            self.take(amount, now)
        return wait

    def wait_seconds(self, amount: float, now: float) -> float:
        """Return when an amount will be there, 0 where it is."""
        missing = self._charge(amount) - self._available(amount, now)
        if missing <= 0:
            return 0.0
        return max(_LEAST_WAIT_SECONDS, missing * MINUTE_SECONDS / self._per_minute)

    def take(self, amount: float, now: float) -> None:
        """Take an amount that is there."""
        level = self._available(amount, now) - self._charge(amount)
        self._settle(now)
        self._level = level

    def refit(self, rate_per_minute: float, burst: float, now: float) -> None:
        """Go on with another rate; what was saved is kept."""
        self._settle(now)
        self._per_minute = rate_per_minute
        self._burst = burst

    def drain_to(self, level: float, now: float) -> None:
        """Have no more than this."""
        self._settle(now)
        self._level = min(self._level, level)

    def _charge(self, amount: float) -> float:
        return min(amount, self._per_minute)

    def _available(self, amount: float, now: float) -> float:
        return min(self._saved(now), max(self._burst, self._charge(amount)))

    def _settle(self, now: float) -> None:
        # The cap waits for the next look: one who waits for more than the burst keeps it.
        self._level = self._saved(now)
        self._at = max(self._at, now)

    def _saved(self, now: float) -> float:
        return self._level + max(0.0, now - self._at) * self._per_minute / MINUTE_SECONDS


class RateLimits:
    """
    Requests and tokens a minute, together; None: no limit but what a header says.

    Whoever calls `reserve` must do so in turn (a fair lock round "ask, wait, ask again"):
    then a large request is not overtaken for ever by small ones.

        >>> rates = RateLimits(requests_per_minute=None, tokens_per_minute=6000)
        >>> rates.reserve(tokens=100, now=0.0), rates.reserve(tokens=100, now=0.0)
        (0.0, 1.0)
        >>> rates.pause(20, now=0.0)
        >>> rates.reserve(tokens=100, now=0.0)
        20.0
    """

    def __init__(
        self, requests_per_minute: float | None, tokens_per_minute: float | None
    ) -> None:
        self._configured: dict[Kind, float | None] = {
            "requests": requests_per_minute,
            "tokens": tokens_per_minute,
        }
        self.per_minute = dict(self._configured)
        self._buckets = {
            kind: TokenBucket(limit, _burst(limit))
            for kind, limit in self._configured.items()
            if limit is not None
        }
        self._paused_until = -inf

    def reserve(self, tokens: float, now: float) -> float:
        """Take one request of so many tokens and return 0, or return when to ask again."""
        amounts = {"requests": 1.0, "tokens": tokens}
        waits = [
            bucket.wait_seconds(amounts[kind], now) for kind, bucket in self._buckets.items()
        ]
        wait = max(0.0, self._paused_until - now, *waits)
        if wait:
            return max(_LEAST_WAIT_SECONDS, wait)
        for kind, bucket in self._buckets.items():
            bucket.take(amounts[kind], now)
        return 0.0

    def pause(self, seconds: float, now: float) -> None:
        """Send nothing for a while, as a throttled answer asked; a senseless hint is none."""
        if 0 < seconds <= MAX_HINT_SECONDS:
            self._paused_until = max(self._paused_until, now + seconds)

    def observe(self, headers: Mapping[str, str], now: float) -> None:
        """
        Follow `x-ratelimit-limit-*`, `-remaining-*` and `-reset-*` of an answer of any status.

        A limit is one a minute, as OpenAI, Azure and Groq mean it (Groq's of requests is one a
        day: then it lowers nothing). They lower what is configured and never raise it; the
        last answer holds. One of 0 or less is unknown (Azure).
        """
        told = {name.lower(): value for name, value in headers.items()}
        for kind in KINDS:
            limit = _number(told.get(f"x-ratelimit-limit-{kind}", ""))
            if limit is not None and limit >= 1:
                self._follow(kind, limit, now)
            remaining = _number(told.get(f"x-ratelimit-remaining-{kind}", ""))
            if remaining is not None and kind in self._buckets:
                self._buckets[kind].drain_to(remaining, now)
            if remaining == 0:
                # Some say when their window ends, OpenAI when all of it is back, long after
                # the first request is. So a second at most, which the bucket saves anyway; a
                # longer one comes with the hint of a throttled answer.
                self.pause(min(_BURST_SECONDS, _reset(told, kind)), now)

    def _follow(self, kind: Kind, limit: float, now: float) -> None:
        configured = self._configured[kind]
        limit = limit if configured is None else min(configured, limit)
        if limit == self.per_minute[kind]:
            return
        self.per_minute[kind] = limit
        if kind in self._buckets:
            self._buckets[kind].refit(limit, _burst(limit), now)
        else:
            self._buckets[kind] = TokenBucket(limit, _burst(limit))


def _burst(per_minute: float) -> float:
    return per_minute * _BURST_SECONDS / MINUTE_SECONDS


def _number(text: str) -> float | None:
    text = text.strip()
    return float(text) if _NUMBER.fullmatch(text) else None


def _reset(told: Mapping[str, str], kind: Kind) -> float:
    """Return the seconds of a duration as `core.retry` reads it, 0 where there is none."""
    name = f"x-ratelimit-reset-{kind}"
    return parse_retry_after({name: told.get(name, "")}, now_epoch_seconds=0) or 0.0
