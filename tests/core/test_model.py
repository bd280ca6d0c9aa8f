"""What names a work, and the order among the records of one document."""

from itertools import pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import ScopeDeleted
from tests.support.works import claim, delete, rejected, scope, tombstone, upsert, work
from worker.core.model import DocumentKey, Order, Partition, Position, Record


@pytest.mark.parametrize("event", [upsert("a"), delete("a"), tombstone("a")])
def test_a_document_is_named_by_tenant_collection_and_id(event):
    assert event.document_key == DocumentKey("tenant", "articles", "a")
    assert event.tenant == "tenant"


def test_the_key_of_a_scope_or_of_what_cannot_be_decoded_is_that_of_no_document():
    part = work(ScopeDeleted(tenant="tenant", version=1, collection="articles"))
    keys = [
        scope().document_key,
        part.document_key,
        rejected(offset=1).document_key,
        rejected(offset=2).document_key,
        rejected(offset=1, of=claim(1)).document_key,
    ]
    assert len(set(keys)) == len(keys)
    # The contract wants at least one character in every name.
    assert not any(all(key) for key in keys)
    assert keys[:3] == [
        DocumentKey("tenant", "", ""),
        DocumentKey("tenant", "articles", ""),
        DocumentKey("", "", "0/1"),
    ]


def test_a_work_stands_where_its_record_and_its_claim_do():
    event = upsert("a", offset=7, of=claim(3))
    assert event.position == Position("documents", 3, 7)
    assert event.partition == Partition("documents", 3)


@pytest.mark.parametrize(
    ("key", "value", "size_bytes"),
    [(None, None, 1024), (b"k" * 10, None, 1034), (None, b"v" * 5000, 11_024)],
)
def test_a_record_takes_memory_for_itself_and_what_is_decoded_from_it(key, value, size_bytes):
    record = Record(Position("documents", 0, 0), 0, key, value)
    assert record.size_bytes == size_bytes


def test_inside_a_partition_the_offset_decides_whatever_the_timestamps_say():
    first = Order("documents", 0, offset=1, timestamp_ms=900)
    second = Order("documents", 0, offset=2, timestamp_ms=100)
    assert second.is_after(first)
    assert not first.is_after(second)


def test_inside_a_partition_a_later_incarnation_of_the_topic_is_later():
    before = Order("documents", 0, offset=900, timestamp_ms=0, incarnation=1)
    after = Order("documents", 0, offset=0, timestamp_ms=0, incarnation=2)
    assert after.is_after(before)
    assert not before.is_after(after)


def test_elsewhere_timestamp_then_topic_then_partition_then_offset_decide():
    ranked = [
        Order("b", 9, offset=9, timestamp_ms=1),
        Order("a", 1, offset=9, timestamp_ms=2),
        Order("a", 2, offset=1, timestamp_ms=2),
        Order("b", 0, offset=0, timestamp_ms=2),
    ]
    for before, after in pairwise(ranked):
        assert after.is_after(before)
        assert not before.is_after(after)


ORDERS = st.builds(
    # Inside a partition the timestamps do not fall; here and elsewhere many are equal.
    lambda topic, partition, offset: Order(
        topic, partition, offset, timestamp_ms=(offset + partition) // 2
    ),
    st.sampled_from("ab"),
    st.integers(0, 2),
    st.integers(0, 4),
)


@given(st.lists(ORDERS, min_size=3, max_size=3))
def test_where_timestamps_do_not_fall_inside_a_partition_all_orders_compare(orders):
    for one, other in permutations(orders, 2):
        assert one.is_after(other) + other.is_after(one) == (one != other)
    for one, two, three in permutations(orders):
        if two.is_after(one) and three.is_after(two):
            assert three.is_after(one)
