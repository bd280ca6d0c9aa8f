"""
CocoIndex 1.0: the topic as a live map of documents, the table as its target.

As its pages on Kafka and PostgreSQL have it, with what costs least: batches of 256 texts (its
batching keeps one request in flight, and is cheaper all the same than a request a document),
base64 vectors, and a binary encoder in the place of one that writes 17 digits a number. Its
splitter cuts as the others do not, so only the text as a whole can be compared.

The main function never returns: in 1.0.26, when it does, all rows are deleted at the moment at
which the backlog of the topic has been read, though their offsets are committed.
"""

import asyncio
import os
import signal
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import asyncpg
import cocoindex as coco
import numpy as np
import orjson
from cocoindex.connectorkits.target import ManagedBy
from cocoindex.connectors import kafka, postgres
from cocoindex.ops.text import RecursiveSplitter
from confluent_kafka import Message
from confluent_kafka.aio import AIOConsumer
from numpy.typing import NDArray
from shared import CHUNK_CHARACTERS, CONNECTIONS, Embedder, Options, event_of, runner
from tenacity import stop_after_delay

EMBEDDING_SECONDS = 600
"""As long as CocoIndex's own embedder tries; what fails for good is not read again."""
MAX_BATCH = 256

options = Options.from_environment()
database = coco.ContextKey[asyncpg.Pool]("database")
embedder = Embedder(options)
splitter = RecursiveSplitter()


def as_halfvec(vector: np.ndarray) -> bytes:
    """Return a vector in pgvector's binary format."""
    return struct.pack(">HH", len(vector), 0) + np.asarray(vector, ">f2").tobytes()


async def set_up(connection: asyncpg.Connection) -> None:
    """Let a connection pass such bytes on as they are."""
    await connection.set_type_codec(
        "halfvec", schema="public", encoder=bytes, decoder=bytes, format="binary"
    )


@dataclass
class Chunk:
    """A row of the table."""

    tenant: str
    doc_id: str
    chunk_no: Annotated[int, postgres.PgType("integer")]
    version: int
    content: str
    embedding: Annotated[
        NDArray[np.float32], postgres.PgType(f"halfvec({options.dimensions})", as_halfvec)
    ]


@coco.lifespan
async def lifespan(builder: coco.EnvironmentBuilder) -> AsyncIterator[None]:
    """Open what the functions use; the state belongs to the table."""
    builder.settings.db_path = Path(os.environ["BENCH_STATE"])
    pool = asyncpg.create_pool(options.postgres, max_size=CONNECTIONS, init=set_up)
    async with embedder, pool:
        builder.provide(database, pool)
        yield


_embed = Embedder.embed.retry_with(stop=stop_after_delay(EMBEDDING_SECONDS))


@coco.fn.as_async(batching=True, max_batch_size=MAX_BATCH)
async def embed(texts: list[str]) -> list[np.ndarray]:
    """Embed the chunks of many documents in one request."""
    return await _embed(embedder, texts)


@coco.fn
async def process_message(message: Message, table: postgres.TableTarget[Chunk]) -> None:
    """Declare the rows of one document."""
    event = event_of(orjson.loads(message.value()))
    texts = [chunk.text for chunk in splitter.split(event.text or "", CHUNK_CHARACTERS)]
    vectors = await coco.map(embed, texts)
    for number, (text, vector) in enumerate(zip(texts, vectors, strict=True)):
        table.declare_row(
            row=Chunk(event.tenant, event.doc_id, number, event.version, text, vector)
        )


def is_deletion(message: Message) -> bool:
    """Tell whether an event deletes its document."""
    return orjson.loads(message.value())["type"] == "delete"


@coco.fn
async def app_main() -> None:
    """Map the topic to the table, for ever."""
    schema, _, name = options.table.rpartition(".")
    table = await postgres.mount_table_target(
        database,
        table_name=name,
        table_schema=await postgres.TableSchema.from_class(
            Chunk, primary_key=["doc_id", "chunk_no"]
        ),
        pg_schema_name=schema or None,
        managed_by=ManagedBy.USER,
    )
    consumer = AIOConsumer(
        {
            "bootstrap.servers": options.kafka,
            "group.id": options.group,
            "enable.auto.commit": "false",
            "auto.offset.reset": "earliest",
        }
    )
    documents = kafka.topic_as_map(consumer, [options.topic], is_deletion=is_deletion)
    await coco.mount_each(process_message, documents, table)
    if os.environ.get("BENCH_HOLD") != "0":
        await asyncio.Event().wait()


app = coco.App(coco.AppConfig(name="Documents"), app_main)


async def until_terminated() -> None:
    """Run until SIGTERM comes."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        async with coco.runtime():
            await app.update(live=True)
    except asyncio.CancelledError:
        return


if __name__ == "__main__":
    with runner(options) as loop:
        loop.run(until_terminated())
