"""
A record becomes a work, readable or not.

Owns the limits of what is accepted. A record that cannot be decoded, or must not be, becomes a
work as well, so that it is counted, bounded and settled like any other. Never waits.
"""

from schemas.codec import Limits, Undecodable, decode_record, traceparent_of
from schemas.dead_letter import Origin, Reason, parse_origin
from schemas.events import Event, JsonEvent, ScopeDeleted, Tombstone
from schemas.keys import InvalidKey, decode_key
from worker.config import IngestOptions
from worker.core.lifecycle import PartitionLife
from worker.core.model import Order, Rank, Record, Rejected, Work
from worker.core.versions import refuse_future
from worker.telemetry import Counters


class Decode:
    """What makes works of the records that a worker polls."""

    def __init__(self, options: IngestOptions, counters: Counters) -> None:
        self._limits = Limits(max_text_bytes=options.max_text_bytes, nul=options.nul)
        self._version_clock = options.version_clock
        self._counters = counters

    def __call__(self, life: PartitionLife, record: Record) -> Work:
        """Decode a record of a partition of ours."""
        try:
            decoded = decode_record(record.key, record.value, record.headers, self._limits)
            refuse_future(decoded.event, self._version_clock, _times_ms(record, decoded.origin))
        except Undecodable as error:
            return self.rejected(life, record, error.reason, error.detail, error.event)
        self._counters.nul_replaced += decoded.nul_replaced
        return _work(life, record, decoded.event, decoded.traceparent, decoded.origin)

    def rejected(
        self,
        life: PartitionLife,
        record: Record,
        reason: Reason,
        detail: str,
        event: JsonEvent | None = None,
    ) -> Work:
        """Make a work of a record that is given up; `event` is what could be read of it."""
        return _work(
            life,
            record,
            _rejected(record, reason, detail, event),
            traceparent_of(record.headers),
            parse_origin(record.headers),
        )


def _work(
    life: PartitionLife,
    record: Record,
    event: Event | Rejected,
    traceparent: str | None,
    claimed: Origin | None,
) -> Work:
    claim = life.claim
    assert claim is not None
    order = Order(*record.position, record.timestamp_ms, claim.incarnation)
    version = None if isinstance(event, Tombstone) else event.version
    return Work(
        event=event,
        record=record,
        claim=claim,
        rank=Rank(version, order),
        size_bytes=record.size_bytes,
        traceparent=traceparent,
        claimed_origin=_credible(claimed, order),
    )


def _rejected(record: Record, reason: Reason, detail: str, event: JsonEvent | None) -> Rejected:
    if event is None:
        return Rejected(reason, detail, _tenant(record))
    if isinstance(event, ScopeDeleted):
        return Rejected(reason, detail, event.tenant, version=event.version)
    names = event.tenant, event.collection, event.id
    return Rejected(reason, detail, *names, event.version)


def _times_ms(record: Record, claimed: Origin | None) -> tuple[int, ...]:
    """Return when the record was written, and where it claims to be a replay, of what."""
    if claimed is None:
        return (record.timestamp_ms,)
    return record.timestamp_ms, claimed.timestamp_ms


def _tenant(record: Record) -> str:
    """Return whose record it is, as far as its key can be read."""
    try:
        return decode_key(record.key or b"").tenant
    except InvalidKey:
        return ""


def _credible(claimed: Origin | None, own: Order) -> Order | None:
    """Return the origin a replay claims, where it can be true: same partition, before it."""
    if claimed is None:
        return None
    origin = Order(*claimed)
    return origin if origin[:2] == own[:2] and own.is_after(origin) else None
