"""How many at once and how many in a minute: never more, and nobody waits for ever."""

from itertools import pairwise
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.core.limits import AdaptiveLimit, RateLimits, TokenBucket

NOW = 1_000.0


# ---- at once ----


def filled(limit: AdaptiveLimit) -> list[int]:
    rounds = []
    while limit.has_room:
        rounds.append(limit.begin())
    return rounds


def at(value: int, most: int = 50) -> AdaptiveLimit:
    limit = AdaptiveLimit(most)
    limit.resume(value)
    return limit


@pytest.mark.parametrize(
    ("value", "lower"), [(50, 45), (45, 40), (10, 9), (9, 8), (2, 1), (1, 1)]
)
def test_a_throttle_takes_a_tenth_and_at_least_one(value, lower):
    limit = at(value)
    limit.throttled(limit.begin())
    assert limit.value == lower


def test_a_burst_of_throttles_takes_a_tenth_once():
    limit = AdaptiveLimit(50)
    for begun in filled(limit):
        limit.throttled(begun)
    assert limit.value == 45


def test_the_next_burst_takes_the_next_tenth():
    limit = AdaptiveLimit(50)
    for _ in range(2):
        for begun in filled(limit):
            limit.throttled(begun)
    assert limit.value == 40


def test_the_limit_grows_by_one_a_round_trip_in_which_it_was_reached():
    limit = at(10)
    for answers in range(10):
        assert limit.value == 10, answers
        limit.answered(filled(limit)[0], NOW)
    assert limit.value == 11


def test_however_short_a_round_trip_is_it_grows_by_one_a_second():
    limit = at(10)
    for milliseconds in range(0, 3_000, 20):
        for begun in filled(limit):
            limit.answered(begun, NOW + milliseconds / 1_000)
    assert limit.value == 13


def test_a_second_after_it_has_grown_it_grows_again():
    limit = at(10)
    for later, value in ((0, 11), (0.99, 11), (1, 12)):
        for begun in filled(limit):
            limit.answered(begun, NOW + later)
        assert limit.value == value


def test_a_limit_that_is_not_reached_does_not_grow():
    limit = at(10)
    for _ in range(1_000):
        rounds = [limit.begin() for _ in range(9)]
        for begun in rounds:
            limit.answered(begun, NOW)
    assert limit.value == 10


def test_the_limit_never_grows_above_the_most():
    limit = AdaptiveLimit(2)
    for seconds in range(10):
        for begun in filled(limit):
            limit.answered(begun, NOW + seconds)
    assert limit.value == 2


def test_answers_of_calls_from_before_the_throttle_let_nothing_grow():
    limit = AdaptiveLimit(10)
    first, *rest = filled(limit)
    limit.throttled(first)
    for begun in rest:
        limit.answered(begun, NOW)
    assert limit.value == 9


def test_nor_do_they_once_the_lower_limit_is_reached():
    limit = AdaptiveLimit(10)
    first, second, *rest = filled(limit)
    limit.throttled(first)
    limit.answered(second, NOW)
    new = limit.begin()
    assert not limit.has_room
    for begun in rest:
        limit.answered(begun, NOW)
    limit.answered(new, NOW)
    assert limit.value == 9


def test_a_call_that_says_nothing_only_makes_room():
    limit = AdaptiveLimit(2)
    for begun in filled(limit):
        limit.ended(begun)
    assert (limit.value, limit.in_flight, limit.has_room) == (2, 0, True)


def test_a_lower_limit_lets_the_calls_under_way_end_first():
    limit = AdaptiveLimit(10)
    first, *rest = filled(limit)
    limit.throttled(first)
    assert not limit.has_room
    limit.answered(rest[0], NOW)
    assert limit.has_room


@pytest.mark.parametrize(("value", "resumed"), [(30, 30), (0, 1), (99, 50)])
def test_after_an_outage_it_resumes_where_it_was(value, resumed):
    limit = at(1)
    limit.resume(value)
    assert limit.value == resumed


