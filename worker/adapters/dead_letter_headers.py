"""What a dead letter says in its headers, the same on every topic that carries it."""

from collections.abc import Iterable

from schemas.dead_letter import (
    DeadLetterEnvelope,
    Header,
    Origin,
    dead_letter_headers,
    parse_replays,
)
from worker.ports import DeadLetter, Recorded


def headers_of(
    letter: DeadLetter, recorded: Recorded, originals: Iterable[Header] | None = None
) -> list[Header]:
    """Return all headers of a letter; `originals` replace those of its record."""
    position = letter.record.position
    origin = None
    if letter.origin is not None:
        place = letter.origin
        origin = Origin(
            place.topic, place.partition, place.offset, place.timestamp_ms, place.incarnation
        )
    envelope = DeadLetterEnvelope(
        reason=letter.reason,
        stage=letter.stage,
        detail=letter.detail,
        topic=position.topic,
        partition=position.partition,
        offset=position.offset,
        timestamp_ms=letter.record.timestamp_ms,
        incarnation=letter.claim.incarnation,
        group=letter.claim.group,
        passes=letter.passes,
        attempts=recorded.attempts,
        first_seen_ms=recorded.first_seen_ms,
        last_seen_ms=recorded.last_seen_ms,
        replays=parse_replays(letter.record.headers),
        facts=letter.facts,
        origin=origin,
    )
    return dead_letter_headers(
        letter.record.headers if originals is None else originals, envelope
    )
