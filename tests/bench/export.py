"""
How fast a collection is exported, of 384 dimensions, against a bare COPY of its vectors.

`python -m tests.bench.export`. A real PostgreSQL, the real command; the runs are interleaved,
and every vector of an export is compared with what readers of the view see. Prints each claim
with its figure; the exit code says whether all were reached.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import asyncpg
import numpy as np

from tests.bench.servers import POSTGRES_SETTINGS
from tests.support.exports import check_sums
from tests.support.postgres import drop_schema
from tests.support.servers import open_folder
from tests.support.store_changes import ARTICLES
from tests.support.verdicts import Verdict, lines
from worker.adapters.pg_catalog import PostgresCatalog
from worker.adapters.pg_client import Database
from worker.adapters.pg_documents import chunk_table
from worker.adapters.pg_export import ExportSnapshot
from worker.adapters.pg_migrations import Migrations
from worker.app.export_job import Request, export, subject_of
from worker.config import DatabaseOptions, Settings
from worker.core.exports import Part
from worker.core.model import Collection
from worker.embedded.postgres import EmbeddedPostgres

SCHEMA = "bench_export"
DIMENSIONS = 384
DOCUMENTS, CHUNKS = 40_000, 4
ROWS = DOCUMENTS * CHUNKS
QUARTER = "quarter"
"""A tenant that has a quarter of the documents."""
ROUNDS = 5

ROWS_PER_SECOND = 100_000
BARE_COPIES = 5
"""Beside a vector goes a line of JSON, in order, and both are written and summed up."""
COMPARED = 10
MEMORY = 1.25
"""What was read ahead waits up to a bound; how much it is depends on who is faster."""

# As workers leave them: a document's chunks together, documents in no order of their keys.
_DOCUMENTS = """
insert into document
select case when n % 4 = 0 then $2 else 'tenant' || n % 3 end, $1,
       encode(sha256(n::text::bytea), 'hex'), n, 'documents', 0, n, 0, 0,
       null, null, null, null, null, 1, false, 'hash', 'text/plain',
       jsonb_build_object('title', 'Document ' || n)
from generate_series(1, $3::int) n
"""
_CHUNKS = """
insert into {table}
select d.tenant, d.id, sha256((d.id || seq)::bytea), 0, seq, repeat('some words ', 100),
       seq * 1100, (seq + 1) * 1100, 'Chapter > Part ' || seq,
       (select array_agg(random()) from generate_series(1, {dimensions})
        where d.version + seq >= 0)::{storage}
