from datetime import datetime

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from schemas.codec import Limits, decode_record
from schemas.dead_letter import Reason
from schemas.events import UNSET, DocumentDeleted, DocumentUpserted, ScopeDeleted
from schemas.records import EventTooLarge, InvalidEvent, new_record


def upsert(**changes):
    fields = {"tenant": "acme", "collection": "docs", "id": "42", "version": 7, "text": "Hello"}
    return DocumentUpserted(**fields | changes)


@pytest.mark.parametrize(
    "event",
    [
        upsert(metadata={"a": 1}),
        DocumentDeleted(tenant="a/b", collection="c", id="d", version=1),
        ScopeDeleted(tenant="a", version=1),
    ],
)
def test_a_record_is_what_a_worker_reads(event):
    record = new_record(event, headers=[("traceparent", b"x")])

    assert record.headers == (("traceparent", b"x"),)
    assert decode_record(record.key, record.value, record.headers, Limits()).event == event


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": -1}, Reason.INVALID_SCHEMA),
        ({"version": "7"}, Reason.INVALID_SCHEMA),
        ({"version": 7.0}, Reason.INVALID_SCHEMA),
        ({"id": ""}, Reason.INVALID_SCHEMA),
        ({"id": None}, Reason.INVALID_SCHEMA),
        ({"id": 42}, Reason.INVALID_SCHEMA),
        ({"id": "4\x002"}, Reason.INVALID_SCHEMA),
        ({"tenant": "é" * 257}, Reason.INVALID_SCHEMA),
        ({"text": "\ud800"}, Reason.INVALID_SCHEMA),
        ({"metadata": {"a": object()}}, Reason.INVALID_SCHEMA),
        ({"metadata": {"a": float("1e308") * 10}}, None),
        ({"occurred_at": datetime(2026, 1, 1)}, Reason.INVALID_SCHEMA),  # noqa: DTZ001 the point
        ({"text": "x" * 11}, Reason.OVERSIZE),
        ({"text": "\x00"}, Reason.NUL_CHARACTER),
    ],
)
def test_what_a_worker_would_refuse_is_refused_before_it_is_sent(change, reason):
    event = upsert(**change)
    limits = Limits(max_text_bytes=10, nul="dead_letter")
    if reason is None:
        assert new_record(event, limits=limits).event is event
        return

    with pytest.raises(InvalidEvent) as refused:
        new_record(event, limits=limits)

    assert refused.value.reason is reason
    assert refused.value.event is event


def test_metadata_that_contains_itself_is_refused():
    metadata = {}
    metadata["self"] = metadata

    with pytest.raises(InvalidEvent):
        new_record(upsert(metadata=metadata))


def test_an_error_names_the_document_and_not_its_text():
    with pytest.raises(InvalidEvent, match=r"DocumentUpserted of 'acme/docs/42': .*version"):
        new_record(upsert(version=-1, text="secret"))


def test_a_record_of_exactly_the_limit_passes_and_a_byte_more_does_not():
    size = new_record(upsert()).size_bytes

    assert new_record(upsert(), max_record_bytes=size).size_bytes == size
    with pytest.raises(EventTooLarge) as refused:
        new_record(upsert(), max_record_bytes=size - 1)

    assert (refused.value.size_bytes, refused.value.limit_bytes) == (size, size - 1)
    assert f"{size} bytes" in str(refused.value)
    assert f"limit is {size - 1}" in str(refused.value)
    assert refused.value.reason is Reason.OVERSIZE


@pytest.mark.parametrize("size", [1, 100, 20_000, 3_000_000])
@pytest.mark.parametrize("headers", [(), (("h" * 300, b"v" * 300),), (("h", b"v"),) * 100])
def test_the_size_is_never_less_than_what_the_client_or_the_log_counts(size, headers):
    record = new_record(upsert(text="x" * size), headers=headers, max_record_bytes=2**30)
    batch = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=1,
        producer_epoch=1,
        base_sequence=1,
        batch_size=2**30,
    )
    batch.append(0, 2**42, record.key, record.value, list(headers))

    assert record.size_bytes >= len(batch.build())
    assert record.size_bytes >= DefaultRecordBatchBuilder.estimate_size_in_bytes(
        record.key, record.value, list(headers)
    )
    assert record.size_bytes < len(batch.build()) + 100 + 10 * len(headers)


def test_absent_fields_are_not_written():
    assert b"metadata" not in new_record(upsert(metadata=UNSET)).value
