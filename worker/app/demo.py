"""
The command `demo`: the whole product on one machine, with nothing set up, and the proof.

Starts real Kafka, real PostgreSQL with pgvector and a real embedding model as child processes
and three ordinary workers; publishes the documentation of Python's standard library, changes
it, searches it, mends a dead letter, and books the fate of every event. Ends everything it
started.
"""

import asyncio
import contextlib
import logging
import random
import shlex
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp

from worker.adapters.pg_catalog import PostgresCatalog
from worker.adapters.pg_search import Search
from worker.app import jobs
from worker.app.demo_letters import Explain, work_letters
from worker.app.demo_screen import Screen
from worker.config import DatabaseOptions, EmbeddingOptions, KafkaOptions, Settings
from worker.core.model import ChunkingOptions, Collection, Vector
from worker.core.vector_index import VectorIndex
from worker.embedded.demo import corpus, known_items, ledger, upstream
from worker.embedded.demo.known_items import Place, Stored
from worker.embedded.demo.servers import Servers
from worker.embedded.wordllama_model import NAME, WordLlamaModel
from worker.ops import search as searching

COLLECTION = "docs"
DIMENSIONS = 256
CHUNK_CHARACTERS = 700
PARTITIONS = 8
WORKERS = 3
SEED = 20_261_123
POLL_SECONDS = 0.25
SEARCHES = (
    (corpus.MODULES, "wait for several coroutines at once and cancel the rest"),
    (corpus.OBJECTS, "compress data with a good ratio"),
    (corpus.LANGUAGE, "what happens when an exception is raised inside a with statement"),
)


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """How the demonstration runs; `data_dir` None: a folder that is removed at the end."""

    data_dir: Path | None = None
    keep_running: bool = False
    jars: Path | None = None
    kafka: str | None = None


async def demo(options: DemoOptions, explain: Explain) -> int:
    """
    Run the demonstration; `explain` tells a dead letter in words.

    Returns 0 where the books balance, the search is exact and the mended letter arrives.
    """
    screen = Screen()
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="embedfleet-demo-") as temporary:
        servers = Servers(
            options.data_dir or Path(temporary), jars=options.jars, kafka=options.kafka
        )
        try:
            async with _Demo(screen, servers).prepared() as story:
                code = await story.tell(explain)
                if options.keep_running:
                    await story.stay()
            return code
        finally:
            # A terminal that was closed takes no more words, and the servers end all the same.
            with contextlib.suppress(OSError), screen.status("stopping everything"):
                servers.stop()
            servers.stop()


