"""When a partition is held because of a flood of dead letters, and when it goes on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.config import DeadLetterOptions
from worker.core.flood import FloodGuard, FloodState

OPTIONS = DeadLetterOptions(
    max_share=0.05, sample_records=100, window_seconds=60, probe_records=20
)


def end(guard, *, dead, now=0.0):
    """End a record as the pipeline does; tells whether it was let through."""
    if dead:
        return guard.admits(now)
    guard.passed(now)
    return True


def test_the_defaults_are_five_percent_of_a_thousand_in_a_minute_and_fifty_a_minute():
    options = DeadLetterOptions()
    assert (options.max_share, options.sample_records, options.window_seconds) == (
        0.05,
        1000,
        60,
    )
    assert (options.probe_records, options.probe_seconds) == (50, 60)


def test_a_new_guard_knows_of_no_problem():
    for is_held in (False, True):
        guard = FloodGuard(OPTIONS, is_held=is_held)
        assert (guard.is_told, guard.held_at, guard.problem) == (is_held, None, "")


def test_one_letter_above_the_share_is_not_let_through():
    guard = FloodGuard(OPTIONS)
    for number in range(99):
        assert end(guard, dead=number >= 94)  # 5 of 99
    assert guard.state is FloodState.FREE
    assert not end(guard, dead=True)  # 6 of 100
    assert guard.state is FloodState.HELD
    assert guard.problem == "6 of the last 100 records would be dead letters"
    assert guard.room == 0


def test_exactly_the_share_is_let_through():
    guard = FloodGuard(OPTIONS)
    for number in range(99):
        end(guard, dead=number >= 95)
    assert end(guard, dead=True)  # 5 of 100
    assert guard.state is FloodState.FREE


def test_a_sample_that_is_too_small_says_nothing():
    guard = FloodGuard(OPTIONS)
    assert all(end(guard, dead=True) for _ in range(99))


def test_ends_of_more_than_a_window_ago_say_nothing():
    guard = FloodGuard(OPTIONS)
    for number in range(99):
        end(guard, dead=number < 50, now=0.0)
    assert end(guard, dead=True, now=60.0)
    assert guard.state is FloodState.FREE


def test_only_the_last_records_count():
    guard = FloodGuard(OPTIONS)
    for _ in range(60):
        end(guard, dead=True)
    for _ in range(99):
        end(guard, dead=False)
    assert end(guard, dead=True)


@pytest.mark.parametrize(("first", "dead"), [(True, 4), (False, 5)])
def test_a_record_that_leaves_the_sample_takes_along_what_it_was_alone(first, dead):
    guard = FloodGuard(OPTIONS)
    for is_dead in (first, *[True] * dead, *[False] * (99 - dead)):
        end(guard, dead=is_dead)
    assert end(guard, dead=True) is (dead < 5)


def test_while_held_nothing_is_let_through():
    guard = FloodGuard(OPTIONS)
    for _ in range(100):
        end(guard, dead=True)
    assert guard.state is FloodState.HELD
    assert not guard.admits(now=1_000_000.0)


def test_a_probe_takes_so_many_records_and_no_more():
    guard = FloodGuard(OPTIONS, is_held=True)
    assert (guard.state, guard.room) == (FloodState.PROBING, 20)
    guard.took(15)
    assert guard.room == 5
    guard.took(5)
    assert guard.room == 0


def test_the_letters_of_a_probe_are_let_through_and_a_bad_one_holds_again():
    guard = FloodGuard(OPTIONS, is_held=True)
    guard.took(20)
    assert all(end(guard, dead=number < 2) for number in range(20))  # 10 %
    assert guard.state is FloodState.HELD
    assert guard.problem == "2 of the last 20 records would be dead letters"


def test_after_a_good_probe_the_partition_is_free():
    guard = FloodGuard(OPTIONS, is_held=True)
    guard.took(20)
    for number in range(20):
        end(guard, dead=number < 1)  # 5 %
    assert (guard.state, guard.room) == (FloodState.FREE, None)
    assert end(guard, dead=True)


def test_a_probe_that_has_not_ended_is_not_judged():
    guard = FloodGuard(OPTIONS, is_held=True)
    guard.took(20)
    for _ in range(19):
        end(guard, dead=True)
    assert guard.state is FloodState.PROBING


def test_a_probe_with_nothing_left_to_poll_is_judged_by_what_there_was():
    for ends, state in (([], "free"), ([False], "free"), ([False, True], "held")):
        guard = FloodGuard(OPTIONS, is_held=True)
        for dead in ends:
            end(guard, dead=dead)
        guard.idle()
        assert guard.state.value == state
    free = FloodGuard(OPTIONS)
    end(free, dead=True)
    free.idle()
    assert free.state is FloodState.FREE


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 30)), max_size=300))
def test_it_holds_exactly_when_a_full_sample_is_above_the_share(ends):
    guard, now = FloodGuard(OPTIONS), 0.0
    passed: list[tuple[float, bool]] = []
    for dead, pause in ends:
        now += pause
        sample = [one for one in passed[-99:] if one[0] > now - 60]
        floods = (
            dead
            and len(sample) + 1 >= 100
            and sum(was for _, was in sample) + 1 > 0.05 * (len(sample) + 1)
        )
        assert end(guard, dead=dead, now=now) is not floods
        if floods:
            assert guard.state is FloodState.HELD
            return
        passed.append((now, dead))
        assert guard.state is FloodState.FREE
