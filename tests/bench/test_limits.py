"""What is measured alone is what a worker does: its events, its chunks, its rows."""

import json

import pytest

from tests.bench import limits, limits_postgres
from tests.bench.limits import Limit, documents
from worker.core.model import ChunkingOptions, Collection
from worker.embedded.scripted_provider import Pool

CHUNKING = ChunkingOptions("text", 40)
COLLECTION = Collection(
    id=0,
    name="articles",
    model="m",
    dimensions=12,
    storage="halfvec",
    metric="cosine",
    chunking=CHUNKING,
)
TEXT = "One paragraph of words.\n\nAnother paragraph of other words.\n\nThe last one."


def record(name, version, text=None):
    event = {"tenant": "t", "collection": "articles", "id": name, "version": version}
    event |= {"type": "delete"} if text is None else {"type": "upsert", "text": text}
    return f"t/articles/{name}".encode(), json.dumps(event).encode()


RECORDS = [record("a", 1, "old"), record("b", 1, TEXT), record("a", 2, TEXT), record("b", 2)]


def test_documents_are_the_newest_versions_of_those_that_are_not_deleted():
    (document,) = documents(RECORDS, CHUNKING)
    assert (document.work.document_key.id, document.work.rank.version) == ("a", 2)
    assert [chunk.content for chunk in document.chunks] == TEXT.split("\n\n")


def test_rows_hold_each_chunk_once_with_the_vector_of_its_content():
    pool = Pool(COLLECTION.dimensions)
    (document,) = documents(RECORDS, CHUNKING)
    found = limits_postgres.rows([document], COLLECTION, pool)
    assert [row[5] for row in found] == [chunk.content for chunk in document.chunks]
    assert [row[4] for row in found] == list(range(len(found)))
    for row in found:
        assert row[-1][4:] == pool.vector(row[5]).astype(">f2").tobytes()


def test_a_limit_is_told_a_unit():
    limit = Limit(units=2_000, cpu_seconds=0.01, seconds=0.5)
    assert (limit.cpu_us, limit.per_second) == (pytest.approx(5), 4_000)


def test_every_record_is_a_unit_of_cutting_and_every_text_of_decoding():
    assert limits.cut(RECORDS, CHUNKING).units == len(RECORDS)
    decoded = limits.decoded(COLLECTION, ["a", "b", "c"], Pool(12), inputs=2)
    assert decoded.units == 3
