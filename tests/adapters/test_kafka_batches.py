"""The header of a record batch, read without unpacking the batch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.kafka_batches import CODECS, batch_of, bomb
from worker.adapters.kafka_batches import HEADER, NoHeader, find_span, span_of
from worker.ports import BatchSpan

INT64 = st.integers(-(2**63), 2**63 - 1)
INT32 = st.integers(-(2**31), 2**31 - 1)
INT16 = st.integers(-(2**15), 2**15 - 1)
NAMES = ["none", "gzip", "snappy", "lz4", "zstd", "codec 5", "codec 6", "codec 7"]


@st.composite
def headers(draw, highest_offset=2**62, body_bytes=None):
    """A header and what it says; whatever we do not read is anything."""
    body = draw(st.integers(0, 2**31 - 62)) if body_bytes is None else body_bytes
    span = BatchSpan(
        first=draw(st.integers(0, highest_offset)),
        last=0,
        records=draw(st.integers(0, 2**31 - 1)),
        size_bytes=HEADER.size + body,
        codec=draw(st.sampled_from(NAMES)),
        timestamp_ms=draw(INT64),
    )
    delta = draw(st.integers(0, 2**31 - 1))
    attributes = (draw(st.integers(-(2**12), 2**12 - 1)) << 3) | NAMES.index(span.codec)
    data = HEADER.pack(
        span.first,
        span.size_bytes - 12,
        draw(INT32),
        2,
        draw(st.integers(0, 2**32 - 1)),
        attributes,
        delta,
        draw(INT64),
        span.timestamp_ms,
        draw(INT64),
        draw(INT16),
        draw(INT32),
        span.records,
    )
    return data, BatchSpan(
        span.first,
        span.first + delta,
        span.records,
        span.size_bytes,
        span.codec,
        span.timestamp_ms,
    )


@given(headers(), st.binary(max_size=100))
def test_a_header_says_what_was_packed_into_it(header, behind):
    data, span = header
    assert span_of(data + behind) == span
    assert find_span(data + behind, span.first) == span
    assert find_span(data + behind, span.last) == span
    assert find_span(data + behind, 0) == span


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1), st.data())
def test_of_several_batches_that_which_ends_at_the_offset_or_behind_it_is_found(shape, data):
    log, spans, following = b"", [], 0
    for gap, delta in shape:
        batch = batch_of([b"value"] * (delta + 1))
        batch[:8] = (following + gap).to_bytes(8)
        log += batch
        spans.append((following + gap, following + gap + delta))
        following = spans[-1][1] + 1
    offset = data.draw(st.integers(0, following + 2))
    found = find_span(log, offset)
    expected = next((span for span in spans if span[1] >= offset), None)
    assert (None if found is None else (found.first, found.last)) == expected


@given(headers(), st.integers(0, HEADER.size - 1))
def test_a_header_that_is_cut_off_is_refused(header, length):
    data, _ = header
    with pytest.raises(NoHeader, match="no whole header"):
        span_of(data[:length])


@given(headers(highest_offset=100, body_bytes=0), st.integers(1, HEADER.size - 1))
def test_a_log_that_is_cut_off_before_the_offset_is_refused(header, length):
    data, span = header
    with pytest.raises(NoHeader):
        find_span(data + data[:length], span.last + 1)


@given(headers(), st.data())
def test_a_log_that_is_cut_off_within_a_batch_says_nothing_of_what_is_behind(header, data):
    packed, span = header
    body = data.draw(st.binary(max_size=min(50, span.size_bytes - HEADER.size)))
    if len(packed + body) == span.size_bytes:
        assert find_span(packed + body, span.last + 1) is None
    else:
        with pytest.raises(NoHeader, match="cut off before offset"):
            find_span(packed + body, span.last + 1)


def test_an_empty_log_holds_no_batch():
    assert find_span(b"", 0) is None


@pytest.mark.parametrize("magic", [0, 1, 3, 255])
def test_other_message_formats_are_refused_by_their_number(magic):
    batch = batch_of([b"value"])
    batch[16] = magic
    number = magic - 256 if magic > 127 else magic
    with pytest.raises(NoHeader, match=f"offset 0 is of message format v{number}, not v2"):
        span_of(bytes(batch))


@pytest.mark.parametrize(("at", "value"), [(8, 48), (8, -1), (8, -(2**31)), (23, -1), (57, -1)])
def test_a_header_that_says_what_cannot_be_is_refused(at, value):
    batch = batch_of([b"value"])
    batch[at : at + 4] = value.to_bytes(4, signed=True)
    with pytest.raises(NoHeader, match="cannot be"):
        span_of(bytes(batch))


@given(st.binary(max_size=200), st.integers(0, 2**62))
def test_any_bytes_are_a_span_or_refused(data, offset):
    try:
        span = find_span(data, offset)
    except NoHeader:
        return
    assert span is None or span.first <= span.last >= offset


@pytest.mark.parametrize("codec", list(CODECS))
def test_what_a_producer_builds_is_described(codec):
    batch = batch_of([b"a" * 100, b"b", b"c"], codec=codec, timestamp_ms=5)
    assert span_of(bytes(batch)) == BatchSpan(0, 2, 3, len(batch), codec, 7)


def test_a_bomb_is_described_by_its_first_bytes():
    batch = bomb(2**28)
    assert len(batch) < 2**20
    assert span_of(bytes(batch[: HEADER.size])) == BatchSpan(0, 0, 1, len(batch), "zstd", 1)
