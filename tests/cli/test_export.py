"""`embedfleet export` as a user runs it, on a real PostgreSQL."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.support.exports import check_sums
from tests.support.provider import vector_of
from tests.support.store_changes import key, upsert
from worker.adapters.pg_catalog import PostgresCatalog
from worker.adapters.pg_claims import PostgresClaims
from worker.adapters.pg_client import Database
from worker.adapters.pgvector_store import PgvectorStore
from worker.core.model import Base, Partition, Vector
from worker.ports import Query, Verdict, Write

ROOT = Path(__file__).parents[2]
CREATE = ("collections", "create", "docs", "--model", "m", "--dimensions", "8")
EXPORT = ("export", "--collection", "docs", "--out", "out")
TENANTS, DOCUMENTS, CHUNKS = ("acme", "other"), 10, 2
ROWS = len(TENANTS) * DOCUMENTS * CHUNKS


async def stored(database: Database, *, version: int = 1, only: str | None = None) -> None:
    """Documents of two chunks each, of two tenants; written over where they are there."""
    store, claims = PgvectorStore(database), PostgresClaims(database)
    collection = await PostgresCatalog(database).collection("docs")
    claim = await claims.claim("g", Partition("documents", 0), "owner")
    writes = []
    for tenant in TENANTS:
        for number in range(DOCUMENTS):
            name = f"{number}"
            if only is not None and only != f"{tenant}/{name}":
                continue
            texts = [f"{tenant} {name} {version} {chunk}" for chunk in range(CHUNKS)]
            of = key(name, tenant=tenant, collection="docs")
            base = (await store.read([Query(of, "g")]))[0] if only else Base()
            change = upsert(
                collection, base, version=version, offset=number, texts=texts, of=of
            )
            vectors = {
                one.id: Vector(vector_of(one.content, "m", 8).tobytes())
                for one in change.insert
            }
            writes.append(Write(change, claim, vectors))
    assert set(await store.apply(writes)) == {Verdict.APPLIED}


@pytest.fixture
async def docs(migrated, embedfleet_beside):
    """A collection with some documents."""
    assert (await embedfleet_beside(*CREATE)).code == 0
    await stored(migrated)
    return migrated


def lines(folder: str) -> list[dict]:
    return [json.loads(line) for line in Path(folder, "rows.jsonl").read_text().splitlines()]


def names(folder: str) -> set[str]:
    """What is in a folder, nothing where there is none."""
    return {path.name for path in Path().glob(f"{folder}/*")}


async def check_shows(database: Database, folder: str = "out") -> list[dict]:
    """See that an export is what readers see now, row by row."""
    manifest = check_sums(Path(folder))
    vectors = np.load(Path(folder, "vectors.npy"), mmap_mode="r")
    rows = lines(folder)
    async with database.connection() as connection:
        seen = await connection.fetch(
            "select tenant, document_id, seq, version, embedding::text from docs_chunks"
            " order by tenant, document_id, seq"
        )
    columns = ("tenant", "document_id", "seq", "version")
    found = [tuple(row[column] for column in columns) for row in rows]
    assert found == [tuple(row)[:4] for row in seen]
    stored_vectors = [json.loads(row["embedding"]) for row in seen]
    assert np.array_equal(vectors, np.float32(stored_vectors).reshape(-1, 8))
    assert (manifest.rows, len(vectors)) == (len(rows), len(seen))
    return rows


@pytest.mark.real
async def test_an_export_is_what_readers_see_and_numpy_maps_it(docs, embedfleet_beside):
    ended = await embedfleet_beside(*EXPORT)
    assert (ended.code, ended.out) == (0, "")
    *progress, last = ended.err.splitlines()
    assert progress == ["docs: reading 40 rows so far", "docs: computing checksums 100%"]
    assert last.startswith("40 rows of 20 documents in ")
    assert last.endswith(": vectors.npy and rows.jsonl in out")
    rows = await check_shows(docs)
    assert "content" not in rows[0]
    assert names("out") == {"vectors.npy", "rows.jsonl", "manifest.json"}
    vectors = np.load("out/vectors.npy", mmap_mode="r")
    assert isinstance(vectors, np.memmap)
    assert (vectors.dtype, vectors.shape) == (np.float32, (ROWS, 8))
    wanted = vector_of("acme 3 1 1", "m", 8).astype("<f2")
    at = rows.index(
        next(r for r in rows if (r["document_id"], r["seq"], r["tenant"]) == ("3", 1, "acme"))
    )
    assert np.array_equal(vectors[at], wanted)


@pytest.mark.real
async def test_its_manifest_says_what_it_is_of_and_which_moment_it_shows(
    docs, embedfleet_beside
):
    claims = PostgresClaims(docs)
    claim = await claims.claim("g", Partition("documents", 0), "owner")
    await claims.begin(claim, 5)
    ended = await embedfleet_beside(*EXPORT, "--tenant", "acme", "--json")
    manifest = msgspec.json.decode(msgspec.json.encode(check_sums(Path("out"))))
    assert (ended.code, ended.json["manifest"]) == (0, manifest)
    assert ended.err == "docs: reading 20 rows so far\ndocs: computing checksums 100%\n"
    assert (ended.json["folder"], ended.json["kept_rows"]) == ("out", 0)
    known = {
        "format_version": 1,
        "collection": "docs",
        "model": "m",
        "dimensions": 8,
        "storage": "halfvec",
        "metric": "cosine",
        "tenant": "acme",
        "dtype": "float32",
        "rows": 20,
        "documents": 10,
    }
    assert manifest.items() >= known.items()
    assert manifest["database"] == await docs.name()
    assert manifest["snapshot"]["partitions"] == [
        {
            "group": "g",
            "topic": "documents",
            "partition": 0,
            "incarnation": 0,
            "next_offset": 5,
        }
    ]


@pytest.mark.real
async def test_halves_take_half_the_room_and_lose_nothing(docs, embedfleet_beside):
    await embedfleet_beside(*EXPORT)
    await embedfleet_beside(*EXPORT[:-1], "halves", "--dtype", "float16", "--content")
    singles = np.load("out/vectors.npy", mmap_mode="r")
    halves = np.load("halves/vectors.npy", mmap_mode="r")
    assert halves.dtype == np.float16
    assert np.array_equal(singles, halves)
    rows = await check_shows(docs, "halves")
    assert rows[0]["content"] == "acme 0 1 0"


@pytest.mark.real
async def test_rows_as_parquet_are_the_rows_with_metadata_as_text(docs, embedfleet_beside):
    from pyarrow import parquet

    async with docs.connection() as connection:
        await connection.execute(
            """update document set metadata = '{"n": [1, {}]}',
            occurred_at = '2026-11-01 12:00Z' where tenant = 'acme'"""
        )
    await embedfleet_beside(*EXPORT, "--content")
    ended = await embedfleet_beside(
        *EXPORT[:-1], "parquet", "--content", "--metadata", "parquet"
    )
    assert ended.code == 0, ended.err
    manifest = check_sums(Path("parquet"))
    assert sorted(manifest.files) == ["rows.parquet", "vectors.npy"]
    rows = parquet.read_table("parquet/rows.parquet").to_pylist()
    for row, line in zip(rows, lines("out"), strict=True):
        assert row.keys() == line.keys()
        assert json.loads(row.pop("metadata") or "null") == line.pop("metadata")
        for name in ("occurred_at", "stored_at"):
            moment, text = row.pop(name), line.pop(name)
            assert moment == (text and datetime.fromisoformat(text))
        assert row == line


@pytest.mark.real
async def test_another_export_of_other_rows_takes_the_place_only_with_force(
    docs, embedfleet_beside
):
    await embedfleet_beside(*EXPORT, "--metadata", "parquet")
    refused = await embedfleet_beside(*EXPORT)
    assert refused.code == 2
    assert "out holds a finished export: 40 rows of 'docs' as of " in refused.err
    assert refused.err.endswith("; --force replaces it\n")
    assert (await embedfleet_beside(*EXPORT, "--force")).code == 0
    assert "rows.parquet" not in names("out")
    await check_shows(docs)


@pytest.mark.real
async def test_a_collection_without_documents_is_an_export_without_rows(
    migrated, embedfleet_beside
):
    await embedfleet_beside(*CREATE)
    ended = await embedfleet_beside(*EXPORT)
    assert ended.code == 0
    assert ended.err.splitlines()[-1].startswith("0 rows of 0 documents in")
    assert "tenant" not in ended.err
    assert np.load("out/vectors.npy", mmap_mode="r").shape == (0, 8)
    await check_shows(migrated)


@pytest.mark.real
async def test_a_tenant_that_has_nothing_may_be_a_slip_and_is_named(docs, embedfleet_beside):
    ended = await embedfleet_beside(*EXPORT, "--tenant", "acne")
    assert ended.code == 0
    *_, named, last = ended.err.splitlines()
    assert named == "there is nothing of a tenant 'acne' in 'docs'"
    assert last.startswith("0 rows of 0 documents in")


@pytest.mark.real
async def test_a_collection_that_is_not_there_is_told_and_no_folder_is_made(
    docs, embedfleet_beside
):
    ended = await embedfleet_beside("export", "--collection", "dogs", "--out", "out")
    assert (ended.code, "there are: docs" in ended.err) == (2, True)
    assert names("out") == set()


# ---- ended before its time ----


async def ended_by(name: str, writes: int, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.support.dying_export", name, str(writes)]
    return await asyncio.to_thread(
        subprocess.run,
        [*command, *EXPORT, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


@pytest.fixture
def small_parts(monkeypatch):
    """As in the process that was ended."""
    from tests.support.dying_export import ROWS_OF_A_SLICE
    from worker.adapters import export_folder, pg_export

    monkeypatch.setattr(pg_export, "SLICE_BYTES", ROWS_OF_A_SLICE * 600)
    monkeypatch.setattr(export_folder, "PART_BYTES", 1)


@pytest.mark.real
async def test_an_export_that_was_killed_goes_on_where_it_was(
    docs, embedfleet_beside, small_parts
):
    first, second = await ended_by("SIGKILL", 4), await ended_by("SIGKILL", 3)
    assert first.returncode == second.returncode == -signal.SIGKILL
    assert names("out") == {"unfinished"}
    ended = await embedfleet_beside(*EXPORT, "--json")
    assert ended.code == 0, ended.err
    kept, rows = ended.json["kept_rows"], await check_shows(docs)
    assert 0 < kept < len(rows) == ROWS
    whole = await embedfleet_beside(*EXPORT[:-1], "whole", "--json")
    assert whole.json["manifest"]["files"] == ended.json["manifest"]["files"]


@pytest.mark.real
async def test_what_was_changed_after_the_kill_is_in_the_export(
    docs, embedfleet_beside, small_parts
):
    await ended_by("SIGKILL", 6)
    await stored(docs, version=2, only="acme/3")
    ended = await embedfleet_beside(*EXPORT)
    assert "rows that were there" in ended.err
    rows = await check_shows(docs)
    assert [row["version"] for row in rows if row["document_id"] == "3"] == [2, 2, 1, 1]


@pytest.mark.real
async def test_ctrl_c_is_130_and_says_that_it_goes_on(docs, embedfleet_beside, small_parts):
    ended = await ended_by("SIGINT", 4)
    assert (ended.returncode, ended.stdout) == (130, "")
    *progress, last = ended.stderr.splitlines()
    assert last == "ended; what was written down stays, and the same command goes on from there"
    assert [line.partition(" rows")[0][:-1] for line in progress] == ["docs: reading "]
    again = await embedfleet_beside(*EXPORT, "--json")
    assert (again.code, again.json["kept_rows"] > 0) == (0, True)
    await check_shows(docs)


@pytest.mark.real
async def test_another_command_does_not_go_on_with_it(docs, embedfleet_beside, small_parts):
    await ended_by("SIGKILL", 4)
    refused = await embedfleet_beside(*EXPORT, "--dtype", "float16", "--content")
    assert refused.code == 2
    assert refused.err == (
        "embedfleet: out holds an unfinished export whose dtype is float32, not float16 and "
        "content is False, not True; --force replaces it\n"
    )
    await embedfleet_beside(
        "collections", "create", "dogs", "--model", "m", "--dimensions", "8"
    )
    dogs = await embedfleet_beside("export", "--collection", "dogs", "--out", "out")
    assert (dogs.code, "collection is docs, not dogs" in dogs.err) == (2, True)
    assert (await embedfleet_beside(*EXPORT, "--dtype", "float16", "--force")).code == 0
    await check_shows(docs)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "words"),
    [("ENOSPC", "No space left on device"), ("EDQUOT", "Disk quota exceeded")],
)
async def test_a_full_disk_is_told_and_the_export_goes_on_when_there_is_room(
    name, words, docs, embedfleet_beside, small_parts
):
    ended = await ended_by(name, 4)
    assert (ended.returncode, ended.stdout) == (1, "")
    reading, *said = ended.stderr.splitlines()
    assert reading.startswith("docs: reading ")
    assert said == [
        "what was written down stays: make room, and the same command goes on",
        f"embedfleet: cannot write: {words}",
    ]
    again = await embedfleet_beside(*EXPORT, "--json")
    assert (again.code, again.json["kept_rows"] > 0) == (0, True)
    await check_shows(docs)


@pytest.mark.real
async def test_a_lost_connection_is_told_and_the_export_goes_on(
    docs, embedfleet_beside, small_parts
):
    ended = await ended_by("LOST", 4)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.splitlines()[1:] == [
        "ended; what was written down stays, and the same command goes on from there",
        "embedfleet: PostgreSQL has ended the connection (`embedfleet doctor` looks closer)",
    ]
    again = await embedfleet_beside(*EXPORT, "--json")
    assert (again.code, again.json["kept_rows"] > 0) == (0, True)
    await check_shows(docs)


# ---- without a server ----


def test_parquet_without_its_library_says_what_to_install(embedfleet, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    ended = embedfleet(*EXPORT, "--metadata", "parquet")
    assert (ended.code, ended.err) == (
        2,
        "embedfleet: --metadata parquet needs pyarrow: pip install 'embedfleet[parquet]'\n",
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("export", "--out", "out"), "--collection requires"),
        (("export", "--collection", "docs"), "--out requires"),
        ((*EXPORT, "--dtype", "float64"), 'Choose from: "float32", "float16"'),
        ((*EXPORT, "--metadata", "csv"), 'Choose from: "jsonl", "parquet"'),
        ((*EXPORT, "--metdata", "parquet"), "--metadata"),
        ((*EXPORT, "more"), "one argument too many"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments, words, embedfleet):
    ended = embedfleet(*arguments)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert words in ended.err


def test_no_server_is_one_sentence_and_no_folder_is_made(embedfleet, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/nowhere")
    ended = embedfleet(*EXPORT)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "cannot be reached" in ended.err
    assert names("out") == set()
