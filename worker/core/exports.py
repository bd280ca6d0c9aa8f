"""
Exports: what one is of, how far it is, what it says at its end.

Rows are read in the order of their documents' keys, all in one snapshot. Each part that is
written down is named by a digest of its documents, so that a later run can tell in its own
snapshot whether they are still the same. Pure: values, and what is decided without the world.
"""

from datetime import datetime
from typing import Literal, NamedTuple

from msgspec import Struct

FORMAT_VERSION = 1

PART_BYTES = 128 * 2**20
"""About a second of work: what a kill costs at most, beside comparing what is there."""

Dtype = Literal["float32", "float16"]
RowFormat = Literal["jsonl", "parquet"]


class Subject(Struct, frozen=True, kw_only=True):
    """
    What an export is of: the same from its first run to its last.

    `database` names server, database and schema; `tenant` None: all of them.
    """

    format_version: int = FORMAT_VERSION
    database: str
    collection: str
    collection_id: int
    generation: int
    model: str
    embedding_space: str
    dimensions: int
    storage: str
    metric: str
    tenant: str | None
    dtype: Dtype
    metadata: RowFormat
    content: bool


class Rows(NamedTuple):
    """
    Some rows, as they are written: numbers of the export's dtype, and a line of JSON each.

    `documents` counts those whose first chunk is among them.
    """

    rows: int
    documents: int
    vectors: bytes | memoryview
    lines: bytes


Key = tuple[str, str]
"""Tenant and id of a document: the order of an export."""


class Part(NamedTuple):
    """Documents behind a key (None: from the first one) up to and with another (None: all)."""

    after: Key | None
    upto: Key | None


class Digest(NamedTuple):
    """Names documents as they are stored: how many, and the sum of their hashes."""

    documents: int
    hashes: int


class Checkpoint(Struct, frozen=True, kw_only=True):
    """A part that is written down; rows, documents and text bytes are those up to its end."""

    part: Part
    digest: Digest
    rows: int
    documents: int
    text_bytes: int


class PartitionPosition(Struct, frozen=True, kw_only=True):
    """Every record of the partition below `next_offset` has had its effect."""

    group: str
    topic: str
    partition: int
    incarnation: int
    next_offset: int


class Moment(Struct, frozen=True, kw_only=True):
    """
    The one moment that an export shows.

    `xids` are PostgreSQL's xmin:xmax:running; `wal_lsn` is where its log stood.
    """

    taken_at: datetime
    xids: str
    wal_lsn: str
    partitions: tuple[PartitionPosition, ...]


class ExportFile(Struct, frozen=True, kw_only=True):
    """A file of an export."""

    size_bytes: int
    sha256: str


class Manifest(Subject, frozen=True, kw_only=True):
    """
    What a finished export says of itself; written last, so that there is none before.

    `documents` are those that have rows; `files` are by their names.
    """

    rows: int
    documents: int
    snapshot: Moment
    files: dict[str, ExportFile]
    finished_at: datetime
    embedfleet: str


def objection(
    subject: Subject, unfinished: Subject | None, finished: Manifest | None
) -> str | None:
    """
    Say why an export must not begin where others are, without `--force`.

    An unfinished one of the same subject goes on, whatever it is about to replace.
    """
    if unfinished is not None:
        different = " and ".join(differences(unfinished, subject))
        return f"an unfinished export whose {different}" if different else None
    if finished is not None:
        moment = finished.snapshot.taken_at.isoformat(timespec="seconds")
        rows = f"{finished.rows:,} rows of {finished.collection!r}"
        return f"a finished export: {rows} as of {moment}"
    return None


def differences(one: Subject, other: Subject) -> list[str]:
    """Say in which settings two exports differ, none where one may go on with the other."""
    return [
        f"{name} is {_said(getattr(one, name))}, not {_said(getattr(other, name))}"
        for name in Subject.__struct_fields__
        if getattr(one, name) != getattr(other, name)
    ]


def _said(value: object) -> object:
    # Of what an export may be limited to, only the tenant can be left out.
    return "any" if value is None else value
