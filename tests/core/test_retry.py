import time
from math import inf, isfinite, nan

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.config import RetryOptions
from worker.core.retry import (
    THROTTLE_COST,
    TRANSIENT_COST,
    RetryBudget,
    decide,
    parse_retry_after,
    retry_cost,
)
from worker.errors import ProviderUnavailable, RateLimited, TransientError

OPTIONS = RetryOptions(
    max_attempts=5,
    base_seconds=0.1,
    cap_seconds=0.5,
    throttle_base_seconds=1,
    throttle_cap_seconds=60,
)
FAILED = ProviderUnavailable(status=500)
IN_VAIN = ProviderUnavailable(status=500, should_retry=False)
NOT_IN_VAIN = ProviderUnavailable(status=500, should_retry=True)
ILL_FOR_A_WHILE = ProviderUnavailable(status=503, retry_after_seconds=7)
THROTTLED = RateLimited(status=429)

# 1994-11-06T08:49:37Z, the moment of RFC 9110's examples.
NOW = 784_111_777.0


def asked(seconds: float) -> RateLimited:
    return RateLimited(status=429, retry_after_seconds=seconds)


@pytest.mark.parametrize(
    ("error", "attempt", "jitter", "wait_seconds"),
    [
        pytest.param(FAILED, 1, 0.5, 0.05, id="half of the base"),
        pytest.param(FAILED, 2, 0.5, 0.1, id="twice of that"),
        pytest.param(FAILED, 4, 0.5, 0.25, id="half of the cap"),
        pytest.param(FAILED, 4, 0.0, 0.0, id="full jitter begins at 0"),
        pytest.param(FAILED, 5, 0.5, None, id="the attempts are used up"),
        pytest.param(TransientError(), 5, 0.5, None, id="any transient error"),
        pytest.param(TransientError(), 1, 0.5, 0.05, id="... which has no hint"),
        pytest.param(IN_VAIN, 1, 0.5, None, id="the provider says that it is in vain"),
        pytest.param(NOT_IN_VAIN, 1, 0.5, 0.05, id="the provider says that it is not"),
        pytest.param(ILL_FOR_A_WHILE, 1, 0.5, 7, id="a hint of who is not throttled"),
        pytest.param(THROTTLED, 1, 0.5, 0.5, id="throttled"),
        pytest.param(THROTTLED, 5, 0.5, 8.0, id="throttled, no attempt"),
        pytest.param(THROTTLED, 10**6, 0.5, 30.0, id="throttled for ever"),
        pytest.param(asked(7), 1, 0.5, 7, id="a hint is a floor"),
        pytest.param(asked(7), 5, 0.5, 8.0, id="a floor, no ceiling"),
        pytest.param(asked(300), 1, 0.5, 300, id="a hint above the cap"),
        pytest.param(asked(86_400), 1, 0.5, 86_400, id="a day"),
        pytest.param(asked(86_401), 1, 0.5, 0.5, id="more than a day"),
        pytest.param(asked(-1), 1, 0.5, 0.5, id="a negative hint"),
        pytest.param(asked(nan), 1, 0.5, 0.5, id="not a number"),
        pytest.param(asked(inf), 1, 0.5, 0.5, id="for ever"),
    ],
)
def test_a_failed_try_is_followed_by_another_one(error, attempt, jitter, wait_seconds):
    assert decide(error, attempt, OPTIONS, jitter) == wait_seconds


@given(
    st.one_of(st.just(FAILED), st.just(THROTTLED), st.floats().map(asked)),
    st.integers(1, 10**9),
    st.floats(0, 1, exclude_max=True),
)
def test_a_wait_is_finite_and_within_its_bounds(error, attempt, jitter):
    wait_seconds = decide(error, attempt, OPTIONS, jitter)
    if isinstance(error, RateLimited):
        hint = error.retry_after_seconds or 0
        assert 0 <= wait_seconds <= max(60, hint if hint <= 86_400 else 0)
    elif wait_seconds is not None:
        assert attempt < OPTIONS.max_attempts
        assert 0 <= wait_seconds <= 0.5


def test_one_attempt_is_no_retry():
    assert decide(FAILED, 1, RetryOptions(max_attempts=1), 0.5) is None