from document d cross join generate_series(0, {chunks} - 1) seq
where d.collection = '{name}' order by d.version, seq
"""


class Run(NamedTuple):
    """Seconds that one export took, and a bare COPY of the same vectors beside it."""

    export_seconds: float
    copy_seconds: float


async def fill(database: Database, storage: str) -> Collection:
    """Make a collection with its documents."""
    settings = replace(ARTICLES, name=storage, dimensions=DIMENSIONS, storage=storage)
    collection = await PostgresCatalog(database).create(settings)
    table = chunk_table(collection.id, collection.generation)
    connection = await session(database.options)
    try:
        await connection.execute("set search_path to bench_export, public")
        await connection.fetch(_DOCUMENTS, storage, QUARTER, DOCUMENTS)
        query = _CHUNKS.format(
            table=table, dimensions=DIMENSIONS, storage=storage, chunks=CHUNKS, name=storage
        )
        await connection.execute(query)
        await connection.execute("vacuum analyze")
    finally:
        await connection.close()
    return collection


async def session(options: DatabaseOptions) -> asyncpg.Connection:
    return await asyncpg.connect(
        options.url, server_settings={"search_path": f"{options.schema}, public"}
    )


async def bare_copy(options: DatabaseOptions, collection: Collection) -> float:
    """Return how long a COPY of the vectors alone takes, of which nothing is kept."""
    connection = await session(options)

    async def forget(_data: bytes) -> None:
        pass

    try:
        table = chunk_table(collection.id, collection.generation)
        began = time.perf_counter()
        await connection.copy_from_query(
            f"select embedding from {table}", output=forget, format="binary"
        )
        return time.perf_counter() - began
    finally:
        await connection.close()


def measured(settings: Settings, collection: Collection, folder: Path) -> list[Run]:
    """Export and copy in turns, and look at what the exports hold."""
    runs = []
    request = Request(collection.name, None, "float32", "jsonl", content=False)
    for number in range(ROUNDS):
        copy_seconds = asyncio.run(bare_copy(settings.database, collection))
        out = folder / f"{collection.name}-{number}"
        began = time.perf_counter()
        export(settings, request, out, lambda _: None, force=False)
        runs.append(Run(time.perf_counter() - began, copy_seconds))
        if number == 0:
            asyncio.run(check(settings.database, collection, out))
        assert check_sums(out).rows == ROWS
        for path in [*out.iterdir()]:
            path.unlink()
    return runs


async def check(options: DatabaseOptions, collection: Collection, out: Path) -> None:
    """Compare every vector with what a reader of the view sees: a wrong export is none."""
    vectors = np.load(out / "vectors.npy", mmap_mode="r")
    assert vectors.shape == (ROWS, DIMENSIONS)
    connection, at = await session(options), 0
    try:
        async with connection.transaction():
            query = (
                f'select embedding::real[] from "{collection.name}_chunks"'
                " order by tenant, document_id, seq"
            )
            rows = await connection.cursor(query)
            while some := await rows.fetch(5_000):
                found = np.array([row[0] for row in some], np.float32)
                assert np.array_equal(found, vectors[at : at + len(some)]), at
                at += len(some)
    finally:
        await connection.close()
    assert at == ROWS


def speed(storage: str, runs: list[Run]) -> list[Verdict]:
    rates = sorted(ROWS / run.export_seconds for run in runs)
    ratios = sorted(run.export_seconds / run.copy_seconds for run in runs)
    return [
        Verdict(
            f"export, {storage}, {DIMENSIONS} dimensions: >= {ROWS_PER_SECOND:,} rows/s",
            f"{median(rates):,.0f} ({rates[0]:,.0f} to {rates[-1]:,.0f}), with the server on "
            f"{len(os.sched_getaffinity(0))} cores",
            median(rates) >= ROWS_PER_SECOND,
        ),
        Verdict(
            f"export, {storage}: time <= {BARE_COPIES}x that of a bare COPY of its vectors",
            f"{median(ratios):.1f}x ({ratios[0]:.1f} to {ratios[-1]:.1f})",
            median(ratios) <= BARE_COPIES,
        ),
    ]


async def comparing(settings: Settings, collection: Collection) -> Verdict:
    """Compare all documents with a snapshot, and read all of their rows."""
    request = Request(collection.name, None, "float32", "jsonl", content=False)
    _, subject = await subject_of(settings, request)
    ratios = []

    async def reached(_key: object) -> None:
        pass

    async with ExportSnapshot.open(settings.database, collection, subject) as snapshot:
        for _ in range(ROUNDS):
            began = time.perf_counter()
            assert (await snapshot.digest(Part(None, None))).documents == DOCUMENTS
            compared = time.perf_counter()
            await snapshot.read(None, lambda _: None, reached)
            ratios.append((time.perf_counter() - compared) / (compared - began))
    return Verdict(
        f"export that goes on: comparing costs <= 1/{COMPARED} of reading",
        f"1/{median(ratios):.0f} (1/{min(ratios):.0f} to 1/{max(ratios):.0f})",
        median(ratios) >= COMPARED,
    )


# Not of getrusage, which counts what the process was before it was this one.
_PEAK = """
import re, sys
from pathlib import Path
from worker.cli.root import main
assert main(sys.argv[1:]) == 0
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def memory(options: DatabaseOptions, folder: Path) -> Verdict:
    """Compare the memory that all rows take with what a quarter of them takes."""
    peaks = []
    for name, arguments in (("quarter", ("--tenant", QUARTER)), ("all", ())):
        words = ["export", "--collection", "vector", "--out", str(folder / name), *arguments]
        words += ["--database.url", options.url, "--database.schema", options.schema]
        run = subprocess.run(
            [sys.executable, "-c", _PEAK, *words], capture_output=True, text=True, check=True
        )
        peaks.append(int(run.stdout) / 1024)
    return Verdict(
        f"export, memory: all rows <= {MEMORY}x a quarter of them",
        f"{peaks[1]:.0f} MiB / {peaks[0]:.0f} MiB = {peaks[1] / peaks[0]:.2f}x",
        peaks[1] <= MEMORY * peaks[0],
    )


@contextmanager
def schema() -> Iterator[DatabaseOptions]:
    """A schema of its own on the server of this run."""
    with (
        open_folder() as folder,
        EmbeddedPostgres(
            folder / "postgres", durable=True, settings=POSTGRES_SETTINGS
        ) as server,
    ):
        options = DatabaseOptions(url=server.url, schema=SCHEMA, pool_min=1, pool_max=2)
        try:
            asyncio.run(Migrations(options).up())
            yield options
        finally:
            asyncio.run(drop_schema(server.url, SCHEMA))


async def filled(options: DatabaseOptions) -> list[Collection]:
    database = await Database.open(options)
    try:
        return [await fill(database, storage) for storage in ("halfvec", "vector")]
    finally:
        await database.close()


def measure() -> list[Verdict]:
    """Export collections of both storages, on a server of their own."""
    verdicts = []
    with schema() as options, tempfile.TemporaryDirectory() as name:
        settings, folder = Settings(database=options), Path(name)
        collections = asyncio.run(filled(options))
        for collection in collections:
            verdicts += speed(collection.name, measured(settings, collection, folder))
        verdicts.append(asyncio.run(comparing(settings, collections[0])))
        verdicts.append(memory(options, folder))
    return verdicts


def main() -> int:
    """Measure everything and print the table."""
    verdicts = measure()
    for line in lines(verdicts, ("reached", "NOT REACHED")):
        sys.stdout.write(line + "\n")
    return 0 if all(verdict.held for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
