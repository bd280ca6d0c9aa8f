"""
Why a record is in the dead-letter topic, and the headers that say so.

A dead letter is the original key and value byte for byte, the original headers first and
unchanged (order, duplicates and nulls too, so also its traceparent), then the envelope: headers
of ours with the prefix `embedfleet.`, the first of them `embedfleet.reason`. The last header of
that name therefore divides the two, also where an original header has a name of ours.

A replayed record is the original with its origin appended (`embedfleet.origin.*`): where it
first stood in the log, by which it is ordered. A chain of replays keeps the first origin, and
counts (`embedfleet.replays`). A reader trusts an origin only against the ledger; here it is a
claim.

A letter too large for its topic is a pointer: the envelope, then the length and the hash of the
value that was left out. The record itself still stands where the envelope says.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, NamedTuple, Self

import msgspec
from msgspec import Meta, Struct

PREFIX = "embedfleet."
REPLAYS = f"{PREFIX}replays"
VALUE_BYTES = f"{PREFIX}value-bytes"
VALUE_HASH = f"{PREFIX}value-blake2b"
"""Headers of a pointer: how long the value is that was left out, and its BLAKE2b (32 bytes)."""
MAX_DETAIL_CHARACTERS = 200

Header = tuple[str, bytes | None]
"""One header of a Kafka record; names may come twice, values may be null."""

Offset = Annotated[int, Meta(ge=0, le=2**63 - 1)]
PartitionNumber = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Timestamp = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class Reason(StrEnum):
    """
    The stable code of one way in which a record cannot pass.

    `what` says what happened, `remedy` what to do about it.
    """

    _value_: str
    what: str
    remedy: str

    UNDECODABLE = (
        "undecodable",
        "The value is no JSON, no UTF-8, or nested too deeply.",
        "Repair the publisher and publish the document again; discard the letter.",
    )
    INVALID_SCHEMA = (
        "invalid_schema",
        "The value is JSON, but not an event: a field is missing or wrong; see the detail.",
        "Repair the publisher by the JSON Schema and publish the document again.",
    )
    UNKNOWN_TYPE = (
        "unknown_type",
        "The event is of a type that this version of the worker does not know.",
        "Upgrade the workers, then replay.",
    )
    OVERSIZE = (
        "oversize",
        "The text, the metadata or the whole record is too large, or metadata nested too deep.",
        "Split the document, or raise ingest.max_text_bytes and replay.",
    )
    MISSING_KEY = (
        "missing_key",
        "The record has no key, so its place among the records of its document is unknown.",
        "Let the publisher set the key and publish the document again.",
    )
    INVALID_KEY = (
        "invalid_key",
        "The key is not tenant/collection/id, percent-encoded.",
        "Repair the publisher's key and publish the document again.",
    )
    KEY_MISMATCH = (
        "key_mismatch",
        "The key names another document, or another scope, than the value.",
        "Repair the publisher's key and publish the document again.",
    )
    NUL_CHARACTER = (
        "nul_character",
        "The text or the metadata holds U+0000, and ingest.nul is set to dead_letter.",
        "Publish without it, or set ingest.nul to replace and replay.",
    )
    UNKNOWN_COLLECTION = (
        "unknown_collection",
        "There is no such collection, also after the time of grace.",
        "Create the collection, then replay.",
    )
    REJECTED_INPUT = (
        "rejected_input",
        "The embedding provider refuses the text, and does not say why in a way we know.",
        "Look at the detail; change the text or the collection's chunking, then replay.",
    )
    CONTENT_FILTER = (
        "content_filter",
        "The embedding provider's content filter refuses the text.",
        "Change the text, or let the provider change its filter and replay.",
    )
    INPUT_TOO_LONG = (
        "input_too_long",
        "A chunk of the text is too long for the embedding model.",
        "Create a collection with smaller chunks and publish the document to it.",
    )
    PROVIDER_BAD_OUTPUT = (
        "provider_bad_output",
        "The embedding provider gives no usable vector for this text, but for others.",
        "Report the text to the provider; replay when it is repaired.",
    )
    RETRIES_EXHAUSTED = (
        "retries_exhausted",
        "The embedding provider failed for this document again and again, but answered others.",
        "Replay later.",
    )
    DEADLINE_EXCEEDED = (
        "deadline_exceeded",
        (
            "The document got no new vector within its deadline, five times, "
            "while others were answered."
        ),
        "Split the document, or raise ingest.document_timeout_seconds and replay.",
    )
    REJECTED_BY_STORE = (
        "rejected_by_store",
        "PostgreSQL cannot hold the values: the event's, or those of a vector.",
        "Look at the detail; repair the event, the collection or the schema, then replay.",
    )
    VERSION_IN_FUTURE = (
        "version_in_future",
        "The version is a time far ahead of its record: no later change could overtake it.",
        "Set the publisher's clock and publish the document again; discard the letter.",
    )
    UNREADABLE_BATCH = (
        "unreadable_batch",
        "The batch of the record cannot be read: it is broken, or of an unknown codec.",
        "Publish the documents of the offsets in the detail again; discard the letter.",
    )
    WORKER_KILLER = (
        "worker_killer",
        "The worker died of it twice: of this record alone, or of fetching its batch.",
        "Report it; publish the document in another form, or replay it with --force.",
    )
    INTERNAL_ERROR = (
        "internal_error",
        "A defect of the worker; only where it is configured not to stop.",
        "Report the log line; replay with a repaired worker.",
    )

    def __new__(cls, code: str, what: str, remedy: str) -> Self:
        """Make the code the value: members compare and print as it."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.what = what
        member.remedy = remedy
        return member