def test_throttles_from_before_the_resumption_do_not_lower_it():
    limit = AdaptiveLimit(50)
    begun = limit.begin()
    limit.resume(50)
    limit.throttled(begun)
    assert limit.value == 50


def test_nor_do_those_from_before_the_throttle_that_came_before_the_resumption():
    limit = AdaptiveLimit(50)
    first, second = limit.begin(), limit.begin()
    limit.throttled(first)
    third = limit.begin()
    limit.resume(50)
    limit.throttled(second)
    limit.throttled(third)
    assert limit.value == 50


@pytest.mark.parametrize("capacity", [5, 20, 40])
def test_against_a_provider_of_some_capacity_few_calls_are_throttled(capacity):
    """2 % (2 of 3 dozens for a small one): 0.9 and one a round trip of a second."""
    limit = AdaptiveLimit(50)
    calls = throttled = 0
    for round_trip in range(2_000):
        rounds = filled(limit)
        for place, begun in enumerate(rounds):
            if place < capacity:
                limit.answered(begun, NOW + round_trip)
            else:
                limit.throttled(begun)
        if round_trip > 50:
            calls += len(rounds)
            throttled += max(0, len(rounds) - capacity)
            assert capacity * 0.8 - 1 <= limit.value <= capacity + 1
    assert throttled / calls <= max(0.02, 0.5 / capacity)


@pytest.mark.parametrize("round_trip_seconds", [0.02, 0.05, 0.2])
def test_against_a_quota_that_is_saved_for_a_second_few_calls_are_throttled(round_trip_seconds):
    """200 a second; who is throttled waits for `Retry-After: 1`, and the quota is back."""
    limit, rate = AdaptiveLimit(50), 200
    now, saved, calls, throttled = NOW, rate, 0, 0
    while now < NOW + 120:
        rounds = filled(limit)
        now += round_trip_seconds
        saved = min(rate, saved + rate * round_trip_seconds)
        within = min(len(rounds), int(saved))
        saved -= within
        for begun in rounds[:within]:
            limit.answered(begun, now)
        for begun in rounds[within:]:
            limit.throttled(begun)
        if within < len(rounds):
            now, saved = now + 1, rate
        if now > NOW + 30:
            calls += len(rounds)
            throttled += len(rounds) - within
    assert calls > 80 * rate
    assert throttled / calls <= 0.02


