"""
FastStream, an event a call.

By default an event is acknowledged when it is received, and a hundred workers process events at
once, in any order: fast, but a crash or an error loses what they have taken. With
`BENCH_ACK=1` it is acknowledged once it is stored; then a worker is a consumer of its own, and
there are as many as partitions.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from faststream import AckPolicy, Context, ContextRepo, FastStream
from faststream.kafka import KafkaBroker
from pydantic import BaseModel
from shared import CONCURRENCY, Event, Options, Pipeline, runner

PARTITIONS = 8

options = Options.from_environment()
acknowledges_last = os.environ.get("BENCH_ACK") == "1"


class Document(BaseModel):
    """An event as it stands in a record."""

    tenant: str
    id: str
    version: int
    text: str | None = None


@asynccontextmanager
async def lifespan(context: ContextRepo) -> AsyncIterator[None]:
    """Open what all calls share."""
    async with Pipeline(options) as pipeline:
        context.set_global("pipeline", pipeline)
        yield


# Without a logger: by default it writes two lines an event.
broker = KafkaBroker(options.kafka, logger=None if options.tuned else ...)
app = FastStream(broker, lifespan=lifespan)


@broker.subscriber(
    options.topic,
    group_id=options.group,
    auto_offset_reset="earliest",
    ack_policy=AckPolicy.ACK if acknowledges_last else AckPolicy.ACK_FIRST,
    max_workers=PARTITIONS if acknowledges_last else CONCURRENCY,
)
async def store(document: Document, pipeline: Pipeline = Context()) -> None:  # noqa: B008
    """Embed and store one event."""
    await pipeline.process(Event(document.tenant, document.id, document.version, document.text))


if __name__ == "__main__":
    with runner(options) as loop:
        loop.run(app.run())
