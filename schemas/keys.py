"""
The keys of records: which document, or which scope, a record is about.

A key is `tenant/collection/id`, or `tenant[/collection]` for a scope; each part is UTF-8,
percent-encoded (RFC 3986), so that a slash inside a name is `%2F`. One document has one key,
and so one partition, as long as all producers use one partitioner.
"""

import re
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from .events import MAX_NAME_BYTES

_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_DOCUMENT_PARTS = 3


class InvalidKey(ValueError):
    """The key names neither a document nor a scope."""


class DocumentName(NamedTuple):
    """What names a document."""

    tenant: str
    collection: str
    id: str


class ScopeName(NamedTuple):
    """What names a scope: a tenant, or its part of one collection."""

    tenant: str
    collection: str | None


def encode_key(tenant: str, collection: str, id: str) -> bytes:  # noqa: A002 the contract's word
    """Return the key of a document's records."""
    return b"/".join(map(_encode_part, (tenant, collection, id)))


def encode_scope_key(tenant: str, collection: str | None) -> bytes:
    """Return the key of a scope's records."""
    parts = (tenant,) if collection is None else (tenant, collection)
    return b"/".join(map(_encode_part, parts))


def decode_key(key: bytes) -> DocumentName | ScopeName:
    """
    Return what a key names: three parts are a document, one or two a scope.

    Raises:
        InvalidKey: it is no key of ours; the message does not repeat it.
    """
    parts = key.split(b"/")
    if len(parts) > _DOCUMENT_PARTS:
        raise InvalidKey(f"the key has {len(parts)} parts")
    names = [_decode_part(part) for part in parts]
    if len(names) == _DOCUMENT_PARTS:
        return DocumentName(*names)
    return ScopeName(names[0], names[1] if len(names) > 1 else None)


def _encode_part(name: str) -> bytes:
    if not name:
        raise InvalidKey("a part of the key is empty")
    return quote(name, safe="").encode("ascii")


def _decode_part(part: bytes) -> str:
    if not part:
        raise InvalidKey("a part of the key is empty")
    if _BROKEN_ESCAPE.search(part):
        raise InvalidKey("the key has a percent sign that starts no escape")
    name = unquote_to_bytes(part)
    if len(name) > MAX_NAME_BYTES:
        raise InvalidKey(f"a part of the key is longer than {MAX_NAME_BYTES} bytes")
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidKey("the key is not UTF-8") from error
