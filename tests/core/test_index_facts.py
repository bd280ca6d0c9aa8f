"""What is found of an index says how it is, and who works on it."""

from datetime import UTC, datetime

import pytest

from tests.support.works import collection
from worker.core.index_facts import BuildProgress, Holder, IndexFacts
from worker.core.vector_index import Place, Present, State

GOOD = Present("hnsw", 16, 64)
HOLDER = Holder(7, "embedfleet index build", datetime(2026, 11, 1, 12, 30, tzinfo=UTC))
FACTS = IndexFacts(
    collection=collection("docs"),
    rows=10_000,
    is_exact=True,
    table_bytes=0,
    index_bytes=0,
    found={},
    progress=None,
    holder=None,
    rows_per_second=None,
)


@pytest.mark.parametrize(
    ("found", "state"),
    [
        ({}, State.DUE),
        ({"rows": 9_999}, State.EARLY),
        ({"found": {Place.MAIN: GOOD}}, State.VALID),
        ({"holder": HOLDER}, State.BUSY),
        ({"holder": HOLDER, "progress": BuildProgress("loading", 0.5)}, State.BUILDING),
    ],
)
def test_the_state_follows_from_rows_indexes_and_who_is_at_it(found, state):
    assert FACTS._replace(**found).state is state


def test_a_holder_is_named_as_far_as_the_server_tells():
    said = "embedfleet index build (PostgreSQL's process 7 since 2026-11-01 12:30:00 UTC)"
    assert HOLDER.name == said
    assert Holder(7, None, None).name == "somebody (PostgreSQL's process 7)"
