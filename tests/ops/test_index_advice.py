"""What is advised about an index follows from the figures, and says them."""

from dataclasses import replace

import pytest

from tests.support.works import collection
from worker.config import IndexBuildOptions
from worker.core.index_facts import ServerResources
from worker.core.vector_index import NO_INDEX, Place, Present, State, VectorIndex
from worker.ops.index_advice import Advice, Situation, advise_on

MIB = 2**20
GIB = 1024 * MIB
DOCS = replace(collection("docs"), dimensions=1536, index=VectorIndex())
SMALL = Situation(
    collection=DOCS,
    state=State.VALID,
    found={Place.MAIN: Present("hnsw", 16, 64)},
    rows=20_000,
    built_as='"embedfleet".chunk_1_1 using hnsw (embedding halfvec_cosine_ops)',
    rows_per_second=None,
    tenants=[("acme", 1.0)],
    server=ServerResources(
        shared_buffers_bytes=4 * GIB,
        cache_bytes=12 * GIB,
        maintenance_workers=2,
        parallel_workers=8,
    ),
    options=IndexBuildOptions(),
)
LARGE = replace(SMALL, rows=2_000_000)
LISTS = replace(DOCS, index=VectorIndex("ivfflat", lists=1_000))


def about(situation: Situation, words: str) -> Advice:
    (found,) = [one for one in advise_on(situation) if words in one.what]
    return found


@pytest.mark.parametrize(
    ("state", "index", "what", "do", "is_wrong"),
    [
        (State.VALID, DOCS.index, "nothing", "", False),
        (State.MISSING, DOCS.index, "build the hnsw index", "index build docs", True),
        (State.DUE, DOCS.index, "build the hnsw index", "index build docs", True),
        (State.INVALID, DOCS.index, "repair", "index build docs", True),
        (State.DIFFERS, DOCS.index, "build it as it should be", "index build docs", False),
        (State.UNWANTED, NO_INDEX, "drop the index", "index drop docs --yes", False),
        (State.EARLY, DOCS.index, "build nothing yet", "", False),
        (State.NONE, NO_INDEX, "give it an index", "index set docs --index hnsw", False),
        (State.BUILDING, DOCS.index, "wait", "index status docs", False),
        (State.BUSY, DOCS.index, "wait", "index status docs", False),
    ],
)
def test_the_first_advice_is_about_how_the_index_is(state, index, what, do, is_wrong):
    one = replace(SMALL, state=state, collection=replace(DOCS, index=index))
    first, *others = advise_on(one)
    assert what in first.what
    assert do in first.do
    assert (first.do == "") == (do == "")
    assert first.is_wrong is is_wrong
    assert first.why
    assert not any(other.is_wrong for other in others)
    assert bool(others) == (index.kind != "none")


def test_a_small_collection_without_an_index_is_well():
    one = replace(SMALL, state=State.NONE, rows=9_999, collection=replace(DOCS, index=NO_INDEX))
    assert [advice.what for advice in advise_on(one)] == ["nothing"]
    assert "0.1 s for 9,999 rows" in advise_on(one)[0].why


def test_the_time_is_that_of_the_last_build_where_there_was_one():
    advice = about(replace(SMALL, rows_per_second=100.0), "expect a build")
    assert "3.3 min" in advice.what
    assert "100 rows/s" in advice.why


def test_the_time_is_called_a_guess_where_there_was_none():
    advice = about(SMALL, "expect a build")
    assert "about 6 s" in advice.what
    assert "a guess for 3 processes" in advice.why
    alone = replace(SMALL, options=IndexBuildOptions(parallel_workers=0))
    assert "about 19 s" in about(alone, "expect a build").what
    # More helpers than the server has processes for do not help.
    many = replace(SMALL, options=IndexBuildOptions(parallel_workers=50))
    assert "a guess for 9 processes" in about(many, "expect a build").why


def test_hours_are_told_as_hours():
    assert "h" in about(LARGE, "expect a build").what.split()[-1]


