"""What is there and what is wanted become a state and steps, wherever a build was ended."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.vector_index import (
    NO_INDEX,
    Create,
    Drop,
    Place,
    Places,
    Present,
    Promote,
    State,
    Step,
    VectorIndex,
    build_bytes,
    build_seconds,
    index_bytes,
    judge,
    lists_for,
    memory_bytes,
    probes_for,
    scan_seconds,
    steps,
)

HNSW = VectorIndex(m=16, ef_construction=64, build_at_rows=100)
ALWAYS = replace(HNSW, build_at_rows=0)
IVFFLAT = VectorIndex("ivfflat", lists=50)
GOOD = Present("hnsw", 16, 64)
OTHER = Present("hnsw", 8, 64)
BROKEN = Present("hnsw", 16, 64, is_valid=False)
LISTS = Present("ivfflat", lists=50)

MAIN, NEXT = Place.MAIN, Place.NEXT
REPLACE = [Create(NEXT), Drop(MAIN), Promote()]


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        (GOOD, HNSW, True),
        (GOOD, replace(HNSW, build_at_rows=7, lists=9), True),
        (GOOD, replace(HNSW, m=17), False),
        (GOOD, replace(HNSW, ef_construction=65), False),
        (LISTS, IVFFLAT, True),
        (LISTS, replace(IVFFLAT, lists=51), False),
        (LISTS, replace(IVFFLAT, lists=None), True),
        (LISTS, replace(IVFFLAT, m=7), True),
        (GOOD, IVFFLAT, False),
        (LISTS, HNSW, False),
    ],
)
def test_an_index_is_as_wanted_by_its_kind_and_the_parameters_of_that(found, wanted, same):
    assert found.is_as(wanted) is same


@pytest.mark.parametrize(
    ("wanted", "found", "rows", "state"),
    [
        (HNSW, {MAIN: GOOD}, 0, State.VALID),
        (HNSW, {MAIN: OTHER}, 0, State.DIFFERS),
        (HNSW, {MAIN: LISTS}, 0, State.DIFFERS),
        (HNSW, {MAIN: BROKEN}, 0, State.INVALID),
        (HNSW, {MAIN: GOOD, NEXT: BROKEN}, 0, State.INVALID),
        (NO_INDEX, {MAIN: BROKEN}, 0, State.INVALID),
        (NO_INDEX, {MAIN: GOOD}, 0, State.UNWANTED),
        (NO_INDEX, {}, 10**9, State.NONE),
        (HNSW, {}, 99, State.EARLY),
        (HNSW, {}, 100, State.DUE),
        (ALWAYS, {}, 0, State.MISSING),
    ],
)
def test_the_state_says_what_is_the_matter(wanted, found, rows, state):
    assert judge(wanted, found, rows, is_building=False, is_busy=False) is state
    assert judge(wanted, found, rows, is_building=True, is_busy=True) is State.BUILDING
    assert judge(wanted, found, rows, is_building=False, is_busy=True) is State.BUSY


@pytest.mark.parametrize(
    ("wanted", "found", "expected"),
    [
        (HNSW, {}, [Create(MAIN)]),
        (HNSW, {MAIN: GOOD}, []),
        (HNSW, {MAIN: BROKEN}, [Drop(MAIN), Create(MAIN)]),
        (HNSW, {MAIN: OTHER}, REPLACE),
        (IVFFLAT, {MAIN: GOOD}, REPLACE),
        (HNSW, {MAIN: OTHER, NEXT: BROKEN}, [Drop(NEXT), *REPLACE]),
        (HNSW, {MAIN: OTHER, NEXT: LISTS}, [Drop(NEXT), *REPLACE]),
        (HNSW, {MAIN: OTHER, NEXT: GOOD}, [Drop(MAIN), Promote()]),
        (HNSW, {MAIN: BROKEN, NEXT: GOOD}, [Drop(MAIN), Promote()]),
        (HNSW, {NEXT: GOOD}, [Promote()]),
        (HNSW, {NEXT: BROKEN}, [Drop(NEXT), Create(MAIN)]),
        (HNSW, {NEXT: OTHER}, [Promote(), *REPLACE]),
        (HNSW, {MAIN: BROKEN, NEXT: OTHER}, [Drop(MAIN), Promote(), *REPLACE]),
        (HNSW, {MAIN: GOOD, NEXT: OTHER}, [Drop(NEXT)]),
        (HNSW, {MAIN: BROKEN, NEXT: BROKEN}, [Drop(MAIN), Drop(NEXT), Create(MAIN)]),
        (NO_INDEX, {}, []),
        (NO_INDEX, {MAIN: GOOD, NEXT: BROKEN}, [Drop(MAIN), Drop(NEXT)]),
    ],
)
def test_the_steps_lead_from_what_is_there_to_what_is_wanted(wanted, found, expected):
    assert steps(wanted, found) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({MAIN: GOOD}, REPLACE),
        ({}, [Create(MAIN)]),
        ({MAIN: BROKEN}, [Drop(MAIN), Create(MAIN)]),
        # The build that was asked for has ended, what came after it has not.
        ({MAIN: GOOD, NEXT: GOOD}, [Drop(MAIN), Promote()]),
    ],
)
def test_a_rebuild_replaces_what_is_as_it_should_be(found, expected):
    assert steps(HNSW, found, rebuild=True) == expected


def done(wanted: VectorIndex, found: Places, step: Step, *, killed: bool) -> Places:
    """What is there after a step, or after a kill in the middle of it."""
    after = dict(found)
    match step:
        case Create(place):
            assert place not in found
            after[place] = Present(
                wanted.kind,
                wanted.m,
                wanted.ef_construction,
                wanted.lists or 1,
                is_valid=not killed,
            )
        case Drop(place) if killed:
            after[place] = found[place]._replace(is_valid=False)
        case Drop(place):
            del after[place]
        case Promote() if not killed:
            assert MAIN not in found
            after[MAIN] = after.pop(NEXT)
    return after


kinds = st.sampled_from(["hnsw", "ivfflat", "none"])
indexes = st.builds(
    VectorIndex, kinds, st.sampled_from([8, 16]), lists=st.sampled_from([None, 50])
)
presents = st.sampled_from([GOOD, OTHER, BROKEN, LISTS, LISTS._replace(is_valid=False)])
places = st.dictionaries(st.sampled_from(Place), presents)


@given(indexes, places, st.booleans(), st.lists(st.integers(0, 5), max_size=4), st.data())
def test_whatever_was_ended_anywhere_is_brought_to_its_end(wanted, found, rebuild, kills, data):
    for kill_at in kills:
        for number, step in enumerate(steps(wanted, found, rebuild=rebuild)):
            killed = number == kill_at
            found = done(wanted, found, step, killed=killed)
            if killed:
                break
    for step in steps(wanted, found, rebuild=rebuild):
        found = done(wanted, found, step, killed=False)
    assert steps(wanted, found) == []
    if wanted.kind == "none":
        assert found == {}
    else:
        assert set(found) == {MAIN}
        assert found[MAIN].is_valid
        assert found[MAIN].is_as(wanted)


@given(indexes.filter(lambda wanted: wanted.kind != "none"), places, st.booleans())
def test_readers_who_have_an_index_keep_one_at_every_step(wanted, found, rebuild):
    had_one = any(one.is_valid for one in found.values())
    for step in steps(wanted, found, rebuild=rebuild):
        found = done(wanted, found, step, killed=False)
        assert any(one.is_valid for one in found.values()) >= had_one


@pytest.mark.parametrize(
    ("rows", "lists"),
    [(0, 1), (1_000, 1), (50_000, 50), (10**6, 1_000), (4 * 10**6, 2_000)],
)
def test_lists_are_a_thousandth_of_the_rows_and_above_a_million_their_root(rows, lists):
    assert lists_for(rows) == lists


def test_probes_are_the_root_of_the_lists():
    assert [probes_for(lists) for lists in (1, 2, 100, 1_000)] == [1, 2, 10, 32]


@pytest.mark.parametrize(
    ("storage", "dimensions", "m", "rows"),
    [
        ("halfvec", 1536, 16, 4427),
        ("halfvec", 1536, 32, 3902),
        ("halfvec", 384, 16, 11309),
        ("vector", 1536, 16, 2438),
        ("vector", 128, 16, 13673),
    ],
)
def test_the_memory_of_a_graph_is_what_pgvector_was_seen_to_take(storage, dimensions, m, rows):
    """So many rows found room in 16 MiB."""
    need = build_bytes(VectorIndex(m=m), rows, dimensions, storage)
    assert need == pytest.approx(16 * 2**20, rel=0.01)


def test_a_build_is_given_somewhat_more_than_it_needs():
    assert memory_bytes(1_000 * 2**20) == 1_108 * 2**20
    assert memory_bytes(19) == 19 + 1 + 8 * 2**20


def test_lists_are_learned_in_memory_whatever_the_rows():
    need = build_bytes(replace(IVFFLAT, lists=1_000), 10, 1536, "halfvec")
    samples, vector = 50_000, 2 * 1536 + 16
    assert need == (samples + 3_000) * vector + 4 * 1_000 * (samples + 2_000)
    by_rows = build_bytes(replace(IVFFLAT, lists=None), 10**6, 1536, "halfvec")
    assert by_rows == need


def test_an_index_takes_whole_pages():
    """Of 1,536 halves two rows fill a page: 20,000 of them took 81,928,192 bytes."""
    assert index_bytes(20_000, 1536, "halfvec") == pytest.approx(81_928_192, rel=0.01)
    assert index_bytes(20_000, 1536, "vector") == pytest.approx(163_848_192, rel=0.01)
    assert index_bytes(20_000, 128, "vector") == pytest.approx(16_670_720, rel=0.4)


def test_comparing_ten_thousand_rows_takes_a_tenth_of_a_second():
    assert scan_seconds(10_000, 1536) == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize(
    ("index", "dimensions", "seconds"),
    [
        (HNSW, 1536, 19.1),
        (replace(HNSW, m=32), 1536, 33.4),
        (HNSW, 128, 6.1),
        (replace(HNSW, m=8), 64, 2.8),
    ],
)
def test_the_time_of_a_build_is_guessed_as_it_was_measured(index, dimensions, seconds):
    guess = build_seconds(20_000, dimensions, index, processes=1, fits=True)
    assert guess == pytest.approx(seconds, rel=0.2)


def test_more_processes_help_and_too_little_memory_hurts():
    alone = build_seconds(20_000, 1536, HNSW, processes=1, fits=True)
    assert build_seconds(20_000, 1536, HNSW, processes=4, fits=True) == alone / 4
    assert build_seconds(20_000, 1536, HNSW, processes=4, fits=False) == alone * 8
    assert build_seconds(0, 1536, HNSW, processes=1, fits=True) == 0
    assert build_seconds(40_000, 1536, HNSW, processes=1, fits=True) > 2 * alone
    lists = build_seconds(20_000, 1536, IVFFLAT, processes=1, fits=True)
    assert lists == pytest.approx(20_000 * 77e-6, rel=0.01)
