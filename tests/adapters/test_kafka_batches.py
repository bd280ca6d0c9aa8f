"""The header of a record batch, read without unpacking the batch, and when it is believed."""

import asyncio
import struct

import pytest
from aiokafka.errors import CorruptRecordException, OffsetOutOfRangeError
from hypothesis import given
from hypothesis import strategies as st

from tests.support.kafka_batches import CODECS, batch_of, bomb, sealed
from worker.adapters.kafka_batches import HEADER, Doubtful, believed, find_span, span_of
from worker.ports import BatchSpan

INT64 = st.integers(-(2**63), 2**63 - 1)
INT32 = st.integers(-(2**31), 2**31 - 1)
INT16 = st.integers(-(2**15), 2**15 - 1)
NAMES = ["none", "gzip", "snappy", "lz4", "zstd", "codec 5", "codec 6", "codec 7"]


@st.composite
def headers(draw):
    """A header and what it says; whatever we do not read is anything."""
    span = BatchSpan(
        first=draw(st.integers(0, 2**62)),
        last=0,
        records=draw(st.integers(0, 2**31 - 1)),
        size_bytes=HEADER.size + draw(st.integers(0, 2**31 - 62)),
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


@given(headers(), st.integers(0, HEADER.size - 1))
def test_a_header_that_is_cut_off_is_refused(header, length):
    data, _ = header
    with pytest.raises(Doubtful, match="no whole header"):
        span_of(data[:length])


@pytest.mark.parametrize("magic", [0, 1, 3, 255])
def test_other_message_formats_are_refused_by_their_number(magic):
    batch = batch_of([b"value"])
    batch[16] = magic
    number = magic - 256 if magic > 127 else magic
    with pytest.raises(Doubtful, match=f"offset 0 is of message format v{number}, not v2"):
        span_of(bytes(batch))


@pytest.mark.parametrize(("at", "value"), [(8, 48), (8, -1), (8, -(2**31)), (23, -1), (57, -1)])
def test_a_header_that_says_what_cannot_be_is_refused(at, value):
    batch = batch_of([b"value"])
    batch[at : at + 4] = value.to_bytes(4, signed=True)
    with pytest.raises(Doubtful, match="cannot be"):
        span_of(bytes(batch))


@pytest.mark.parametrize("codec", list(CODECS))
def test_what_a_producer_builds_is_described(codec):
    batch = batch_of([b"a" * 100, b"b", b"c"], codec=codec, timestamp_ms=5)
    assert span_of(bytes(batch)) == BatchSpan(0, 2, 3, len(batch), codec, 7)


def test_a_bomb_is_described_by_its_first_bytes():
    batch = bomb(2**28)
    assert len(batch) < 2**20
    assert span_of(bytes(batch[: HEADER.size])) == BatchSpan(0, 0, 1, len(batch), "zstd", 1)


class LogFile:
    """A log as a broker finds its way through it: by the headers, from the front."""

    def __init__(self, batches):
        self.data = bytearray(b"".join(batches))
        self.spans = self._walk()
        self.start = 0
        self.end = self.spans[-1].last + 1 if self.spans else 0

    def _walk(self):
        place, spans = 0, []
        while place < len(self.data):
            spans.append(span_of(bytes(self.data), place))
            place += spans[-1].size_bytes
        return spans

    def place(self, number):
        return sum(span.size_bytes for span in self.spans[:number])

    async def fetch(self, offset, max_bytes):
        if not self.start <= offset <= self.end:
            raise OffsetOutOfRangeError
        place = 0
        while place < len(self.data):
            try:
                span = span_of(bytes(self.data), place)
            except Doubtful as error:
                raise CorruptRecordException from error
            if span.last >= offset:
                return bytes(self.data[place : place + max(span.size_bytes, max_bytes)])
            place += span.size_bytes
        return b""

    def find(self, offset):
        """Ask as the adapter does; None: it was refused."""
        try:
            return asyncio.run(find_span(self.fetch, offset, (self.start, self.end)))
        except (Doubtful, CorruptRecordException):
            return None

    def is_found(self, number, offset):
        """Whether the broker finds this batch for an offset."""
        try:
            found = asyncio.run(self.fetch(offset, 1))
        except CorruptRecordException:
            return True
        return found.startswith(self.data[self.place(number) :][: HEADER.size])

    def flip(self, number, bit):
        self.data[self.place(number) + bit // 8] ^= 0x80 >> bit % 8

    def break_body(self, number):
        self.data[self.place(number + 1) - 1] ^= 1


def placed(first, count, value=b"value", deltas=None):
    """A batch at an offset; `deltas` is what compaction leaves of the offsets before."""
    batch = batch_of([value] * count)
    if deltas is not None:
        struct.pack_into(">i", batch, 23, deltas - 1)
        sealed(batch)
    batch[:8] = first.to_bytes(8)
    return batch


def offsets_and_size(span):
    return (span.first, span.last, span.records, span.size_bytes)


# The record sizes put the batch below what is fetched at once, and above.
@pytest.mark.parametrize("value", [b"value", b"value" * 400])
@pytest.mark.parametrize("is_intact", [True, False])
@pytest.mark.parametrize("count", [1, 10])
def test_no_flipped_bit_of_a_header_gives_another_span(value, is_intact, count):
    passed = 0
    for bit in range(HEADER.size * 8):
        log = LogFile([placed(4, 6), placed(10, count, value), placed(10 + count, 300)])
        if not is_intact:
            log.break_body(1)
        log.flip(1, bit)
        for offset in {10, 10 + count // 2, 9 + count}:
            if not log.is_found(1, offset):
                continue  # nor by anybody who reads on
            span = log.find(offset)
            passed += span is not None
            assert span is None or offsets_and_size(span) == offsets_and_size(log.spans[1])
    assert passed  # what says nothing of the offsets may be wrong


def test_a_flipped_bit_in_the_offsets_or_the_counts_is_refused():
    for at, size in ((0, 8), (23, 4), (57, 4), (8, 4), (16, 1)):
        for bit in range(at * 8, (at + size) * 8):
            log = LogFile([placed(4, 6), placed(10, 10), placed(20, 300)])
            log.flip(1, bit)
            assert not log.is_found(1, 10) or log.find(10) is None, bit


@given(
    st.lists(st.tuples(st.integers(0, 70), st.integers(1, 9)), min_size=1, max_size=6),
    st.data(),
)
def test_behind_one_flipped_bit_no_record_of_another_batch_is_passed(shape, data):
    batches, following = [], 0
    for gap, count in shape:
        batches.append(placed(following + gap, count))
        following += gap + count
    log = LogFile(batches)
    number = data.draw(st.integers(0, len(shape) - 1))
    offset = data.draw(st.integers(0, log.spans[number].last))
    if data.draw(st.booleans()):
        log.break_body(number)
    log.flip(number, data.draw(st.integers(0, HEADER.size * 8 - 1)))
    span = log.find(offset)
    if span is None or not log.is_found(number, offset):
        return
    others = log.spans[:number] + log.spans[number + 1 :]
    assert not [one for one in others if one.first <= span.last and one.last >= offset]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), min_size=1, max_size=6), st.data()
)
def test_in_a_healthy_log_the_batch_at_an_offset_or_the_next_one_is_found(shape, data):
    batches, following = [], 0
    for gap, count in shape:
        batches.append(placed(following + gap, count))
        following += gap + count
    log = LogFile(batches)
    offset = data.draw(st.integers(0, following - 1))
    log.start = data.draw(st.integers(0, offset))
    assert log.find(offset) == next(span for span in log.spans if span.last >= offset)


