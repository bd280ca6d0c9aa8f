"""
The events that upstream services publish, as they stand in the value of a Kafka record.

Unknown fields are ignored, so that a newer publisher can talk to an older worker. Bounds
hold when an event is decoded (`schemas.codec`), not when it is constructed. What a type
cannot say (bytes instead of characters, the size of metadata) is checked there too.

A change must keep every golden file (`tests/schemas/golden`) decodable: only add fields with
defaults; never change a type, never use a tag again.
"""

from datetime import datetime
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

MAX_VERSION = 2**63 - 1
MAX_NAME_BYTES = 512
MAX_CONTENT_TYPE_CHARACTERS = 255
MAX_METADATA_BYTES = 64 * 1024
MAX_METADATA_DEPTH = 64

Version = Annotated[
    int,
    Meta(
        ge=0,
        le=MAX_VERSION,
        description="Set by the source of truth: a row version, or its change time in "
        "microseconds. Of two versions of one document the higher one stands.",
    ),
]
Name = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_NAME_BYTES,
        description=f"At most {MAX_NAME_BYTES} bytes of UTF-8, without U+0000.",
        # In the JSON Schema only: the codec searches for U+0000 without a regular expression.
        extra_json_schema={"pattern": "^[^\\u0000]*$"},
    ),
]
Text = Annotated[
    str,
    Meta(description="What is chunked and embedded. Empty: the document has no chunks."),
]
ContentType = Annotated[
    str,
    Meta(
        max_length=MAX_CONTENT_TYPE_CHARACTERS,
        description="A media type, for example text/markdown; it may choose how to chunk.",
    ),
]
Metadata = Annotated[
    dict[str, Any],
    Meta(
        description=f"Stored as it is, for filters; at most {MAX_METADATA_BYTES} bytes of "
        f"JSON and {MAX_METADATA_DEPTH} levels.",
    ),
]
OccurredAt = Annotated[
    datetime,
    Meta(tz=True, description="When the change happened, RFC 3339 with an offset; for people."),
]


class DocumentUpserted(Struct, frozen=True, kw_only=True, tag_field="type", tag="upsert"):
    """A document has this text and metadata as of this version."""

    tenant: Name
    collection: Name
    id: Name
    version: Version
    text: Text
    content_type: ContentType | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET
    occurred_at: OccurredAt | UnsetType = UNSET


class DocumentDeleted(Struct, frozen=True, kw_only=True, tag_field="type", tag="delete"):
    """A document is gone as of this version."""

    tenant: Name
    collection: Name
    id: Name
    version: Version
    occurred_at: OccurredAt | UnsetType = UNSET


class ScopeDeleted(Struct, frozen=True, kw_only=True, tag_field="type", tag="delete_scope"):
    """
    All documents of a tenant, or of its part of one collection, are gone as of this version.

    It reaches every document whose version is not higher, so versions must compare across
    documents: a clock, not a row counter.
    """

    tenant: Name
    version: Version
    collection: Name | UnsetType = UNSET
    occurred_at: OccurredAt | UnsetType = UNSET


class Tombstone(Struct, frozen=True, kw_only=True):
    """
    A record with a key and no value: a delete without a version.

    It beats every record before it in its partition, whatever the version (a barrier).
    Never written as JSON; Kafka's own way to delete from a compacted topic.
    """

    tenant: str
    collection: str
    id: str


JsonEvent = DocumentUpserted | DocumentDeleted | ScopeDeleted
Event = JsonEvent | Tombstone
