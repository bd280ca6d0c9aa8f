"""
A careful loop with no framework: aiokafka, aiohttp and asyncpg.

A request and a transaction a document, a hundred documents at once. Offsets are committed once
all records of a poll are stored, so nothing is lost. Events of one document run at once like
any others, so an older one may win; with `BENCH_ORDERED=1` they run one after another.
"""

import asyncio
import json
import os
import signal
from collections.abc import Iterable, Sequence
from itertools import chain

from aiokafka import AIOKafkaConsumer, ConsumerRecord
from shared import Event, Options, Pipeline, event_of, runner

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
                await pipeline.process_all(_by_key(records) if ordered else _alone(records))
                await consumer.commit()


def _alone(records: Iterable[ConsumerRecord]) -> Iterable[Sequence[Event]]:
    return ([event_of(json.loads(record.value))] for record in records)


def _by_key(records: Iterable[ConsumerRecord]) -> Iterable[Sequence[Event]]:
    lines: dict[bytes, list[Event]] = {}
    for record in records:
        lines.setdefault(record.key, []).append(event_of(json.loads(record.value)))
    return lines.values()


async def until_terminated(options: Options, *, ordered: bool) -> None:
    """Consume until SIGTERM comes; what is not committed is read again."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await consume(options, ordered=ordered)
    except asyncio.CancelledError:
        return


if __name__ == "__main__":
    told = Options.from_environment()
    is_ordered = os.environ.get("BENCH_ORDERED") == "1"
    with runner(told) as loop:
        loop.run(until_terminated(told, ordered=is_ordered))
