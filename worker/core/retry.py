"""
Whether a failed embedding request is tried again, and when.

Owns the back-off, what a provider's headers say about waiting, and the budget that keeps
retries from multiplying an outage. Never waits, never reads a clock, never rolls dice: `jitter`
and `now` are arguments.

Invariants: a wait is finite and not negative; being throttled uses up no attempt; of calls that
all fail, the budget lets only its capacity be tried again.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from math import isfinite

from worker.config import RetryOptions
from worker.errors import ProviderUnavailable, RateLimited, TransientError

# A longer hint is no hint: Azure has been seen to ask for 86,400 s, others send timestamps.
MAX_HINT_SECONDS = 86_400.0

# 2 ** 64 times any base is above any cap, and 2.0 ** 1024 overflows.
_MAX_DOUBLINGS = 64

_NUMBER = re.compile(r"\d+(?:\.\d*)?|\.\d+", re.ASCII)
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[dhms]))+", re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[dhms])", re.ASCII)
_UNIT_SECONDS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def decide(
    error: TransientError, attempt: int, options: RetryOptions, jitter: float
) -> float | None:
    """
    Return after how many seconds to try again, None where the attempts are used up.

    Full jitter: anything from 0 to the back-off, which spreads clients that failed together
    better than a back-off with some jitter (AWS Architecture Blog, "Exponential Backoff And
    Jitter", 2015). A provider's hint is a floor, as to come earlier is refused again.

    Args:
        error: how the try failed.
        attempt: which failed try of its kind this is, from 1; throttled ones count apart,
            they have no limit.
        options: the back-off of both kinds, and the attempts.
        jitter: a random number, 0 <= jitter < 1.
    """
    if isinstance(error, RateLimited):
        wait = _back_off(options.throttle_base_seconds, options.throttle_cap_seconds, attempt)
        # The greater one: so a negative hint is none.
        return max(jitter * wait, _hint(error))
    if attempt >= options.max_attempts or _is_final(error):
        return None
    wait = _back_off(options.base_seconds, options.cap_seconds, attempt)
    return max(jitter * wait, _hint(error))


def _is_final(error: TransientError) -> bool:
    """Tell whether the provider itself says that another try makes no sense."""
    return isinstance(error, ProviderUnavailable) and error.should_retry is False


def _back_off(first_seconds: float, cap_seconds: float, attempt: int) -> float:
    return min(cap_seconds, first_seconds * 2.0 ** min(attempt - 1, _MAX_DOUBLINGS))


def _hint(error: TransientError) -> float:
    """Return the provider's hint, 0 for one that makes no sense (nan is not <= anything)."""
    hint = error.retry_after_seconds if isinstance(error, ProviderUnavailable) else None
    return hint if hint is not None and hint <= MAX_HINT_SECONDS else 0.0


def parse_retry_after(headers: Mapping[str, str], now_epoch_seconds: float) -> float | None:
    """
    Return for how long a provider asks to wait, None where it does not say.

    The first that can be read: `retry-after-ms` (OpenAI, Azure), `Retry-After` in seconds or
    as a date (RFC 9110, 10.2.3), `x-ratelimit-reset-*` as durations (OpenAI, Groq). Of
    several of those the longest: which limit was hit is not said. A date is held against the
    answer's own, `now_epoch_seconds` is for an answer without one. Never raises.

        >>> parse_retry_after({"Retry-After": "20"}, now_epoch_seconds=0)
        20.0
        >>> parse_retry_after({"x-ratelimit-reset-tokens": "1m30s"}, now_epoch_seconds=0)
        90.0
    """
    values = {name.lower(): value.strip() for name, value in headers.items()}
    milliseconds = _number(values.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    retry_after = values.get("retry-after", "")
    seconds = _number(retry_after)
    if seconds is None:
        # By the clock that the date was read from; ours may be wrong.
        now = _moment(values.get("date", ""))
        seconds = _until(retry_after, now_epoch_seconds if now is None else now)
    return seconds if seconds is not None else max(_resets(values), default=None)


def _number(text: str) -> float | None:
    """Read a plain decimal; `float` would take signs, underscores, exponents and nan, too."""
    if not _NUMBER.fullmatch(text):
        return None
    return value if isfinite(value := float(text)) else None


def _until(text: str, now_epoch_seconds: float) -> float | None:
    """Return the seconds until an HTTP date, 0 where it has passed."""
    moment = _moment(text)
    return None if moment is None else max(0.0, moment - now_epoch_seconds)


def _moment(text: str) -> float | None:
    """Read an HTTP date, as seconds since 1970."""
    try:
        moment = parsedate_to_datetime(text)
        # RFC 9110, 5.6.7: the old form without a zone is UTC; Python would take local time.
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (ValueError, OverflowError):
        return None


def _resets(values: Mapping[str, str]) -> Iterator[float]:
    for name, value in values.items():
        if name.startswith("x-ratelimit-reset-") and (wait := _duration(value)) is not None:
            yield wait


def _duration(text: str) -> float | None:
    """Read a duration as Go writes it (`6m0s`, `120ms`), or plain seconds."""
    if not _DURATION.fullmatch(text):
        return _number(text)
    wait = sum(float(n) * _UNIT_SECONDS[unit] for n, unit in _DURATION_PART.findall(text))
    return wait if isfinite(wait) else None


TRANSIENT_COST = 14
THROTTLE_COST = 5


def retry_cost(error: TransientError) -> int:
    """Return what a retry takes from the budget: less where the provider asked for it."""
    return THROTTLE_COST if isinstance(error, RateLimited) else TRANSIENT_COST


class RetryBudget:
    """
    A token bucket that retries draw on, shared by all requests to one provider.

    In an outage it is empty after some 35 retries, and every request is sent just once: 1.0
    times the load instead of 5. Numbers and costs are those of the AWS SDKs' standard mode
    (aws-sdk-go-v2 #3400): 500 tokens, a retry costs 14, a throttled one 5, a success gives
    back 1.

        >>> budget = RetryBudget(capacity=20)
        >>> budget.withdraw(TRANSIENT_COST), budget.withdraw(TRANSIENT_COST)
        (True, False)
        >>> for _ in range(8):
        ...     budget.deposit()
        >>> budget.tokens
        14
    """

    def __init__(self, capacity: int = 500) -> None:
        self._capacity = capacity
        self._tokens = capacity

    def withdraw(self, cost: int) -> bool:
        """Pay for one retry; False, and nothing is paid, where the tokens do not suffice."""
        if cost > self._tokens:
            return False
        self._tokens -= cost
        return True

    def deposit(self) -> None:
        """Take note of a success."""
        self._tokens = min(self._capacity, self._tokens + 1)

    @property
    def tokens(self) -> int:
        """What is left."""
        return self._tokens