@pytest.mark.parametrize("offset", [2, 10, 14, 19])
def test_a_compacted_batch_is_believed_where_its_checksum_is_right(offset):
    log = LogFile([placed(0, 2), placed(10, 3, deltas=10), placed(30, 1)])
    assert offsets_and_size(log.find(offset))[:3] == (10, 19, 3)
    log.break_body(1)
    assert log.find(offset) is None


def test_behind_a_gap_a_batch_is_believed_where_its_checksum_is_right():
    log = LogFile([placed(0, 2), placed(10, 3), placed(30, 1)])
    assert offsets_and_size(log.find(5))[:3] == (10, 12, 3)
    log.break_body(1)
    assert log.find(5) is None
    assert offsets_and_size(log.find(11))[:3] == (10, 12, 3)


def test_a_first_offset_that_grew_beyond_the_end_of_the_log_is_refused():
    log = LogFile([placed(0, 10), placed(10, 3)])
    log.flip(1, 57)  # adds 64
    assert log.find(10) is None


def test_a_large_batch_that_changes_between_two_questions_is_refused():
    log = LogFile([placed(0, 3, b"value" * 400), placed(3, 1)])

    async def fetch(offset, max_bytes):
        data = await log.fetch(offset, max_bytes)
        return data[:100] + b"?" + data[101:] if max_bytes > 2000 else data

    with pytest.raises(Doubtful, match="another one when asked again"):
        asyncio.run(find_span(fetch, 0, (0, 4)))


def test_a_batch_that_was_not_received_whole_is_refused():
    batch = bytes(batch_of([b"value"]))
    with pytest.raises(Doubtful, match="bytes at offset 0 are"):
        believed(batch[:-1], 0)


def test_a_batch_below_the_offset_is_refused():
    with pytest.raises(Doubtful, match="ends at 0, below offset 1"):
        believed(bytes(batch_of([b"value"])), 1)


def test_the_refusal_of_a_wrong_checksum_says_what_does_not_fit():
    batch = placed(10, 10)
    batch[25] ^= 1
    with pytest.raises(Doubtful, match="says 10 records at offsets 10 to 275"):
        believed(bytes(batch), 10)


@given(st.binary(max_size=200), st.integers(0, 2**62))
def test_any_bytes_are_a_span_or_refused(data, offset):
    try:
        span = believed(data, offset)
    except Doubtful:
        return
    assert span.first <= span.last >= offset


def test_an_empty_log_holds_no_batch():
    log = LogFile([])
    assert asyncio.run(find_span(log.fetch, 0, (0, 0))) is None
