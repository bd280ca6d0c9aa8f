"""
A careful loop with no framework: aiokafka, aiohttp and asyncpg.

A request and a transaction a document, a hundred documents at once. Offsets are committed once
all records of a poll are stored, so nothing is lost. Events of one document run at once like
any others, so an older one may win; with `BENCH_ORDERED=1` they run one after another.
"""

import asyncio
import json
import os
from collections.abc import Iterable, Sequence
from itertools import chain

from aiokafka import AIOKafkaConsumer, ConsumerRecord
from shared import CONCURRENCY, Options, Pipeline, event_of, run_until_terminated

MAX_RECORDS = 500


async def consume(options: Options, *, ordered: bool) -> None:
    """Take records by polls; a poll is committed before the next one."""
    consumer = AIOKafkaConsumer(
        options.topic,
        bootstrap_servers=options.kafka,
        group_id=options.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    async with Pipeline(options) as pipeline, consumer:
        while True:
            polled = await consumer.getmany(timeout_ms=1000, max_records=MAX_RECORDS)
            records = list(chain.from_iterable(polled.values()))
            if records:
                await _process(pipeline, _by_key(records) if ordered else _alone(records))
                await consumer.commit()


async def _process(pipeline: Pipeline, lines: Iterable[Sequence[ConsumerRecord]]) -> None:
    """Process lines of records at once, the records of a line one after another."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def work(line: Sequence[ConsumerRecord]) -> None:
        async with slots:
            for record in line:
                await pipeline.process(event_of(json.loads(record.value)))

    async with asyncio.TaskGroup() as group:
        for line in lines:
            group.create_task(work(line))


def _alone(records: Iterable[ConsumerRecord]) -> Iterable[Sequence[ConsumerRecord]]:
    return ([record] for record in records)


def _by_key(records: Iterable[ConsumerRecord]) -> Iterable[Sequence[ConsumerRecord]]:
    lines: dict[bytes, list[ConsumerRecord]] = {}
    for record in records:
        lines.setdefault(record.key, []).append(record)
    return lines.values()


if __name__ == "__main__":
    told = Options.from_environment()
    is_ordered = os.environ.get("BENCH_ORDERED") == "1"
    run_until_terminated(told, consume(told, ordered=is_ordered))