HEADERS = {
    "no word of it": ({}, None),
    "seconds": ({"Retry-After": "20"}, 20),
    "a fraction of seconds": ({"retry-after": " 1.5 "}, 1.5),
    "no wait": ({"Retry-After": "0"}, 0),
    "milliseconds come first": ({"Retry-After": "20", "Retry-After-Ms": "1500"}, 1.5),
    "... if they can be read": ({"Retry-After": "20", "retry-after-ms": "soon"}, 20),
    "a date": ({"Retry-After": "Sun, 06 Nov 1994 08:50:37 GMT"}, 60),
    "a date by a clock that is an hour ahead of ours": (
        {
            "Date": "Sun, 06 Nov 1994 09:49:37 GMT",
            "Retry-After": "Sun, 06 Nov 1994 09:50:37 GMT",
        },
        60,
    ),
    "a date in an answer whose own makes no sense": (
        {"Date": "today", "Retry-After": "Sun, 06 Nov 1994 08:50:37 GMT"},
        60,
    ),
    "a date of another zone": ({"Retry-After": "Sun, 06 Nov 1994 17:50:37 +0900"}, 60),
    "a date that has passed": ({"Retry-After": "Sun, 06 Nov 1994 08:00:00 GMT"}, 0),
    "a date as RFC 850 wrote it": ({"Retry-After": "Sunday, 06-Nov-94 08:50:37 GMT"}, 60),
    "a date without a year to count": ({"Retry-After": "Fri, 31 Dec 99999 23:59:59 GMT"}, None),
    "a duration of seconds": ({"x-ratelimit-reset-requests": "1s"}, 1),
    "a duration of milliseconds": ({"X-RateLimit-Reset-Tokens": "120ms"}, 0.12),
    "a duration of minutes": ({"x-ratelimit-reset-tokens": "6m0s"}, 360),
    "a duration with a fraction": ({"x-ratelimit-reset-tokens": "2m59.5s"}, 179.5),
    "a duration of hours": ({"x-ratelimit-reset-requests": "1h0m1s"}, 3601),
    "a duration of days": ({"x-ratelimit-reset-requests": "1d2h"}, 93_600),
    "a duration of a number": ({"x-ratelimit-reset-requests": "5"}, 5),
    "the longest of two": (
        {"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"},
        360,
    ),
    "a hint comes before durations": (
        {"Retry-After": "2", "x-ratelimit-reset-tokens": "6m0s"},
        2,
    ),
    "a limit is no wait": ({"x-ratelimit-remaining-requests": "3"}, None),
    "a negative number": ({"Retry-After": "-1"}, None),
    "not a number": ({"Retry-After": "nan"}, None),
    "an endless number": ({"Retry-After": "9" * 400}, None),
    "an endless duration": ({"x-ratelimit-reset-tokens": "9" * 400 + "s"}, None),
    "an exponent": ({"Retry-After": "1e3"}, None),
    "digits of another script": ({"Retry-After": "\u0661"}, None),
    "words": ({"Retry-After": "later", "x-ratelimit-reset-tokens": "1 week"}, None),
}


@pytest.mark.parametrize(("headers", "wait"), HEADERS.values(), ids=HEADERS)
def test_a_provider_says_how_long_to_wait(headers: dict[str, str], wait: float | None):
    assert parse_retry_after(headers, NOW) == (None if wait is None else pytest.approx(wait))


@pytest.fixture
def tokyo(monkeypatch):
    """A process in another time zone."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone of a process is POSIX")
def test_a_date_without_a_zone_is_utc_wherever_the_worker_runs(tokyo):
    assert parse_retry_after({"Retry-After": "Sun Nov  6 08:50:37 1994"}, NOW) == 60


NAMES = st.sampled_from(
    ["retry-after", "Retry-After-Ms", "x-ratelimit-reset-tokens", "X-RateLimit-Reset-"]
)
DATES = st.from_regex(
    r"(\w{3}, )?[0-9]{1,7}[- ](Jan|Feb|\w{3})[- ]-?[0-9]{1,7} [0-9:]{0,9} ?[+-]?[0-9A-Z]{0,6}",
    fullmatch=True,
)
VALUES = st.one_of(st.text(), st.text("0123456789.smhd-: ,GMT"), DATES)


@given(st.dictionaries(st.one_of(NAMES, st.text()), VALUES))
@example({"retry-after": "Mon, 01 Jan 0001 00:00:00 +2359"})
@example({"retry-after": "Mon, 01 Jan 2026 00:00:00 +999999"})
@example({"retry-after": "0" * 5000})
def test_no_header_makes_it_raise_or_wait_a_negative_time(headers: dict[str, str]):
    wait = parse_retry_after(headers, NOW)
    assert wait is None or (isfinite(wait) and wait >= 0)


def test_a_retry_costs_less_where_the_provider_asked_for_it():
    assert retry_cost(FAILED) == TRANSIENT_COST
    assert retry_cost(THROTTLED) == THROTTLE_COST


def test_a_full_budget_pays_for_35_retries():
    budget = RetryBudget()
    assert budget.tokens == 500
    assert [budget.withdraw(TRANSIENT_COST) for _ in range(36)] == [True] * 35 + [False]


def test_in_an_outage_almost_every_request_is_sent_once():
    budget = RetryBudget()
    sent = 0
    for _ in range(60_000):
        sent += 1
        for _ in range(4):
            if not budget.withdraw(TRANSIENT_COST):
                break
            sent += 1
    assert sent / 60_000 < 1.001


@given(st.lists(st.one_of(st.none(), st.integers(1, 20))), st.integers(0, 40))
def test_a_budget_pays_what_it_has_and_never_holds_more_than_its_capacity(steps, capacity):
    budget, model = RetryBudget(capacity), capacity
    for cost in steps:
        if cost is None:
            budget.deposit()
            model = min(capacity, model + 1)
        else:
            assert budget.withdraw(cost) == (model >= cost)
            model -= cost if model >= cost else 0
        assert budget.tokens == model
