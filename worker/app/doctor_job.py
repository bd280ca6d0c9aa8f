"""The one-shot job `doctor` put together: which checks there are, and in which chains."""

from collections.abc import Callable
from functools import partial

from worker.adapters.kafka_probe import probe
from worker.adapters.kafka_topics import TopicDescription, Topics
from worker.adapters.pg_catalog import PostgresCatalog
from worker.adapters.pg_facts import server_facts
from worker.adapters.pg_indexes import PostgresIndexes
from worker.adapters.pg_migrations import Migrations
from worker.app.jobs import embedding, opened
from worker.config import DatabaseOptions, KafkaOptions, Settings
from worker.core.model import Collection
from worker.errors import PermanentError, ProviderUnavailable
from worker.ops import verdicts
from worker.ops.doctor import Check, Finding, Status, examine
from worker.ports import Embedder, EmbeddingRequest

LIMIT_SECONDS = 15.0
PROBE_SECONDS = 15.0  # of one broker: three steps of 5 s
PROBE_TEXT = "ping"


async def doctor(settings: Settings, seen: Callable[[Finding], object]) -> list[Finding]:
    """Look at everything; `seen` is told of each finding at once."""
    brokers = len(settings.kafka.bootstrap_servers.split(","))
    database = _Database(settings.database)
    kafka = [
        Check("kafka", lambda: _probe(settings.kafka), PROBE_SECONDS * brokers, is_gate=True),
        Check("topics", lambda: _topics(settings.kafka), LIMIT_SECONDS),
    ]
    store = [
        Check(
            "database",
            database.server,
            LIMIT_SECONDS,
            "see database.url; is it running?",
            refused_hint="it is running: see user, password and name of the database in "
            "database.url, database.password_file or database.password_variable",
        ),
        Check("schema", database.schema, LIMIT_SECONDS, is_gate=True),
        Check("collections", database.look_for_collections, LIMIT_SECONDS),
    ]
    found = await examine(kafka, seen=seen) + await examine(store, seen=seen)
    async with embedding(settings) as embedder:
        provider = [
            Check(f"collection {one.name}", partial(_embeds, embedder, one), LIMIT_SECONDS)
            for one in database.collections
        ]
        return found + await examine(provider, seen=seen)


async def _probe(options: KafkaOptions) -> list[Finding]:
    return verdicts.brokers([(one.step, one.ok, one.detail) for one in await probe(options)])


async def _topics(options: KafkaOptions) -> list[Finding]:
    found = {name: _facts(one) for name, one in (await Topics(options).describe()).items()}
    letters = options.dead_letter_topic
    documents = [found[name] for name in options.topics if name in found]
    return [
        *(verdicts.document_topic(name, found.get(name)) for name in options.topics),
        verdicts.dead_letter_topic(letters, found.get(letters), documents),
    ]


def _facts(one: TopicDescription) -> verdicts.TopicFacts:
    size = one.configuration.get("max.message.bytes")
    return verdicts.TopicFacts(
        one.topic, one.partitions, one.replication, int(size) if size else None
    )


class _Database:
    """The checks of the database; `collections` are what the provider is asked for."""

    def __init__(self, options: DatabaseOptions) -> None:
        self._options = options
        self.collections: list[Collection] = []

    async def server(self) -> list[Finding]:
        facts = await server_facts(self._options)
        detail = f"PostgreSQL {facts.server}, max_connections {facts.max_connections}"
        return [
            verdicts.connections(detail, facts.max_connections, self._options.pool_max),
            verdicts.pgvector(facts.vector),
        ]

    async def schema(self) -> list[Finding]:
        found = await Migrations(self._options).status()
        pending = [f"{one.version}_{one.name}" for one in found if not one.applied]
        return [verdicts.schema(pending, len(found) - len(pending))]

    async def look_for_collections(self) -> list[Finding]:
        async with opened(self._options) as database:
            self.collections = await PostgresCatalog(database).collections()
            indexes = PostgresIndexes(database)
            facts = [await indexes.look(one) for one in self.collections]
        return [
            verdicts.collections([one.name for one in self.collections]),
            *(verdicts.index(one.collection.name, one.state) for one in facts),
        ]


async def _embeds(embedder: Embedder, collection: Collection) -> list[Finding]:
    check = f"collection {collection.name}"
    request = EmbeddingRequest(collection.model, collection.dimensions, [PROBE_TEXT])
    try:
        await embedder.embed(request)
    except (ProviderUnavailable, PermanentError) as error:
        hint = "see embedding.url, embedding.api_key_variable, and the collection's model"
        return [Finding(check, Status.FAIL, f"{collection.model}: {error}", hint)]
    detail = f"{collection.model} answers {collection.dimensions} dimensions"
    return [Finding(check, Status.OK, detail)]
