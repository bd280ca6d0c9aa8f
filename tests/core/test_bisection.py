"""Whose fault a refusal is: exactly the poison, each neighbour bought once, few calls."""

from collections.abc import Callable
from functools import cache
from itertools import combinations
from math import comb, log2
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core import bisection
from worker.core.bisection import Bisection

Choose = Callable[[list[range]], range]


def bisected(size: int, poison: set[int], choose: Choose = lambda sent: sent[0]):
    """Run to the end against a provider that refuses what holds poison; return the requests."""
    found = Bisection(size)
    requests: list[range] = []
    in_flight: list[range] = []
    while not found.is_done:
        taken = found.take()
        requests += taken
        in_flight += taken
        part = choose(in_flight)
        in_flight.remove(part)
        if poison.isdisjoint(part):
            found.accepted(part)
        else:
            found.refused(part)
    assert in_flight == []
    assert found.take() == []
    return found, requests


def assert_exact(size: int, poison: set[int], choose: Choose = lambda sent: sent[0]) -> int:
    found, requests = bisected(size, poison, choose)
    bought = [n for part in requests if poison.isdisjoint(part) for n in part]
    assert found.poison == poison
    assert sorted(bought) == sorted(set(range(size)) - poison)
    assert len(requests) <= bound(size, len(poison))
    return len(requests)


def bound(size: int, poison: int) -> float:
    return 2 * poison * log2(size / poison) + 2 * poison


@pytest.mark.parametrize("size", range(1, 11))
def test_every_set_of_poison_in_a_small_request_is_found(size):
    for count in range(1, size + 1):
        for poison in combinations(range(size), count):
            assert_exact(size, set(poison))


@pytest.mark.parametrize("size", [*range(11, 64, 7), 64])
def test_one_poison_is_found_at_every_position(size):
    for position in range(size):
        assert_exact(size, {position})


def test_every_pair_of_poisons_in_a_request_of_sixty_four_is_found():
    for poison in combinations(range(64), 2):
        assert_exact(64, set(poison))


@pytest.mark.parametrize("count", range(1, 9))
def test_up_to_eight_of_sixty_four_are_found_wherever_they_are(count):
    places = Random(count)
    for position in range(64):
        others = [n for n in range(64) if n != position]
        assert_exact(64, {position, *places.sample(others, count - 1)})


def test_all_may_be_poison():
    assert assert_exact(64, set(range(64))) == 126


@given(st.data())
def test_answers_may_come_in_any_order(data):
    size = data.draw(st.integers(1, 300))
    poison = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=20))
    chance = data.draw(st.randoms(use_true_random=False))
    assert_exact(size, poison, chance.choice)


@cache
def most_calls(size: int, poison: int) -> int:
    """Return the calls in the worst case, over all ways to spread the poison."""
    if size == 1 or poison == 0:
        return 0
    left, right = (len(part) for part in bisection.halves(range(size)))
    spreads = range(max(0, poison - right), min(left, poison) + 1)
    return 2 + max(most_calls(left, a) + most_calls(right, poison - a) for a in spreads)


def test_no_way_to_spread_the_poison_costs_more_than_the_bound():
    for size in range(1, 97):
        for poison in range(1, size + 1):
            assert most_calls(size, poison) <= bound(size, poison) + 1e-9


def test_the_worst_case_is_one_that_happens():
    for size, poison in ((5, 2), (10, 2), (11, 3), (12, 4)):
        assert comb(size, poison) < 1000
        spreads = combinations(range(size), poison)
        worst = max(len(bisected(size, set(spread))[1]) for spread in spreads)
        assert worst == most_calls(size, poison)


def test_halves_of_an_odd_size_would_break_the_bound():
    """Why a part is cut at a power of two: 5 + 5 of 10 take up to 14 calls, 13.3 may be."""

    @cache
    def calls(size: int, poison: int) -> int:
        if size == 1 or poison == 0:
            return 0
        left = size // 2
        spreads = range(max(0, poison - (size - left)), min(left, poison) + 1)
        return 2 + max(calls(left, a) + calls(size - left, poison - a) for a in spreads)

    assert calls(10, 2) == 14 > bound(10, 2)


def test_a_request_of_one_is_its_own_poison_and_costs_nothing():
    found = Bisection(1)
    assert found.is_done
    assert found.take() == []
    assert found.poison == {0}


def test_a_part_is_handed_out_once():
    found = Bisection(4)
    assert found.take() == [range(2), range(2, 4)]
    assert found.take() == []
    assert not found.is_done


def test_a_request_that_was_only_too_large_has_no_poison():
    found = Bisection(4)
    for part in found.take():
        found.accepted(part)
    assert found.is_done
    assert found.poison == set()


@pytest.mark.parametrize("part", [range(4), range(3), range(1)])
@pytest.mark.parametrize("answer", [Bisection.accepted, Bisection.refused])
def test_an_answer_to_no_question_is_refused(part, answer):
    found = Bisection(4)
    found.take()
    with pytest.raises(ValueError, match="not in flight"):
        answer(found, part)


def test_a_second_answer_is_refused():
    found = Bisection(4)
    first, _ = found.take()
    found.refused(first)
    with pytest.raises(ValueError, match="not in flight"):
        found.accepted(first)


def test_a_part_that_waits_has_no_answer_yet():
    with pytest.raises(ValueError, match="not in flight"):
        Bisection(4).accepted(range(2))


def test_a_request_has_inputs():
    with pytest.raises(ValueError, match="at least one"):
        Bisection(0)