def test_memory_that_is_enough_is_told():
    advice = about(SMALL, "of memory")
    assert "73 MiB" in advice.what
    assert "1,024 MiB" in advice.why


def test_memory_that_is_not_enough_is_to_be_raised_where_the_server_has_it():
    server = replace(LARGE, server=LARGE.server._replace(cache_bytes=20 * GIB))
    advice = about(server, "max_memory_bytes")
    # 2,000,000 rows of 3,790 bytes, a tenth more and some.
    assert "7,229 MiB" in advice.why
    assert advice.what == "set index.max_memory_bytes to 8346664960 (7,960 MiB)"
    enough = IndexBuildOptions(max_memory_bytes=8346664960)
    assert about(replace(server, options=enough), "of memory")


def test_memory_that_the_server_has_not_is_said_to_be_missing():
    advice = about(LARGE, "max_memory_bytes")
    assert "with more memory than this one's 12,288 MiB" in advice.what
    assert "halfvec" not in advice.what
    wide = replace(LARGE, collection=replace(DOCS, storage="vector"))
    assert "store as halfvec" in about(wide, "max_memory_bytes").what


def test_lists_that_cannot_be_learned_are_said_to_be_an_end():
    many = replace(LARGE, collection=replace(LISTS, index=VectorIndex("ivfflat", lists=5_000)))
    assert "ends without them" in about(many, "max_memory_bytes").why


def test_parameters_are_told_with_a_way_to_measure():
    assert about(SMALL, "ef_construction 64").do == "embedfleet index status docs --recall 100"
    lists = about(replace(LARGE, collection=LISTS), "1,000 lists")
    assert lists.what == "1,000 lists"
    assert "1,414 for 2,000,000 rows" in lists.why
    assert lists.do == "embedfleet index build docs --rebuild"


def test_readers_are_told_what_to_set():
    settings = [advice.do for advice in advise_on(SMALL) if advice.do.startswith("set ")]
    assert settings == ["set hnsw.ef_search = 100", "set hnsw.iterative_scan = strict_order"]
    lists = replace(LARGE, collection=LISTS)
    settings = [advice.do for advice in advise_on(lists) if advice.do.startswith("set ")]
    assert settings == [
        "set ivfflat.probes = 32",
        "set ivfflat.iterative_scan = relaxed_order",
    ]


def test_an_index_that_memory_does_not_hold_is_told():
    assert not [advice for advice in advise_on(SMALL) if "shared_buffers" in advice.what]
    assert "7,813 MiB, shared_buffers is 4,096 MiB" in about(LARGE, "shared_buffers").why
    huge = replace(LARGE, rows=10_000_000)
    assert "effective_cache_size is 12,288 MiB" in about(huge, "give the server").why


def test_a_tenant_that_is_large_by_itself_and_small_among_all_may_have_its_own_index():
    tenants = [("most", 0.97), ("o'brien", 0.01), ("tiny", 0.004), ("next", 0.0051)]
    one = replace(LARGE, tenants=tenants)
    advice = about(one, "o'brien")
    assert advice.do == (
        'create index concurrently on "embedfleet".chunk_1_1 using hnsw'
        " (embedding halfvec_cosine_ops) where tenant = 'o''brien'"
    )
    assert "about 20,000" in advice.why
    assert "passes by 1,000" in advice.why
    assert "plan_cache_mode" in advice.why
    told = [advice.what for advice in advise_on(one) if "tenant" in advice.what]
    assert told == [
        "build an index of tenant o'brien alone",
        "build an index of tenant next alone",
    ]


def test_many_such_tenants_are_counted_and_not_listed():
    one = replace(LARGE, tenants=[(f"t{number}", 0.01) for number in range(9)])
    told = [advice.what for advice in advise_on(one) if "tenant" in advice.what]
    assert len(told) == 6
    assert told[-1] == "4 more tenants of docs are like that"