class _Demo:
    """The story, in order; each part leaves what the next one needs."""

    def __init__(self, screen: Screen, servers: Servers) -> None:
        self._screen = screen
        self._servers = servers
        self._chance = random.Random(SEED)  # noqa: S311 - a story, no secret
        self._published = 0

    @asynccontextmanager
    async def prepared(self) -> AsyncIterator["_Demo"]:
        """Start the servers, create tables and topics, and connect."""
        screen = self._screen
        screen.headline("Starting Kafka, PostgreSQL with pgvector, and an embedding server")
        with screen.status("starting"):
            reading = asyncio.to_thread(corpus.read_corpus)
            documents, _ = await _both(reading, asyncio.to_thread(self._servers.start))
        self.settings = self._settings()
        await jobs.migrate_up(self.settings)
        await jobs.create_topics(
            self.settings,
            partitions=PARTITIONS,
            replication=1,
            cleanup="delete",
            retention_hours=None,
        )
        await jobs.create_collection(self.settings, _collection())
        self._documents, self._questions = known_items.hold_back(documents, self._chance)
        database = self.settings.database
        self._sql = await ledger.connect(database.url, database.schema)
        try:
            yield self
        finally:
            await self._sql.close()

    async def tell(self, explain: Explain) -> int:
        """Tell the story from the first document to the ledger."""
        first = await self._publish_all()
        changed = await self._change()
        self._screen.costs([first, *changed])
        is_exact = await self._ask()
        arrives = await work_letters(self._screen, self.settings, explain, self._one_more)
        balances = await self._balance()
        return 0 if is_exact and arrives and balances else 1

    async def stay(self) -> None:
        """Leave everything up until Ctrl-C."""
        self._screen.headline("Everything keeps running; Ctrl-C ends it")
        self._screen.line(f"Kafka        {self.settings.kafka.bootstrap_servers}")
        self._screen.line(f"PostgreSQL   {self.settings.database.url}")
        self._screen.line(f"Embeddings   {self.settings.embedding.url}")
        self._screen.line("For other commands:")
        for export in self._exports():
            self._screen.copied(export)
        await asyncio.get_running_loop().create_future()

    async def _publish_all(self) -> tuple[str, int, int, int]:
        count = len(self._documents)
        self._screen.headline(
            f"Publishing {count:,} documents of Python's own documentation to {PARTITIONS} "
            f"partitions; {WORKERS} workers embed and store them"
        )
        batch = list(upstream.events(self._documents, COLLECTION, version=1))
        workers = asyncio.to_thread(self._servers.start_workers, WORKERS, self._environment())
        await _both(self._flow(batch), workers)
        return "first publication", count, await self._embedded(), 0

    async def _change(self) -> list[tuple[str, int, int, int]]:
        changes = upstream.plan_changes(self._documents, self._chance)
        self._screen.headline(
            f"Editing one sentence in each of {len(changes.edited)} documents, deleting "
            f"{len(changes.deleted)}, repeating {len(changes.repeated)} unchanged ones, "
            f"and sending {len(upstream.MALFORMED)} malformed records"
        )
        before = await self._embedded()
        await self._flow(list(upstream.events(changes.edited, COLLECTION, version=2)))
        edited = await self._embedded()
        chunks = await self._chunks(changes.edited)
        await self._flow(
            [
                *upstream.deletions(changes.deleted, COLLECTION),
                *upstream.events(changes.repeated, COLLECTION, version=1),
            ]
        )
        kafka = self.settings.kafka
        await upstream.publish_mistakes(kafka.bootstrap_servers, kafka.topics[0])
        self._published += len(upstream.MALFORMED)
        await self._settled()
        repeated = await self._embedded() - edited
        kept = await self._chunks(changes.repeated)
        return [
            (
                "one sentence edited",
                len(changes.edited),
                edited - before,
                chunks - edited + before,
            ),
            ("published again, unchanged", len(changes.repeated), repeated, kept - repeated),
        ]

    async def _flow(self, batch: Sequence[Any]) -> None:
        """Publish events and watch them until all are settled."""
        kafka = self.settings.kafka
        base, began = self._published, time.monotonic()

        def acknowledged() -> None:
            self._published += 1

        with self._screen.flow(len(batch)) as flow:

            async def watch() -> None:
                settled = 0
                while settled < len(batch):
                    await asyncio.sleep(POLL_SECONDS)
                    settled = await self._done() - base
                    flow.show(self._published - base, settled, time.monotonic() - began)

            sending = upstream.publish(
                kafka.bootstrap_servers, kafka.topics[0], batch, acknowledged
            )
            await _both(sending, watch())

    async def _one_more(self) -> None:
        """Wait for a record that somebody else has published."""
        self._published += 1
        await self._settled()

    async def _settled(self) -> None:
        while await self._done() < self._published:  # noqa: ASYNC110 - another process's work
            await asyncio.sleep(POLL_SECONDS)

    async def _done(self) -> int:
        done = await self._sql.fetchval("select sum(next_offset) from partition_progress")
        return int(done or 0)

    async def _embedded(self) -> int:
        """Ask the provider how many texts it has embedded."""
        url = self.settings.embedding.url.removesuffix("/v1") + "/stats"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            stats = await response.json()
        return int(stats["inputs"])

    async def _chunks(self, documents: Sequence[corpus.Document]) -> int:
        names = [f"{one.tenant}/{one.id}" for one in documents]
        count = await self._sql.fetchval(
            f'select count(*) from "{COLLECTION}_chunks" '  # noqa: S608 - our own constant
            "where tenant || '/' || document_id = any($1::text[])",
            names,
        )
        return int(count)

    async def _ask(self) -> bool:
        self._screen.headline(
            f"Asking for {len(self._questions)} sentences that were held back from the texts"
        )
        async with jobs.opened(self.settings.database) as database:
            collection = await PostgresCatalog(database).collection(COLLECTION)
            assert collection is not None
            model = await asyncio.to_thread(WordLlamaModel)
            words = [question.text for question in self._questions]
            vectors = (await asyncio.to_thread(model.embed, words)).vectors
            search = Search(database)
            found = [
                [
                    Place(hit.document_id, hit.seq)
                    for hit in await search.nearest(
                        collection, question.tenant, Vector(vector.tobytes()), 10
                    )
                ]
                for question, vector in zip(self._questions, vectors, strict=True)
            ]
            exact = await self._exactly(model, vectors)
        shares = known_items.hits(found, self._questions)
        for depth, share in shares.items():
            self._screen.line(f"the document is among the first {depth:2}: {share:4.0%}")
        same = known_items.agreement(found, exact)
        self._screen.line(f"the same as an exact search: {same:.1%}")
        await self._show_searches()
        return same >= known_items.LEAST_AGREEMENT

    async def _exactly(self, model: WordLlamaModel, vectors: Any) -> list[list[Place]]:
        stored = {tenant: await self._stored(model, tenant) for tenant in corpus.TENANTS}
        return [
            stored[question.tenant].nearest(vector, 10)
            for question, vector in zip(self._questions, vectors, strict=True)
        ]

    async def _stored(self, model: WordLlamaModel, tenant: str) -> Stored:
        rows = await self._sql.fetch(
            f'select document_id, seq, content from "{COLLECTION}_chunks" '  # noqa: S608
            "where tenant = $1 order by document_id, seq",
            tenant,
        )
        texts = [row["content"] for row in rows]
        vectors = (await asyncio.to_thread(model.embed, texts)).vectors
        return Stored([Place(row["document_id"], row["seq"]) for row in rows], vectors)

    async def _show_searches(self) -> None:
        self._screen.headline("Three searches (`embedfleet search`)")
        for tenant, words in SEARCHES:
            query = searching.Query(words, COLLECTION, tenant, 3)
            self._screen.found(words, tenant, await jobs.search(self.settings, query))

    async def _balance(self) -> bool:
        self._screen.headline(
            "Where is every event now? Topic, table and dead letters compared"
        )
        kafka = self.settings.kafka
        sides = ledger.Sides(
            kafka.bootstrap_servers,
            kafka.topics[0],
            kafka.dead_letter_topic,
            self._sql,
            f"{COLLECTION}_chunks",
        )
        books = await ledger.balance(sides, published=self._published)
        self._screen.ledger(books)
        verdict = "the books balance" if books.balances else "THE BOOKS DO NOT BALANCE"
        self._screen.line(f"{len(books.lost)} lost; {verdict}")
        return books.balances

    def _settings(self) -> Settings:
        servers = self._servers
        name = f"embedfleet-demo-{uuid4().hex[:8]}"  # a broker of others has other topics too
        return Settings(
            kafka=KafkaOptions(
                bootstrap_servers=servers.bootstrap_servers,
                topics=(name,),
                dead_letter_topic=f"{name}.dead-letters",
                group=name,
            ),
            database=DatabaseOptions(url=servers.postgres.url),
            embedding=EmbeddingOptions(url=servers.embeddings.url, api_key_variable=None),
        )

    def _environment(self) -> dict[str, str]:
        kafka = self.settings.kafka
        return {
            "EMBEDFLEET_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "EMBEDFLEET_KAFKA_TOPICS": kafka.topics[0],
            "EMBEDFLEET_KAFKA_DEAD_LETTER_TOPIC": kafka.dead_letter_topic,
            "EMBEDFLEET_KAFKA_GROUP": kafka.group,
            "EMBEDFLEET_KAFKA_COMMIT_INTERVAL_SECONDS": "0.2",
            "EMBEDFLEET_DATABASE_URL": self.settings.database.url,
            "EMBEDFLEET_EMBEDDING_URL": self.settings.embedding.url,
        }

    def _exports(self) -> list[str]:
        return [
            f"export {name}={shlex.quote(value)}" for name, value in self._environment().items()
        ]


def _collection() -> Collection:
    return Collection(
        id=0,
        name=COLLECTION,
        model=NAME,
        dimensions=DIMENSIONS,
        storage="halfvec",
        metric="cosine",
        chunking=ChunkingOptions("markdown", CHUNK_CHARACTERS),
        index=VectorIndex(build_at_rows=0),
    )


async def _both(first: Awaitable[Any], second: Awaitable[Any]) -> tuple[Any, Any]:
    """Wait for two things at once; the failure of one ends the other."""

    async def wait(awaitable: Awaitable[Any]) -> Any:
        return await awaitable

    async with asyncio.TaskGroup() as group:
        tasks = group.create_task(wait(first)), group.create_task(wait(second))
    return tasks[0].result(), tasks[1].result()
