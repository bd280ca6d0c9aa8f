"""
Records to events and back: the only place where the bytes of a record are judged.

`decode_record` gives every record one of two ends: a `Decoded`, or `Undecodable` with a reason
code; never another exception, whatever the bytes (a fuzz test holds it). Pure and synchronous.
It runs for every record, so the good path tests only what the decoder has not, cheapest first.

Invariants: a decoded event holds no U+0000 anywhere (PostgreSQL's text and jsonb refuse it) and
no lone surrogate (msgspec refuses it); its names are at most 512 bytes; its key names it. The
detail of an `Undecodable` names fields, never repeats what they hold.
"""

import re
from collections.abc import Mapping

import msgspec
from msgspec import UNSET, Struct

from . import cloud_events
from .bounds import Limits, Undecodable, within_limits
from .dead_letter import ORIGIN_TOPIC, Header, Origin, Reason, parse_origin
from .events import (
    DocumentDeleted,
    DocumentUpserted,
    Event,
    JsonEvent,
    ScopeDeleted,
    Tombstone,
)
from .keys import (
    DocumentName,
    InvalidKey,
    ScopeName,
    decode_key,
    encode_key,
    encode_scope_key,
)

__all__ = [
    "Decoded",
    "DocumentName",
    "InvalidKey",
    "Limits",
    "ScopeName",
    "Undecodable",
    "decode_key",
    "decode_record",
    "encode_event",
    "encode_key",
    "encode_scope_key",
    "is_traceparent",
    "key_of",
    "traceparent_of",
]

_ENCODER = msgspec.json.Encoder()
_EVENT = msgspec.json.Decoder(JsonEvent)
_BY_TAG: dict[str, msgspec.json.Decoder[JsonEvent]] = {
    "upsert": msgspec.json.Decoder(DocumentUpserted),
    "delete": msgspec.json.Decoder(DocumentDeleted),
    "delete_scope": msgspec.json.Decoder(ScopeDeleted),
}

_DOCUMENT_SLASHES = 2
_OF_THE_CONTENT = (Reason.OVERSIZE, Reason.NUL_CHARACTER)
# W3C Trace Context, section 3.2: version 00; an id of zeros only is invalid.
_TRACEPARENT = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_NO_TRACE, _NO_SPAN = b"-" + b"0" * 32, b"-" + b"0" * 16 + b"-"


class _Tagged(Struct):
    type: str


_TAGGED = msgspec.json.Decoder(_Tagged)


class Decoded(Struct, frozen=True):
    """
    What a record says.

    `origin` is what a replayed record claims; `nul_replaced` counts U+0000 become U+FFFD.
    """

    event: Event
    nul_replaced: int = 0
    traceparent: str | None = None
    origin: Origin | None = None


def encode_event(event: JsonEvent) -> bytes:
    """Return the value of an event's record; bounds are not checked."""
    return _ENCODER.encode(event)


def key_of(event: Event) -> bytes:
    """Return the key of an event's record."""
    if isinstance(event, ScopeDeleted):
        return encode_scope_key(event.tenant, event.collection or None)
    return encode_key(event.tenant, event.collection, event.id)


def is_traceparent(value: bytes) -> bool:
    """Tell whether this is a valid W3C `traceparent` of version 00."""
    if _TRACEPARENT.fullmatch(value) is None:
        return False
    return _NO_TRACE not in value and _NO_SPAN not in value


def decode_record(
    key: bytes | None, value: bytes | None, headers: tuple[Header, ...], limits: Limits
) -> Decoded:
    """
    Return what a record says.

    Raises:
        Undecodable: for every way in which a record can be bad.
    """
    fields = dict(headers)
    _check_size(key, value, headers, limits)
    if key is None:
        raise Undecodable(Reason.MISSING_KEY, "the record has no key")
    event: Event
    if value is None:
        event, nuls = _tombstone(key, fields), 0
    else:
        event, nuls = _accepted(_decode_value(value, fields), key, value, limits)
    return Decoded(
        event,
        nuls,
        traceparent_of(headers),
        parse_origin(headers) if ORIGIN_TOPIC in fields else None,
    )


def _check_size(
    key: bytes | None, value: bytes | None, headers: tuple[Header, ...], limits: Limits
) -> None:
    size = len(key or b"") + len(value or b"")
    for name, content in headers:
        size += len(name) + len(content or b"")
    if size > limits.record_bytes:
        raise Undecodable(
            Reason.OVERSIZE, f"the record has {size} bytes, the limit is {limits.record_bytes}"
        )


def traceparent_of(headers: tuple[Header, ...]) -> str | None:
    """Return the valid `traceparent` of a record, None where there is none."""
    fields = dict(headers)
    value = fields.get("traceparent") or fields.get(cloud_events.TRACEPARENT)
    return value.decode("ascii") if value and is_traceparent(value) else None