class LimitMachine(RuleBasedStateMachine):
    """Calls of which some are throttled: the bounds of the limit and of its changes."""

    def __init__(self):
        super().__init__()
        self.limit = AdaptiveLimit(12)
        self.in_flight: list[tuple[int, int]] = []
        self.changes = 0
        self.now = NOW

    @precondition(lambda self: self.limit.has_room)
    @rule()
    def begin(self):
        self.in_flight.append((self.limit.begin(), self.changes))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), how=st.sampled_from(["answered", "throttled", "ended"]))
    def end(self, data, how):
        before = self.limit.value
        call = data.draw(st.sampled_from(self.in_flight))
        self.in_flight.remove(call)
        begun, changes = call
        if how == "answered":
            self.now += 1
            self.limit.answered(begun, self.now)
        else:
            getattr(self.limit, how)(begun)
        grown = self.limit.value - before
        lowered = before - max(1, before * 9 // 10)
        match how:
            case "answered":
                assert grown in {0, 1}
            case "throttled":
                assert grown == (-lowered if changes == self.changes else 0)
                self.changes += changes == self.changes
            case _:
                assert grown == 0

    @invariant()
    def the_limit_is_within_its_bounds(self):
        assert 1 <= self.limit.value <= 12

    @invariant()
    def calls_are_counted(self):
        assert self.limit.in_flight == len(self.in_flight)
        assert self.limit.has_room == (len(self.in_flight) < self.limit.value)


TestLimitMachine = LimitMachine.TestCase


# ---- in a minute ----


def send(bucket: TokenBucket | RateLimits, amount: float, now: float) -> float:
    """Come back as told until it is granted, and return when that was; asked a few times."""
    for _ in range(4):
        wait = bucket.reserve(amount, now)
        if not wait:
            return now
        now += wait
    raise AssertionError("told to wait again and again")


@pytest.mark.parametrize(
    ("amounts", "moments"),
    [
        pytest.param([1, 1], [0, 0], id="a burst"),
        pytest.param([1, 1, 1, 1], [0, 0, 1, 2], id="then the rate"),
        pytest.param([2, 2], [0, 2], id="larger amounts take longer"),
        pytest.param([5, 1], [3, 4], id="more than the burst is saved for"),
        pytest.param([60, 1], [58, 59], id="a minute's worth takes that minute"),
        pytest.param([6_000, 1], [58, 59], id="more than a minute's worth counts as that"),
        pytest.param([0, 0, 0], [0, 0, 0], id="nothing costs nothing"),
    ],
)
def test_a_bucket_of_one_a_second_and_a_burst_of_two(amounts, moments):
    bucket = TokenBucket(60, burst=2)
    assert bucket.reserve(0, NOW) == 0
    now = NOW
    granted = [now := send(bucket, amount, now) for amount in amounts]
    assert granted == pytest.approx([NOW + moment for moment in moments], abs=0.01)


def test_what_is_refused_takes_nothing():
    bucket = TokenBucket(60, burst=1)
    assert bucket.reserve(1, NOW) == 0
    for _ in range(10):
        assert bucket.reserve(1, NOW) == 1
    assert bucket.reserve(1, NOW + 1) == 0


def test_an_idle_bucket_saves_no_more_than_its_burst():
    bucket = TokenBucket(60, burst=2)
    bucket.reserve(2, NOW)
    granted = [bucket.reserve(1, NOW + 3_600) for _ in range(3)]
    assert granted == [0, 0, 1]


def test_a_clock_that_stands_still_or_goes_back_gives_nothing_away():
    bucket = TokenBucket(60, burst=1)
    assert bucket.reserve(1, NOW) == 0
    assert bucket.reserve(1, NOW - 500) == 1
    assert bucket.reserve(0, NOW - 500) == 0
    assert bucket.reserve(1, NOW) == 1


RATES = st.floats(1, 1e7)
GAPS = st.one_of(st.just(0.0), st.floats(0, 200))


@given(st.data(), RATES, st.floats(0, 1e6))
def test_over_no_window_more_than_the_rate_passes_and_nobody_starves(data, rate, burst):
    bucket = TokenBucket(rate, burst)
    asks = data.draw(st.lists(st.tuples(GAPS, st.floats(0, 1).map(rate.__mul__)), max_size=30))
    now = NOW
    granted: list[tuple[float, float]] = []
    for gap, amount in asks:
        asked = now = now + gap
        now = send(bucket, amount, now)
        assert now - asked <= 60 + 0.01
        granted.append((now, amount))
    most_at_once = max([burst, *(amount for _, amount in granted)])
    for first in range(len(granted)):
        total = 0.0
        for moment, amount in granted[first:]:
            total += amount
            window = moment - granted[first][0]
            assert total <= most_at_once + (window + 1e-6) * rate / 60 + 1e-6


def test_a_new_rate_counts_from_now_on():
    bucket = TokenBucket(60, burst=0)
    bucket.reserve(1, NOW)
    bucket.refit(6, 0, NOW + 0.5)
    assert bucket.reserve(1, NOW + 0.5) == pytest.approx(5)


def test_those_who_wait_are_not_thrown_back_by_a_new_rate():
    bucket = TokenBucket(600, burst=1)
    bucket.reserve(1, NOW)
    for tick in range(100):
        assert bucket.reserve(100, NOW + tick / 10) > 0
        bucket.refit(600, 1, NOW + tick / 10)
    assert bucket.reserve(100, NOW + 10.01) == 0


def test_a_level_is_lowered_and_never_raised():
    bucket = TokenBucket(60, burst=10)
    bucket.drain_to(3, NOW)
    bucket.drain_to(8, NOW)
    assert [bucket.reserve(1, NOW) for _ in range(4)] == [0, 0, 0, 1]


# ---- both ----


def spent(rates: RateLimits, tokens: float, seconds: float, now: float = NOW) -> int:
    """Send as many requests as pass, and return how many."""
    end = now + seconds
    count = 0
    while now < end:
        wait = rates.reserve(tokens, now)
        now += wait
        count += not wait
    return count


@pytest.mark.parametrize(
    ("requests", "tokens", "each", "sent"),
    [
        pytest.param(600, None, 1_000_000, 610, id="requests only"),
        pytest.param(None, 60_000, 100, 610, id="tokens only"),
        pytest.param(600, 60_000, 10, 610, id="requests bind"),
        pytest.param(600, 60_000, 1_000, 61, id="tokens bind"),
        pytest.param(600, 60_000, 100, 610, id="both bind"),
    ],
)
def test_the_tighter_limit_binds_and_a_second_may_be_saved(requests, tokens, each, sent):
    assert spent(RateLimits(requests, tokens), each, 60) == pytest.approx(sent, abs=1)


def test_without_limits_nobody_waits():
    rates = RateLimits(None, None)
    assert all(rates.reserve(1_000_000, NOW) == 0 for _ in range(1_000))


def test_who_waits_for_one_limit_takes_nothing_from_the_other():
    rates = RateLimits(60, 60)
    assert rates.reserve(60, NOW) == 0
    for _ in range(10):
        assert rates.reserve(60, NOW) == pytest.approx(60)
    assert rates.reserve(0, NOW) == 1
    assert rates.reserve(0, NOW + 1) == 0


@given(
    st.integers(1, 100_000),
    st.integers(1, 10_000_000),
    st.lists(st.tuples(GAPS, st.floats(0, 1)), max_size=30),
)
def test_both_limits_hold_over_any_window(requests, tokens, asks):
    rates = RateLimits(requests, tokens)
    now = NOW
    granted: list[tuple[float, float]] = []
    for gap, share in asks:
        now = send(rates, share * tokens, now + gap)
        granted.append((now, share * tokens))
    assert all(earlier <= later for (earlier, _), (later, _) in pairwise(granted))
    largest = max((amount for _, amount in granted), default=0)
    for first in range(len(granted)):
        total = 0.0
        for count, (moment, amount) in enumerate(granted[first:], 1):
            total += amount
            window = moment - granted[first][0] + 1e-6
            assert count <= max(1, requests / 60) + window * requests / 60
            assert total <= max(largest, tokens / 60) + window * tokens / 60 + 1e-3


# ---- what the provider says ----


def test_a_pause_holds_everything_back_and_a_shorter_one_does_not_end_it():
    rates = RateLimits(None, None)
    rates.pause(20, NOW)
    rates.pause(5, NOW)
    assert rates.reserve(1, NOW) == 20
    assert rates.reserve(1, NOW + 19) == 1
    assert rates.reserve(1, NOW + 20) == 0


def test_a_pause_of_a_day_is_the_longest_that_makes_sense():
    rates = RateLimits(None, None)
    rates.pause(86_400, NOW)
    assert rates.reserve(1, NOW) == 86_400


@pytest.mark.parametrize("seconds", [0, -1, nan, inf, 86_401])
def test_a_pause_that_makes_no_sense_is_none(seconds):
    rates = RateLimits(None, None)
    rates.pause(seconds, NOW)
    assert rates.reserve(1, NOW) == 0


LIMITS = {
    "lower": ("60", 60),
    "higher": ("6000", 600),
    "the same": ("600", 600),
    "blanks": (" 60 ", 60),
    "a fraction": ("60.0", 60),
    "one": ("1", 1),
    "none": ("0", 600),
    "unknown (Azure)": ("-1", 600),
    "a word": ("many", 600),
    "empty": ("", 600),
    "an exponent": ("1e1", 600),
    "not a number": ("nan", 600),
    "very long": ("9" * 400, 600),
    "a list (the draft of the IETF)": ("10, 10;w=60", 600),
}


@pytest.mark.parametrize(("header", "limit"), LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("kind", ["requests", "tokens"])
def test_a_header_lowers_a_limit_and_never_raises_it(kind, header, limit):
    rates = RateLimits(600, 600)
    rates.observe({f"X-RateLimit-Limit-{kind.title()}": header}, NOW)
    assert rates.per_minute == {"requests": 600, "tokens": 600} | {kind: limit}
    assert spent(rates, 1, 60) == pytest.approx(limit * 61 / 60, abs=1)


def test_a_limit_nobody_configured_is_learned_from_the_header():
    rates = RateLimits(None, None)
    rates.observe({"x-ratelimit-limit-requests": "60"}, NOW)
    assert rates.per_minute == {"requests": 60, "tokens": None}
    assert spent(rates, 1_000_000, 60) == pytest.approx(61, abs=1)


def test_a_header_takes_back_what_an_earlier_one_took():
    rates = RateLimits(600, None)
    for limit in ("6", "60", "6000"):
        rates.observe({"x-ratelimit-limit-requests": limit}, NOW)
    assert rates.per_minute["requests"] == 600


def test_what_remains_is_not_exceeded():
    rates = RateLimits(6_000, None)
    rates.observe({"x-ratelimit-remaining-requests": "3"}, NOW)
    assert [rates.reserve(1, NOW) > 0 for _ in range(4)] == [False, False, False, True]


def test_more_that_remains_gives_nothing():
    rates = RateLimits(60, None)
    rates.reserve(1, NOW)
    rates.observe({"x-ratelimit-remaining-requests": "5000"}, NOW)
    assert rates.reserve(1, NOW) == 1


@pytest.mark.parametrize(
    ("remaining", "reset", "wait"),
    [
        ("0", "300ms", 0.3),
        ("0", "6m0s", 1),
        ("0", "", 0.01),
        ("0", "0s", 0.01),
        ("0", "soon", 0.01),
        ("1", "6m0s", 0),
        ("-1", "6m0s", 0),
    ],
)
def test_where_nothing_remains_the_reset_is_waited_for_a_second_at_most(remaining, reset, wait):
    rates = RateLimits(6_000, None)
    rates.observe(
        {"x-ratelimit-remaining-requests": remaining, "x-ratelimit-reset-requests": reset}, NOW
    )
    assert rates.reserve(1, NOW) == pytest.approx(wait)


NAMES = st.sampled_from(
    [
        f"x-ratelimit-{what}-{kind}"
        for what in ("limit", "remaining", "reset")
        for kind in ("requests", "tokens")
    ]
)
VALUES = st.one_of(st.text(), st.text("0123456789.-msh"), st.integers(-10, 10**9).map(str))


def test_where_nothing_remains_and_no_reset_is_named_only_the_bucket_is_waited_for():
    rates = RateLimits(6_000, None)
    rates.observe({"x-ratelimit-remaining-requests": "0"}, NOW)
    assert rates.reserve(1, NOW) == pytest.approx(0.01)


@given(st.lists(st.dictionaries(NAMES, VALUES), max_size=5), st.integers(0, 200_000))
def test_no_header_makes_it_raise_or_stall_or_go_above_what_is_configured(answers, tokens):
    rates = RateLimits(600, 60_000)
    for headers in answers:
        rates.observe(headers, NOW)
    assert 1 <= rates.per_minute["requests"] <= 600
    assert 1 <= rates.per_minute["tokens"] <= 60_000
    assert send(rates, tokens, NOW) - NOW <= 61.1
