"""Whether a dead letter is still worth a replay."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.dead_letter import Reason
from tests.support.store_changes import at
from tests.support.works import upsert
from worker.core import changeset
from worker.core.letters import Letter, State, covered, objection, origin_of
from worker.core.model import Base, DocumentKey, Order, Position, Rank, StoredDocument

LETTER = Letter(
    group="group",
    position=Position("documents", 0, 9),
    incarnation=0,
    timestamp_ms=5,
    state=State.PUBLISHED,
    reason="oversize",
    stage="intake",
    detail="",
    fingerprint="f",
    tenant="tenant",
    collection="articles",
    document_id="document",
    version=3,
    origin=at(9, timestamp_ms=5),
    key=b"tenant/articles/document",
    traceparent=None,
    passes=0,
    attempts=1,
    replays=0,
    first_seen=datetime(2026, 11, 1, tzinfo=UTC),
    last_seen=datetime(2026, 11, 1, tzinfo=UTC),
)


def stored(version, offset, *, barrier=None, deleted=False):
    document = StoredDocument(
        revision=1,
        version=version,
        order=at(offset),
        barrier=barrier,
        deleted=deleted,
        content_hash=None,
    )
    return Base(document=document)


@pytest.mark.parametrize(
    ("base", "is_covered"),
    [
        (Base(), False),
        (stored(4, 1), True),
        (stored(4, 1, deleted=True), True),
        (stored(2, 99), False),
        (stored(3, 8), False),
        (stored(3, 9), True),
        (stored(3, 10), True),
        (stored(None, 10, barrier=at(10), deleted=True), True),
        (stored(None, 8, barrier=at(8), deleted=True), False),
        (Base(scope_version=3), True),
        (Base(scope_version=2), False),
    ],
)
def test_a_letter_is_covered_by_a_row_at_or_above_its_rank(base, is_covered):
    assert covered(Rank(3, at(9)), base) is is_covered


@pytest.mark.parametrize(
    ("base", "is_covered"),
    [
        (Base(), False),
        (Base(scope_version=2**62), False),
        (stored(2**62, 99), False),
        (stored(2**62, 99, barrier=at(8)), False),
        (stored(1, 99, barrier=at(9)), True),
    ],
)
def test_a_delete_without_version_is_covered_by_a_later_one_of_its_kind_only(base, is_covered):
    assert covered(Rank(None, at(9)), base) is is_covered


versions = st.none() | st.integers(0, 3)
offsets = st.integers(0, 3)
barriers = st.none() | offsets.map(at)


@given(st.integers(0, 3), offsets, versions, offsets, barriers, versions)
def test_a_letter_is_covered_where_prepare_would_settle_it(
    version, offset, stored_version, stored_offset, barrier, scope
):
    base = replace(stored(stored_version, stored_offset, barrier=barrier), scope_version=scope)
    work = upsert("document", version=version, offset=offset)
    settled = changeset.settled(work, base)
    assert covered(work.rank, base) is (settled is not None)


def test_a_letter_names_its_document_only_where_all_of_it_is_known():
    assert LETTER.document_key == DocumentKey("tenant", "articles", "document")
    for name in ("tenant", "collection", "document_id"):
        assert replace(LETTER, **{name: None}).document_key is None


def test_a_letter_stands_where_its_record_failed_whatever_its_origin():
    letter = replace(LETTER, incarnation=2, origin=at(1, timestamp_ms=1))
    assert letter.place == Order("documents", 0, 9, timestamp_ms=5, incarnation=2)


@pytest.mark.parametrize("reason", Reason)
def test_only_what_fails_again_or_kills_is_replayed_by_force_alone(reason):
    why = objection(replace(LETTER, reason=reason))
    assert (why is not None) is (reason in {Reason.WORKER_KILLER, Reason.VERSION_IN_FUTURE})
    assert why is None or "--force" in why


@pytest.mark.parametrize(
    ("claimed", "is_plausible"),
    [
        (at(8), True),
        (at(9, timestamp_ms=5), False),
        (at(10), False),
        (at(8, partition=1), False),
        (at(8, topic="other"), False),
        (None, False),
    ],
)
def test_an_origin_in_the_headers_counts_where_it_is_earlier_in_the_same_partition(
    claimed, is_plausible
):
    assert origin_of(LETTER, claimed) == (claimed if is_plausible else None)


def test_an_origin_in_an_earlier_topic_of_that_name_is_earlier():
    letter = replace(LETTER, incarnation=1, origin=Order("documents", 0, 0, 5, 1))
    assert origin_of(letter, at(8)) == at(8)