EXPLANATIONS: dict[Reason, str] = {
    reason: f"{reason.what} {reason.remedy}" for reason in Reason
}
"""What happened and what to do, for the README and the tools."""


class Origin(NamedTuple):
    """Where a replayed record first stood in the log."""

    topic: str
    partition: PartitionNumber
    offset: Offset
    timestamp_ms: Timestamp
    incarnation: Offset


_ORIGIN_NAMES = tuple(f"{PREFIX}origin.{name.removesuffix('_ms')}" for name in Origin._fields)
ORIGIN_TOPIC = _ORIGIN_NAMES[0]


class Facts(NamedTuple):
    """
    What is known of a failure beside its reason, None where it is not.

    Codes and names only: no prose of a provider's, no text of an error of PostgreSQL's.
    """

    provider_status: Annotated[
        int | None, Meta(description="HTTP status of the provider's last answer.")
    ] = None
    provider_request_id: Annotated[
        str | None, Meta(description="By what the provider finds that request in its logs.")
    ] = None
    sqlstate: Annotated[
        str | None, Meta(description="SQLSTATE with which PostgreSQL refused the values.")
    ] = None
    constraint: Annotated[
        str | None, Meta(description="The constraint that the values broke.")
    ] = None


NO_FACTS = Facts()


class NotADeadLetter(ValueError):
    """The headers are not those of a dead letter."""


def _header_name(field: str) -> str:
    return PREFIX + field.removesuffix("_ms").replace("_", "-")


FACT_NAMES = tuple(map(_header_name, Facts._fields))
"""The headers of `Facts`; what is not known has none."""


class DeadLetterEnvelope(Struct, frozen=True, kw_only=True, rename=_header_name):
    """
    What the worker says about a record that cannot pass.

    `reason` is a code of `Reason`, or one of a newer worker. Topic, partition, offset,
    timestamp and incarnation say where the record stood; `origin` where it first stood, if
    it was a replay. `attempts`, `first_seen_ms` and `last_seen_ms` are the ledger's: a record
    that is met again after a crash or a rewind keeps the first time. Letters of before they
    were told have neither attempts, a last time nor facts.
    """

    reason: Annotated[str, Meta(min_length=1, description="Why: one of the reason codes.")]
    stage: Annotated[str, Meta(description="Which stage of the worker gave it up.")]
    detail: Annotated[
        str,
        Meta(description=f"No text of the document; {MAX_DETAIL_CHARACTERS} characters."),
    ] = ""
    topic: Annotated[str, Meta(description="Where the record stood.")]
    partition: Annotated[PartitionNumber, Meta(description="... its partition.")]
    offset: Annotated[Offset, Meta(description="... its offset.")]
    timestamp_ms: Annotated[Timestamp, Meta(description="... its timestamp, milliseconds.")]
    incarnation: Annotated[
        Offset, Meta(description="... which creation of the topic, as the ledger counts.")
    ] = 0
    group: Annotated[str, Meta(description="The consumer group that gave it up.")]
    passes: Annotated[int, Meta(ge=0, description="How often it was tried.")] = 0
    attempts: Annotated[int, Meta(ge=1, description="How often it was given up.")] = 1
    first_seen_ms: Annotated[
        Timestamp, Meta(description="When it was given up first, in milliseconds.")
    ]
    last_seen_ms: Annotated[
        Timestamp | None, Meta(description="When it was given up last, in milliseconds.")
    ] = None
    replays: Annotated[int, Meta(ge=0, description="How often it had been replayed.")] = 0
    facts: Facts = NO_FACTS
    origin: Origin | None = None


