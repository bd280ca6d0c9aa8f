"""
Reads the header of a record batch, without unpacking the batch.

Kafka's message format v2 (KIP-98): a header of 61 bytes that says which offsets the batch holds
and how it is packed, then the records. Nothing is checked but that the header can be one: not
the checksum, for it is asked about batches that are broken.
"""

from struct import Struct

from worker.ports import BatchSpan

# Base offset, length, leader epoch, magic, checksum, attributes, last offset delta,
# base timestamp, largest timestamp, producer id, producer epoch, base sequence, records.
HEADER = Struct(">qiibIhiqqqhii")
# The length does not count itself and what is before it.
_LENGTH_COUNTS_FROM = 12
_MAGIC = 2
_CODEC_MASK = 0b111
_CODECS = ("none", "gzip", "snappy", "lz4", "zstd")


class NoHeader(ValueError):
    """These bytes do not begin with the header of a batch that we know."""


def find_span(data: bytes, offset: int) -> BatchSpan | None:
    """
    Return the first batch in `data` that ends at an offset or behind it, None: all end below.

    `data` is what the log holds in one piece; its last batch may be cut off behind its header.

    Raises:
        NoHeader: before that it is cut off, or holds something else than format v2.
    """
    place = 0
    while place < len(data):
        span = span_of(data, place)
        if span.last >= offset:
            return span
        place += span.size_bytes
    if place > len(data):
        raise NoHeader(f"the log is cut off before offset {offset}")
    return None


def span_of(data: bytes, place: int = 0) -> BatchSpan:
    """
    Return what the header at this place says.

    Raises:
        NoHeader: it is cut off, of an older format, or says what cannot be.
    """
    if len(data) - place < HEADER.size:
        raise NoHeader(f"{len(data) - place} bytes are no whole header of a record batch")
    first, length, _, magic, _, attributes, last_delta, _, timestamp_ms, *_, records = (
        HEADER.unpack_from(data, place)
    )
    if magic != _MAGIC:
        raise NoHeader(f"the batch at offset {first} is of message format v{magic}, not v2")
    size_bytes = _LENGTH_COUNTS_FROM + length
    if size_bytes < HEADER.size or last_delta < 0 or records < 0:
        raise NoHeader(f"the header at offset {first} says what cannot be")
    return BatchSpan(
        first=first,
        last=first + last_delta,
        records=records,
        size_bytes=size_bytes,
        codec=_codec(attributes & _CODEC_MASK),
        timestamp_ms=timestamp_ms,
    )


def _codec(number: int) -> str:
    return _CODECS[number] if number < len(_CODECS) else f"codec {number}"
