"""
What is accepted of an event beyond its types, and how a record that is not says so.

Judges a decoded event: bytes instead of characters, sizes, depth, U+0000. The types
(`schemas.events`) have been checked by the decoder. Never waits, never logs.

The detail of an `Undecodable` names fields and sizes, never repeats what they hold.
"""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct

from .dead_letter import MAX_DETAIL_CHARACTERS, Reason
from .events import (
    MAX_METADATA_BYTES,
    MAX_METADATA_DEPTH,
    MAX_NAME_BYTES,
    DocumentUpserted,
    JsonEvent,
    ScopeDeleted,
)

_ENCODER = msgspec.json.Encoder()
# JSON may spell a byte of UTF-8 in six (\u0041); what is left is names, numbers and headers.
_JSON_BYTES_PER_BYTE = 6
_OTHER_RECORD_BYTES = 64 * 1024


class Limits(Struct, frozen=True, kw_only=True):
    """
    What is accepted of one record, beyond what the types say.

    `max_record_bytes` bounds key, value and headers together; None: what the largest event
    with `max_text_bytes` of text can take as JSON. `nul` is what a U+0000 in the text or the
    metadata gets.
    """

    max_text_bytes: int = 4 * 1024 * 1024
    max_record_bytes: int | None = None
    nul: Literal["replace", "dead_letter"] = "replace"

    @property
    def record_bytes(self) -> int:
        """The limit of key, value and headers together."""
        if self.max_record_bytes is not None:
            return self.max_record_bytes
        content = self.max_text_bytes + MAX_METADATA_BYTES
        return _JSON_BYTES_PER_BYTE * content + _OTHER_RECORD_BYTES


class Undecodable(Exception):
    """
    The record is no event, or none that is accepted.

    `reason` and `detail` go into its dead letter; so do the names and the version of `event`,
    which is what could be read and is refused all the same.
    """

    def __init__(self, reason: Reason, detail: str, event: JsonEvent | None = None) -> None:
        self.reason = reason
        self.detail = detail[:MAX_DETAIL_CHARACTERS]
        self.event = event
        super().__init__(f"{reason}: {self.detail}")


def within_limits(event: JsonEvent, value: bytes, limits: Limits) -> tuple[JsonEvent, int]:
    """
    Return the event as it is accepted, and how many U+0000 were replaced in it.

    `value` is the JSON that it was decoded from.

    Raises:
        Undecodable: a name, the text or the metadata is out of bounds.
    """
    _check_names(event)
    if not isinstance(event, DocumentUpserted):
        return event, 0
    # A text is never longer than the JSON that holds it.
    if len(value) > limits.max_text_bytes:
        _check_text(event.text, limits)
    nul_in_metadata = event.metadata is not UNSET and _check_metadata(event.metadata)
    nul_in_type = event.content_type is not UNSET and "\x00" in event.content_type
    if nul_in_metadata or nul_in_type or "\x00" in event.text:
        return _without_nuls(event, limits)
    return event, 0


def _check_names(event: JsonEvent) -> None:
    id_ = "" if isinstance(event, ScopeDeleted) else event.id
    names = (event.tenant, event.collection or "", id_)
    joined = "".join(names)
    if "\x00" in joined:
        raise Undecodable(Reason.INVALID_SCHEMA, "tenant, collection or id holds U+0000")
    # The types bound characters; only other than ASCII needs its bytes counted.
    if not joined.isascii() and any(len(name.encode()) > MAX_NAME_BYTES for name in names):
        raise Undecodable(
            Reason.INVALID_SCHEMA,
            f"tenant, collection or id is longer than {MAX_NAME_BYTES} bytes",
        )


def _check_text(text: str, limits: Limits) -> None:
    size = len(text) if text.isascii() else len(text.encode())
    if size > limits.max_text_bytes:
        raise Undecodable(
            Reason.OVERSIZE,
            f"`$.text` has {size} bytes, the limit is {limits.max_text_bytes}",
        )


def _check_metadata(metadata: dict[str, Any]) -> bool:
    """Refuse metadata that is too large or too deep; tell whether it may hold U+0000."""
    try:
        encoded = _ENCODER.encode(metadata)
    except RecursionError as error:
        raise Undecodable(Reason.OVERSIZE, "`$.metadata` is nested too deeply") from error
    if len(encoded) > MAX_METADATA_BYTES:
        raise Undecodable(
            Reason.OVERSIZE,
            f"`$.metadata` has {len(encoded)} bytes, the limit is {MAX_METADATA_BYTES}",
        )
    # Every level opens a bracket, so few brackets are shallow.
    brackets = encoded.count(b"{") + encoded.count(b"[")
    if brackets > MAX_METADATA_DEPTH and _is_deeper(metadata, MAX_METADATA_DEPTH):
        raise Undecodable(
            Reason.OVERSIZE, f"`$.metadata` has more than {MAX_METADATA_DEPTH} levels"
        )
    return b"\\u0000" in encoded


def _is_deeper(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    if levels == 0:
        return True
    children = value.values() if isinstance(value, dict) else value
    return any(_is_deeper(child, levels - 1) for child in children)


def _without_nuls(event: DocumentUpserted, limits: Limits) -> tuple[DocumentUpserted, int]:
    changes: dict[str, Any] = {}
    nuls = 0
    for field in ("text", "content_type", "metadata"):
        changes[field], count = _replace_nuls(getattr(event, field))
        nuls += count
    if nuls and limits.nul == "dead_letter":
        raise Undecodable(Reason.NUL_CHARACTER, f"U+0000 occurs {nuls} times")
    return msgspec.structs.replace(event, **changes), nuls


def _replace_nuls(value: Any) -> tuple[Any, int]:
    """Return a JSON value with U+FFFD for U+0000, also in keys, and how many there were."""
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd"), value.count("\x00")
    if isinstance(value, list):
        pairs = [_replace_nuls(item) for item in value]
        return [item for item, _ in pairs], sum(count for _, count in pairs)
    if isinstance(value, dict):
        keys, in_keys = _replace_nuls(list(value))
        values, in_values = _replace_nuls(list(value.values()))
        return dict(zip(keys, values, strict=True)), in_keys + in_values
    return value, 0