_NESTED = ("facts", "origin")
_ENVELOPE_FIELDS = tuple(
    (field.name, field.encode_name)
    for field in msgspec.structs.fields(DeadLetterEnvelope)
    if field.name not in _NESTED
)
_REASON = _header_name("reason")
# Fits an int4 of the ledger.
_MAX_REPLAYS_DIGITS = 9


def dead_letter_headers(
    originals: Iterable[Header], envelope: DeadLetterEnvelope
) -> list[Header]:
    """
    Return the headers of a dead letter: the originals unchanged, then the envelope.

    Where the envelope knows no origin, the one that the originals claim is carried on.
    """
    headers = list(originals)
    origin = envelope.origin or parse_origin(headers)
    values = msgspec.structs.asdict(envelope)
    values["detail"] = envelope.detail[:MAX_DETAIL_CHARACTERS]
    told = [(name, values[field]) for field, name in _ENVELOPE_FIELDS]
    told += zip(FACT_NAMES, envelope.facts, strict=True)
    headers += [(name, _encode(value)) for name, value in told if value is not None]
    if origin is not None:
        headers += _origin_block(origin)
    return headers


def parse_dead_letter(headers: Sequence[Header]) -> tuple[DeadLetterEnvelope, list[Header]]:
    """
    Return the envelope of a dead letter and the original headers, exactly as they were.

    Raises:
        NotADeadLetter: there is no envelope, or none that can be read.
    """
    names = [name for name, _ in headers]
    if _REASON not in names:
        raise NotADeadLetter(f"there is no header {_REASON}")
    start = len(names) - 1 - names[::-1].index(_REASON)
    block = dict(headers[start:])
    try:
        fields = {name: _decode(block[name]) for _, name in _ENVELOPE_FIELDS if name in block}
        envelope = msgspec.convert(fields, DeadLetterEnvelope, strict=False)
        facts = [_decode(block[name]) if name in block else None for name in FACT_NAMES]
        envelope = msgspec.structs.replace(
            envelope,
            facts=msgspec.convert(facts, Facts, strict=False),
            origin=_origin(block),
        )
    except ValueError as error:
        raise NotADeadLetter(str(error)) from error
    return envelope, list(headers[:start])


def origin_headers(originals: Iterable[Header], envelope: DeadLetterEnvelope) -> list[Header]:
    """Return the headers of the replayed record: the originals, then its first origin."""
    own = Origin(
        envelope.topic,
        envelope.partition,
        envelope.offset,
        envelope.timestamp_ms,
        envelope.incarnation,
    )
    return with_origin(originals, envelope.origin or own)


def with_origin(originals: Iterable[Header], origin: Origin) -> list[Header]:
    """Return the headers with this origin; it is appended where they claim another or none."""
    headers = list(originals)
    if parse_origin(headers) != origin:
        headers += _origin_block(origin)
    return headers


def with_replays(originals: Iterable[Header], replays: int) -> list[Header]:
    """Return the headers of a record that is replayed for the n-th time, with one count."""
    others = [header for header in originals if header[0] != REPLAYS]
    return [*others, (REPLAYS, _encode(replays))]


def parse_replays(headers: Iterable[Header]) -> int:
    """Return how often a record says that it was replayed, 0 where it says nothing readable."""
    value = dict(headers).get(REPLAYS) or b""
    return int(value) if len(value) <= _MAX_REPLAYS_DIGITS and value.isdigit() else 0


def value_hash(headers: Iterable[Header]) -> str | None:
    """Return the hash that a pointer has in place of its value, None of a whole letter."""
    headers = list(headers)
    names = [name for name, _ in headers]
    # A pointer names it behind the envelope; before, it would be a header of the original.
    if VALUE_HASH not in names or names[::-1].index(VALUE_HASH) > names[::-1].index(_REASON):
        return None
    return _decode(dict(headers)[VALUE_HASH])


def parse_origin(headers: Iterable[Header]) -> Origin | None:
    """Return the origin that a record claims; None where there is none that can be read."""
    return _origin(dict(headers))


def _origin(fields: Mapping[str, bytes | None]) -> Origin | None:
    # A later header of a name beats an earlier one, so that appending an origin is enough.
    if ORIGIN_TOPIC not in fields:
        return None
    try:
        values = [_decode(fields[name]) for name in _ORIGIN_NAMES]
        return msgspec.convert(values, Origin, strict=False)
    except (ValueError, KeyError):
        return None


def _origin_block(origin: Origin) -> list[Header]:
    return [(name, _encode(value)) for name, value in zip(_ORIGIN_NAMES, origin, strict=True)]


def _encode(value: object) -> bytes:
    return str(value).encode("utf-8", "replace")


def _decode(value: bytes | None) -> str:
    if value is None:
        raise NotADeadLetter("a header of the envelope is null")
    return value.decode("utf-8")
