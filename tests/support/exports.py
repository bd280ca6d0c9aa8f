"""Exports in the small: a subject, snapshots in memory, and what must come of them."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np

from worker.core.exports import Digest, Key, Manifest, Moment, Part, Rows, Subject

SUBJECT = Subject(
    database="1/postgres/embedfleet",
    collection="docs",
    collection_id=1,
    generation=1,
    model="model",
    embedding_space="",
    dimensions=3,
    storage="vector",
    metric="cosine",
    tenant=None,
    dtype="float32",
    metadata="jsonl",
    content=False,
)

Documents = Mapping[Key, tuple[int, int]]
"""Version and number of chunks of each document."""


def moment(number: int = 0) -> Moment:
    taken_at = datetime(2026, 11, 1, tzinfo=UTC)
    return Moment(taken_at=taken_at, xids=f"{number}:{number}:", wal_lsn="0/0", partitions=())


def vectors_of(key: Key, version: int, chunks: int) -> np.ndarray:
    numbers = sha256(repr((key, version)).encode()).digest()[: SUBJECT.dimensions]
    base = np.frombuffer(numbers, np.uint8).astype("<f4")
    return (
        np.stack([base + seq for seq in range(chunks)]) if chunks else np.empty((0, 3), "<f4")
    )


def lines_of(key: Key, version: int, chunks: int) -> list[dict]:
    tenant, document = key
    return [
        {"tenant": tenant, "document_id": document, "seq": seq, "version": version}
        for seq in range(chunks)
    ]


class MemorySnapshot:
    """Documents as they are at one moment, handed out some at a time."""

    def __init__(self, documents: Documents, *, number: int = 0, slice_documents: int = 2):
        self.moment = moment(number)
        self.documents = dict(sorted(documents.items()))
        self._slice_documents = slice_documents
        self.read_documents: list[Key] = []

    async def estimate(self) -> int | None:
        return None

    async def digest(self, part: Part) -> Digest:
        inside = [(key, self.documents[key][0]) for key in self._keys(part)]
        return Digest(len(inside), sum(hash(one) for one in inside) % 2**64)

    async def read(self, after, take, reached) -> None:
        keys = self._keys(Part(after, None))
        while len(keys) > self._slice_documents:
            some, keys = keys[: self._slice_documents], keys[self._slice_documents :]
            self._hand_out(some, take)
            await reached(some[-1])
        self._hand_out(keys, take)
        await reached(None)

    def _keys(self, part: Part) -> list[Key]:
        after, upto = part
        return [
            key
            for key in self.documents
            if (after is None or key > after) and (upto is None or key <= upto)
        ]

    def _hand_out(self, keys: list[Key], take) -> None:
        for key in keys:
            self.read_documents.append(key)
            version, chunks = self.documents[key]
            lines = b"".join(
                msgspec.json.encode(line) + b"\n" for line in lines_of(key, version, chunks)
            )
            vectors = vectors_of(key, version, chunks)
            take(Rows(chunks, int(chunks > 0), vectors.data, lines))


def check_holds(folder: Path, documents: Documents) -> Manifest:
    """See that a folder holds exactly these documents, and nothing but a finished export."""
    manifest = check_sums(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*manifest.files, "manifest.json"]
    )
    wanted = sorted(documents.items())
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    assert vectors.dtype == np.dtype("<f4")
    assert np.array_equal(
        vectors, np.concatenate([np.empty((0, 3)), *(vectors_of(k, *d) for k, d in wanted)])
    )
    lines = (folder / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        line for key, document in wanted for line in lines_of(key, *document)
    ]
    assert manifest.rows == len(lines)
    assert manifest.documents == sum(chunks > 0 for _, chunks in documents.values())
    return manifest


def check_sums(folder: Path) -> Manifest:
    """See that the files are those of the manifest."""
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes(), type=Manifest)
    for name, file in manifest.files.items():
        content = (folder / name).read_bytes()
        assert (len(content), sha256(content).hexdigest()) == (file.size_bytes, file.sha256)
    return manifest
