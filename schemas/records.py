"""
Events to the records that carry them: key, value and headers, judged before they are sent.

Pure, for any Kafka client and for an outbox table. The event is encoded and decoded again with
the limits of the worker, so that what would be dead-lettered there is refused here, where the
mistake can be repaired.
"""

from collections.abc import Iterable
from typing import NamedTuple

from .bounds import Limits, Undecodable
from .codec import decode_record, encode_event, key_of
from .dead_letter import Reason
from .events import JsonEvent

DEFAULT_MAX_RECORD_BYTES = 1024 * 1024
"""Kafka's own default: `max.message.bytes` of a topic."""

# What the log adds to one record that is alone in its batch (Kafka protocol guide, "Record
# Batch"): the batch's header of 61 bytes, the record's lengths and deltas of at most 35, and at
# most 10 for the lengths of each header.
BATCH_OVERHEAD_BYTES = 96
HEADER_OVERHEAD_BYTES = 10


class InvalidEvent(ValueError):
    """A worker would dead-letter this event; `reason` is the code it would give."""

    def __init__(self, event: JsonEvent, reason: Reason, detail: str) -> None:
        super().__init__(f"{describe(event)}: {detail} ({reason})")
        self.event = event
        self.reason = reason
        self.detail = detail


class EventTooLarge(InvalidEvent):
    """The event does not fit into one record."""

    def __init__(self, event: JsonEvent, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            event,
            Reason.OVERSIZE,
            f"the record would have {size_bytes} bytes, the limit is {limit_bytes}; split the "
            "document, or raise max_record_bytes together with the topic's max.message.bytes",
        )
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class NewRecord(NamedTuple):
    """A record to be sent; `event` is what it says."""

    event: JsonEvent
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...]

    @property
    def size_bytes(self) -> int:
        """What the record takes in the log, at most, without compression."""
        size = BATCH_OVERHEAD_BYTES + len(self.key) + len(self.value)
        for name, value in self.headers:
            size += HEADER_OVERHEAD_BYTES + len(name.encode()) + len(value)
        return size


def new_record(
    event: JsonEvent,
    *,
    headers: Iterable[tuple[str, bytes]] = (),
    limits: Limits | None = None,
    max_record_bytes: int = DEFAULT_MAX_RECORD_BYTES,
) -> NewRecord:
    """
    Return the record of an event.

    Raises:
        EventTooLarge: it does not fit into `max_record_bytes`.
        InvalidEvent: a worker with these limits would refuse it.
    """
    record = _encoded(event, tuple(headers))
    if record.size_bytes > max_record_bytes:
        raise EventTooLarge(event, record.size_bytes, max_record_bytes)
    try:
        decode_record(record.key, record.value, record.headers, limits or Limits())
    except Undecodable as error:
        raise InvalidEvent(event, error.reason, error.detail) from error
    return record


def describe(event: JsonEvent) -> str:
    """Name an event in a message, without its text."""
    parts = (getattr(event, field, None) for field in ("tenant", "collection", "id"))
    return f"{type(event).__name__} of {'/'.join(str(part) for part in parts if part)!r}"


def _encoded(event: JsonEvent, headers: tuple[tuple[str, bytes], ...]) -> NewRecord:
    # TypeError: metadata that is no JSON, a name that is no text. ValueError: a lone surrogate,
    # an empty name. RecursionError: metadata that contains itself.
    try:
        return NewRecord(event, key_of(event), encode_event(event), headers)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidEvent(
            event, Reason.INVALID_SCHEMA, f"cannot be encoded: {error}"
        ) from error
