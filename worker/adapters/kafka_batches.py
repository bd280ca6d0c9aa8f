"""
Finds which offsets a record batch holds that cannot be read, and believes no header blindly.

Kafka's message format v2 (KIP-98): a header of 61 bytes that says which offsets the batch holds
and how it is packed, then the records. It is asked about batches that are broken, and whoever
asks passes all the offsets of the answer: one flipped bit in a header would take healthy
records along. So a span is an answer only where these hold; else it is a doubt:

- The batch was received whole, and its checksum is right; or the checksum is wrong, but the
  batch holds as many records as offsets, the one that was asked for among them.
- The broker finds this batch at the first of its offsets and at the last one, below the stable
  end; and what stands behind it in the log is what the broker finds behind its last offset.

The second is for the first offset, which no checksum covers. It holds for a batch behind the
offset too (compaction and retention leave gaps), whatever its first offset should have been:
what is before it in the log ends below the offset that was asked for, what is behind it begins
above its last, so that of all records from the one to the other only those of this batch are
passed. What nothing here can show is a batch that has come to end below what was asked for: the
broker passes it for whoever reads on from there, and its offsets look like a gap.
"""

from collections.abc import Awaitable, Callable
from struct import Struct

from aiokafka.record.util import calc_crc32c

from worker.ports import BatchSpan

# Base offset, length, leader epoch, magic, checksum, attributes, last offset delta,
# base timestamp, largest timestamp, producer id, producer epoch, base sequence, records.
HEADER = Struct(">qiibIhiqqqhii")
_CHECKSUM = Struct(">I")
_CHECKSUM_AT = 17
_CHECKED_FROM = 21
# The length does not count itself and what is before it.
_LENGTH_COUNTS_FROM = 12
_MAGIC = 2
_CODEC_MASK = 0b111
_CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
# The broker answers with one whole batch at least, however large; more is rarely wanted.
_FETCH_BYTES = 1024

Fetch = Callable[[int, int], Awaitable[bytes]]
"""What the log holds from the batch of an offset on: that batch, and more up to some bytes."""


class Doubtful(ValueError):
    """What stands in the log is no batch of which we know for certain where it ends."""


async def find_span(fetch: Fetch, offset: int, bounds: tuple[int, int]) -> BatchSpan | None:
    """
    Return the batch at an offset between the bounds, or the next one, None: there is none.

    Raises:
        Doubtful: what does not fit, in words.
    """
    data = await fetch(offset, _FETCH_BYTES)
    if not data:
        return None
    span = believed(data, offset)
    batch, wanted = data[: span.size_bytes], span.size_bytes + HEADER.size
    if wanted > _FETCH_BYTES:
        data = await fetch(offset, wanted)
    await _check_place(fetch, span, batch, bounds)
    if not data.startswith(batch):
        raise Doubtful(f"the batch at offset {span.first} is another one when asked again")
    if len(data) > len(batch):
        await _check_following(fetch, span, data[len(batch) :])
    return span


def believed(data: bytes, offset: int) -> BatchSpan:
    """
    Return what the first header in `data` says, where the batch itself does not belie it.

    Of a batch with a wrong checksum `codec` and `timestamp_ms` are hearsay.

    Raises:
        Doubtful: it is cut off, no header, or not of a batch that ends at `offset` or behind.
    """
    span = span_of(data)
    if len(data) < span.size_bytes:
        raise Doubtful(
            f"of {span.size_bytes} bytes at offset {span.first} are {len(data)} there"
        )
    if span.last < offset:
        raise Doubtful(f"the batch says that it ends at {span.last}, below offset {offset}")
    if not _is_intact(data[: span.size_bytes]) and not _is_consistent(span, offset):
        raise Doubtful(
            f"the checksum is wrong, and the header says {span.records} records "
            f"at offsets {span.first} to {span.last}"
        )
    return span


def span_of(data: bytes, place: int = 0) -> BatchSpan:
    """
    Return what the header at this place says, true or not.

    Raises:
        Doubtful: it is cut off, of an older format, or says what cannot be.
    """
    if len(data) - place < HEADER.size:
        raise Doubtful(f"{len(data) - place} bytes are no whole header of a record batch")
    first, length, _, magic, _, attributes, last_delta, _, timestamp_ms, *_, records = (
        HEADER.unpack_from(data, place)
    )
    if magic != _MAGIC:
        raise Doubtful(f"the batch at offset {first} is of message format v{magic}, not v2")
    size_bytes = _LENGTH_COUNTS_FROM + length
    if size_bytes < HEADER.size or last_delta < 0 or records < 0:
        raise Doubtful(f"the header at offset {first} says what cannot be")
    return BatchSpan(
        first=first,
        last=first + last_delta,
        records=records,
        size_bytes=size_bytes,
        codec=_codec(attributes & _CODEC_MASK),
        timestamp_ms=timestamp_ms,
    )


async def _check_place(
    fetch: Fetch, span: BatchSpan, batch: bytes, bounds: tuple[int, int]
) -> None:
    start, end = bounds
    if span.last >= end:
        raise Doubtful(f"the batch says that it ends at {span.last}; the log ends at {end}")
    for offset in (max(span.first, start), span.last):
        if not (await fetch(offset, 1)).startswith(batch):
            raise Doubtful(
                f"the batch says that it holds offsets {span.first} to {span.last}, "
                f"but another one is found at {offset}"
            )


async def _check_following(fetch: Fetch, span: BatchSpan, behind: bytes) -> None:
    following = span_of(behind)
    found = await fetch(span.last + 1, 1)
    if following.first <= span.last or found[: HEADER.size] != behind[: HEADER.size]:
        raise Doubtful(
            f"the batch says that it ends at {span.last}, "
            f"but another one stands behind it than is found at {span.last + 1}"
        )


def _is_intact(batch: bytes) -> bool:
    (checksum,) = _CHECKSUM.unpack_from(batch, _CHECKSUM_AT)
    return bool(calc_crc32c(memoryview(batch)[_CHECKED_FROM:]) == checksum)


def _is_consistent(span: BatchSpan, offset: int) -> bool:
    return span.first <= offset and span.last - span.first + 1 == span.records


def _codec(number: int) -> str:
    return _CODECS[number] if number < len(_CODECS) else f"codec {number}"
