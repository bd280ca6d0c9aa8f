"""
What every peer does alike: read an event, cut a text, embed its chunks, store them.

Each step is written as the documentation of its library has it; `tuned` (`BENCH_TUNED=1`) takes
what costs least instead: uvloop, vectors as base64, numpy for their conversion. Nothing here
knows the worker. The table exists already: the benchmark makes it, with or without an index.
"""

import asyncio
import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import asyncpg
import numpy as np
import orjson
import uvloop
from pgvector.asyncpg import register_vector
from tenacity import (
    RetryCallState,
    retry,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

CHUNK_CHARACTERS = 2_000
CONCURRENCY = 100
"""Documents, and so requests, at once."""
CONNECTIONS = 20
TOO_MANY_REQUESTS = 429
SERVER_ERROR = 500


@dataclass(frozen=True)
class Options:
    """What the environment says."""

    kafka: str
    topic: str
    group: str
    postgres: str
    table: str
    provider: str
    model: str
    dimensions: int
    tuned: bool

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read them all; a missing one is an error."""
        return cls(
            kafka=environ["BENCH_KAFKA"],
            topic=environ["BENCH_TOPIC"],
            group=environ["BENCH_GROUP"],
            postgres=environ["BENCH_POSTGRES"],
            table=environ["BENCH_TABLE"],
            provider=environ["BENCH_PROVIDER"],
            model=environ["BENCH_MODEL"],
            dimensions=int(environ["BENCH_DIMENSIONS"]),
            tuned=environ.get("BENCH_TUNED") == "1",
        )


@dataclass(frozen=True)
class Event:
    """A document's text as of a version; None: it is deleted."""

    tenant: str
    doc_id: str
    version: int
    text: str | None


def event_of(value: Mapping[str, Any]) -> Event:
    """Return what the JSON of a record says."""
    return Event(value["tenant"], value["id"], value["version"], value.get("text"))


def chunks_of(text: str | None) -> list[str]:
    """Cut a text at white space into pieces of at most `CHUNK_CHARACTERS`."""
    chunks = []
    rest = (text or "").strip()
    while len(rest) > CHUNK_CHARACTERS:
        end = rest.rfind(" ", 1, CHUNK_CHARACTERS + 1)
        end = end if end > 0 else CHUNK_CHARACTERS
        chunks.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return [*chunks, rest] if rest else chunks


def _wait_seconds(state: RetryCallState) -> float:
    """Wait as long as the provider asks for, else for a time that doubles, and by chance."""
    assert state.outcome is not None
    headers = getattr(state.outcome.exception(), "headers", None) or {}
    if "Retry-After" in headers:
        return float(headers["Retry-After"])
    return wait_random_exponential(multiplier=0.5, max=30)(state)


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status == TOO_MANY_REQUESTS or error.status >= SERVER_ERROR
    return isinstance(error, (aiohttp.ClientError, TimeoutError))


Vector = Sequence[float] | np.ndarray


class Embedder:
    """The provider; `async with` opens and closes its connections."""

    def __init__(self, options: Options) -> None:
        self._url = f"{options.provider}/embeddings"
        self._question: dict[str, Any] = {"model": options.model}
        self._tuned = options.tuned
        if options.tuned:
            self._question["encoding_format"] = "base64"

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONCURRENCY),
            timeout=aiohttp.ClientTimeout(total=60),
            raise_for_status=True,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    @retry(
        retry=retry_if_exception(_may_pass),
        wait=_wait_seconds,
        stop=stop_after_attempt(6),
        reraise=True,
    )
    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        """Return one vector a text, in one request."""
        if not texts:
            return []
        question = {**self._question, "input": texts}
        if not self._tuned:
            async with self._session.post(self._url, json=question) as response:
                answer = await response.json()
            return [item["embedding"] for item in _ordered(answer, texts)]
        headers = {"Content-Type": "application/json"}
        body = orjson.dumps(question)
        async with self._session.post(self._url, data=body, headers=headers) as response:
            answer = orjson.loads(await response.read())
        return [
            np.frombuffer(base64.b64decode(item["embedding"]), "<f4")
            for item in _ordered(answer, texts)
        ]


def _ordered(answer: Mapping[str, Any], texts: Sequence[str]) -> list[dict[str, Any]]:
    items = sorted(answer["data"], key=lambda item: item["index"])
    if len(items) != len(texts):
        raise ValueError(f"{len(items)} vectors for {len(texts)} texts")
    return items


class Table:
    """The table of chunks; `async with` opens and closes its connections."""

    def __init__(self, options: Options) -> None:
        self._postgres = options.postgres
        self._upsert = (
            f"insert into {options.table}"
            " (tenant, doc_id, chunk_no, version, content, embedding)"
            " values ($1, $2, $3, $4, $5, $6) on conflict (doc_id, chunk_no) do update set"
            " tenant = excluded.tenant, version = excluded.version,"
            " content = excluded.content, embedding = excluded.embedding"
        )
        # Rows of a document are always locked in the same order, else two of its versions that
        # are stored at once would wait for each other.
        self._cut = (
            f"delete from {options.table} where doc_id = $1 and chunk_no = any(array("
            f"select chunk_no from {options.table} where doc_id = $1 and chunk_no >= $2"
            " order by chunk_no for update))"
        )

    async def __aenter__(self) -> Self:
        self._pool = await asyncpg.create_pool(
            self._postgres, min_size=1, max_size=CONNECTIONS, init=register_vector
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close()

    async def store(
        self, event: Event, chunks: Sequence[str], vectors: Sequence[Vector]
    ) -> None:
        """Let the table hold these chunks of the document and no others, in one transaction."""
        rows = [
            (event.tenant, event.doc_id, number, event.version, chunk, vector)
            for number, (chunk, vector) in enumerate(zip(chunks, vectors, strict=True))
        ]
        async with self._pool.acquire() as connection, connection.transaction():
            if rows:
                await connection.executemany(self._upsert, rows)
            await connection.execute(self._cut, event.doc_id, len(rows))


class Pipeline:
    """A document from its event to its rows: one request, one transaction."""

    def __init__(self, options: Options) -> None:
        self._embedder = Embedder(options)
        self._table = Table(options)

    async def __aenter__(self) -> Self:
        await self._embedder.__aenter__()
        await self._table.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._table.__aexit__(*_)
        await self._embedder.__aexit__(*_)

    async def process(self, event: Event) -> None:
        """Embed and store what an event says."""
        chunks = chunks_of(event.text)
        await self._table.store(event, chunks, await self._embedder.embed(chunks))

    async def process_all(self, lines: Iterable[Sequence[Event]]) -> None:
        """Process lines of events at once, the events of a line one after another."""
        slots = asyncio.Semaphore(CONCURRENCY)

        async def work(line: Sequence[Event]) -> None:
            async with slots:
                for event in line:
                    await self.process(event)

        async with asyncio.TaskGroup() as group:
            for line in lines:
                group.create_task(work(line))


def runner(options: Options) -> asyncio.Runner:
    """Return what runs coroutines, on uvloop where tuned."""
    return asyncio.Runner(loop_factory=uvloop.new_event_loop if options.tuned else None)
