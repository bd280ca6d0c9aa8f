"""
CloudEvents 1.0 over Kafka: where the type, the payload and the time of an event stand.

Binary mode: attributes are headers `ce_*`, the value is the payload. Structured mode: the
header `content-type` is `application/cloudevents+json` and the value is the envelope. The
payload is an event of ours without its `type` (with it, it must agree). Other attributes and
extensions are ignored, but for `traceparent` (the distributed tracing extension).
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from .events import OccurredAt

SPEC_VERSION = "ce_specversion"
TYPE_PREFIX = "embedfleet.document."
TRACEPARENT = "ce_traceparent"

_CONTENT_TYPE = "content-type"
_STRUCTURED = b"application/cloudevents+json"


class _Envelope(Struct):
    specversion: str
    type: str
    data: Raw
    time: OccurredAt | UnsetType = UNSET


class CloudEvent(NamedTuple):
    """An event taken out of its envelope: our type tag and the JSON of the payload."""

    tag: str
    payload: bytes | Raw
    time: OccurredAt | UnsetType


class UnreadableCloudEvent(ValueError):
    """An attribute is missing or wrong; the message names it."""


_STRUCTURED_DECODER = msgspec.json.Decoder(_Envelope)


def unwrap(value: bytes, fields: Mapping[str, bytes | None]) -> CloudEvent | None:
    """
    Return the CloudEvent in a record, None where the record is none.

    Raises:
        UnreadableCloudEvent, msgspec.DecodeError, UnicodeDecodeError, RecursionError
    """
    if SPEC_VERSION in fields:
        version = _attribute(fields, "specversion")
        event = CloudEvent(tag_of(fields), value, _time(fields.get("ce_time")))
    elif (fields.get(_CONTENT_TYPE) or b"").lower().startswith(_STRUCTURED):
        envelope = _STRUCTURED_DECODER.decode(value)
        version = envelope.specversion
        event = CloudEvent(_tag(envelope.type), envelope.data, envelope.time)
    else:
        return None
    if version != "1.0":
        raise UnreadableCloudEvent("specversion is not 1.0")
    return event


def tag_of(fields: Mapping[str, bytes | None]) -> str:
    """
    Return our type tag as the headers of binary mode have it.

    Raises:
        UnreadableCloudEvent: there is no such header, or it is not UTF-8.
    """
    return _tag(_attribute(fields, "type"))


def _tag(name: str) -> str:
    return name.removeprefix(TYPE_PREFIX)


def _attribute(fields: Mapping[str, bytes | None], name: str) -> str:
    raw = fields.get(f"ce_{name}")
    if raw is None:
        raise UnreadableCloudEvent(f"the header ce_{name} is missing")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableCloudEvent(f"the header ce_{name} is not UTF-8") from error


def _time(raw: bytes | None) -> OccurredAt | UnsetType:
    if raw is None:
        return UNSET
    try:
        return msgspec.convert(raw.decode("utf-8"), OccurredAt)
    except ValueError as error:
        raise UnreadableCloudEvent("the header ce_time is no RFC 3339 time") from error
