"""A record of which workers die is found, and no other is blamed for it."""

from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.works import claim
from worker.core.isolation import (
    GIVE_UP_AT_MOST,
    ISOLATED_RECORDS,
    Alone,
    CrashEntry,
    Isolation,
    Suspect,
    begun,
)

WORKED = Alone(7, fetching=False)
FETCHED = Alone(7, fetching=True)


def next_of(old, start=7, owner=None, history="history"):
    """The entry of another process that begins, and finds the last as it was."""
    number = 1 if old is None else old.claim_id.int + 1
    new = claim(epoch=number)._replace(claim_id=UUID(int=number), history=history)
    return begun(old, new, owner or f"process-{number}", start)


def crashed(times, start=7):
    """The entry after so many unclean ends at one start."""
    entry = next_of(None, start)
    for _ in range(times):
        entry = next_of(entry, start)
    return entry


def test_a_first_owner_runs_freely():
    entry = next_of(None)
    assert (entry.unclean_ends, entry.suspect, entry.alone) == (0, None, None)
    assert Isolation.of(entry) is None


def test_one_unclean_end_isolates_nobody():
    assert Isolation.of(crashed(1)) is None


def test_after_two_unclean_ends_at_one_start_a_partition_runs_one_by_one():
    isolation = Isolation.of(crashed(2))
    assert not isolation.is_over(7)
    assert not isolation.is_over(7 + ISOLATED_RECORDS - 1)
    assert isolation.is_over(7 + ISOLATED_RECORDS)


def test_an_end_that_has_moved_the_start_begins_a_new_count():
    entry = next_of(crashed(1), start=8)
    assert entry.unclean_ends == 1
    assert Isolation.of(entry) is None


def test_an_end_in_order_is_no_crash_and_forgets_none():
    entry = next_of(crashed(1)._replace(ended=True))
    assert entry.unclean_ends == 1
    assert next_of(entry).unclean_ends == 2


def test_progress_in_order_forgets_the_crashes():
    entry = next_of(crashed(1)._replace(ended=True), start=8)
    assert entry.unclean_ends == 0


def test_a_process_that_claims_again_has_not_crashed():
    entry = next_of(None, owner="a")
    for _ in range(5):
        entry = next_of(entry, owner="a")
    assert entry.unclean_ends == 0


def test_what_was_alone_in_flight_at_an_unclean_end_is_suspected():
    entry = next_of(crashed(2)._replace(alone=WORKED))
    assert entry.suspect == Suspect(WORKED, 1)
    isolation = Isolation.of(entry)
    assert isolation.is_suspect(WORKED)
    assert not isolation.is_suspect(FETCHED)
    assert not isolation.is_convicted(WORKED)


def test_at_the_second_such_end_it_is_convicted():
    entry = next_of(next_of(crashed(2)._replace(alone=WORKED))._replace(alone=WORKED))
    isolation = Isolation.of(entry)
    assert isolation.is_convicted(WORKED)
    assert not isolation.is_convicted(FETCHED)
    assert not isolation.is_convicted(Alone(8, fetching=False))


def test_an_end_between_them_that_blames_nobody_changes_nothing():
    once = next_of(crashed(2)._replace(alone=WORKED))
    again = next_of(once)._replace(alone=WORKED)
    assert next_of(again).suspect == Suspect(WORKED, 2)


def test_an_end_in_order_blames_nobody():
    entry = next_of(crashed(2)._replace(alone=WORKED, ended=True))
    assert entry.suspect is None


def test_another_record_is_suspected_anew():
    other = Alone(9, fetching=False)
    once = next_of(crashed(2)._replace(alone=WORKED))
    assert next_of(once._replace(alone=other)).suspect == Suspect(other, 1)


def test_fetching_and_working_are_two_things():
    once = next_of(crashed(2)._replace(alone=FETCHED))
    assert next_of(once._replace(alone=WORKED)).suspect == Suspect(WORKED, 1)


def test_a_suspect_that_the_partition_has_passed_is_none():
    entry = next_of(crashed(2)._replace(alone=WORKED), start=8)
    assert entry.suspect is None
    assert Isolation.of(entry) is None


def test_a_suspect_keeps_its_partition_isolated_until_it_is_passed():
    far = Alone(7 + 2 * ISOLATED_RECORDS, fetching=False)
    isolation = Isolation.of(
        CrashEntry(UUID(int=1), "a", "history", 7, suspect=Suspect(far, 1))
    )
    assert not isolation.is_over(far.offset)
    assert isolation.is_over(far.offset + 1)


def test_an_entry_of_another_history_says_nothing():
    entry = crashed(2)._replace(alone=WORKED, suspect=Suspect(WORKED, 1), given_up=2)
    again = next_of(entry, history="restored")
    assert (again.unclean_ends, again.suspect, again.given_up) == (0, None, 0)


def test_workers_that_die_of_whatever_they_get_give_up_little_until_something_has_passed():
    entry = crashed(2)._replace(suspect=Suspect(WORKED, 2))
    for given_up in range(GIVE_UP_AT_MOST + 2):
        isolation = Isolation.of(next_of(entry._replace(given_up=given_up)))
        assert isolation.is_convicted(WORKED) == (given_up < GIVE_UP_AT_MOST)
    isolation.given_up = 0
    assert isolation.is_convicted(WORKED)


@settings(max_examples=300)
@given(killer=st.integers(0, 30), moved=st.lists(st.integers(0, 3), max_size=40))
def test_a_killer_is_found_and_only_the_killer(killer, moved):
    """
    Workers that die of one record, wherever it stands and however far they come before it.

    Each begins where the last one came to, takes records freely or one by one, and dies when
    it meets the killer; `moved` is how much of what it settled it had committed.
    """
    committed, entry, ends = 0, None, 0
    progress = iter(moved)
    while committed <= killer:
        entry = next_of(entry, committed)
        isolation = Isolation.of(entry)
        if isolation is None:
            committed = min(killer, committed + next(progress, 0))
        else:
            for offset in range(committed, killer + 1):
                alone = Alone(offset, fetching=False)
                if isolation.is_convicted(alone):
                    assert offset == killer
                    return
                entry = entry._replace(alone=alone)
            committed = min(killer, committed + next(progress, 0))
        ends += 1
        assert ends <= 5 + 3 * len(moved)


@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 2)), max_size=30),
)
def test_who_is_never_marked_is_never_suspected(ends):
    entry, start = None, 0
    for in_order, same_process, moved in ends:
        start += moved
        owner = entry.owner if entry and same_process else None
        entry = next_of(entry, start, owner)
        assert entry.suspect is None
        entry = entry._replace(ended=in_order)