def _tombstone(key: bytes, fields: Mapping[str, bytes | None]) -> Tombstone:
    name = _decode_key(key)
    if isinstance(name, ScopeName):
        raise Undecodable(Reason.INVALID_SCHEMA, "a null value cannot delete a scope")
    if "\x00" in "".join(name):
        raise Undecodable(Reason.INVALID_KEY, "the key holds U+0000")
    # A publisher whose upsert lost its value must not delete the document.
    if cloud_events.SPEC_VERSION in fields and _tag(fields) != "delete":
        raise Undecodable(Reason.INVALID_SCHEMA, "ce_type is no delete, but the value is null")
    return Tombstone(tenant=name.tenant, collection=name.collection, id=name.id)


def _tag(fields: Mapping[str, bytes | None]) -> str:
    try:
        return cloud_events.tag_of(fields)
    except cloud_events.UnreadableCloudEvent as error:
        raise Undecodable(Reason.INVALID_SCHEMA, str(error)) from error


def _decode_value(value: bytes, fields: Mapping[str, bytes | None]) -> JsonEvent:
    # UnicodeDecodeError and RecursionError are no msgspec errors, but as poisonous.
    try:
        enveloped = cloud_events.unwrap(value, fields) if fields else None
        if enveloped is not None:
            return _decode_enveloped(enveloped)
        event: JsonEvent = _EVENT.decode(value)
    except msgspec.ValidationError as error:
        raise _schema_error(error, value) from error
    except msgspec.DecodeError as error:
        raise Undecodable(Reason.UNDECODABLE, str(error)) from error
    except UnicodeDecodeError as error:
        raise Undecodable(Reason.UNDECODABLE, "the value is not UTF-8") from error
    except RecursionError as error:
        raise Undecodable(Reason.UNDECODABLE, "the value is nested too deeply") from error
    except cloud_events.UnreadableCloudEvent as error:
        raise Undecodable(Reason.INVALID_SCHEMA, str(error)) from error
    else:
        return event


def _decode_enveloped(enveloped: cloud_events.CloudEvent) -> JsonEvent:
    decoder = _BY_TAG.get(enveloped.tag)
    if decoder is None:
        raise Undecodable(Reason.UNKNOWN_TYPE, "the CloudEvents type is unknown")
    event: JsonEvent = decoder.decode(enveloped.payload)
    if enveloped.time is UNSET or event.occurred_at is not UNSET:
        return event
    dated: JsonEvent = msgspec.structs.replace(event, occurred_at=enveloped.time)
    return dated


def _schema_error(error: msgspec.ValidationError, value: bytes) -> Undecodable:
    try:
        tag = _TAGGED.decode(value).type.removeprefix(cloud_events.TYPE_PREFIX)
    except (ValueError, RecursionError):
        return Undecodable(Reason.INVALID_SCHEMA, str(error))
    if tag not in _BY_TAG:
        return Undecodable(Reason.UNKNOWN_TYPE, "`$.type` is unknown")
    # msgspec names paths and types; all that it ever repeats is a type tag, here a known one.
    return Undecodable(Reason.INVALID_SCHEMA, str(error))


def _accepted(
    event: JsonEvent, key: bytes, value: bytes, limits: Limits
) -> tuple[JsonEvent, int]:
    try:
        accepted = within_limits(event, value, limits)
    except Undecodable as error:
        # Whose content alone is refused, by the names that its key has too.
        if error.reason in _OF_THE_CONTENT and _is_named(event, key):
            error.event = event
        raise
    _check_key(key, event)
    return accepted


def _is_named(event: JsonEvent, key: bytes) -> bool:
    try:
        _check_key(key, event)
    except Undecodable:
        return False
    return True


def _check_key(key: bytes, event: JsonEvent) -> None:
    if isinstance(event, ScopeDeleted):
        scope = ScopeName(event.tenant, event.collection or None)
        matches = _decode_key(key) == scope
    else:
        # Most keys need no escape. Exactly two slashes: a name with one would make more.
        plain = f"{event.tenant}/{event.collection}/{event.id}".encode() == key
        if plain and key.count(b"/") == _DOCUMENT_SLASHES and b"%" not in key:
            return
        matches = _decode_key(key) == (event.tenant, event.collection, event.id)
    if not matches:
        raise Undecodable(Reason.KEY_MISMATCH, "the key names something else than the value")


def _decode_key(key: bytes) -> DocumentName | ScopeName:
    try:
        return decode_key(key)
    except InvalidKey as error:
        raise Undecodable(Reason.INVALID_KEY, str(error)) from error
