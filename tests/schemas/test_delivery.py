"""Closing a publisher whose batches are somewhere on their way."""

import asyncio

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaTimeoutError

from schemas import delivery

PLACE = TopicPartition("documents", 0)


@pytest.fixture
async def producer():
    producer = AIOKafkaProducer(bootstrap_servers="127.0.0.1:1")
    yield producer
    await delivery._close(producer, 1)


@pytest.fixture
async def said():
    """What asyncio has to say about callbacks."""
    said = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    return said


async def drained(producer):
    """A record whose batch was taken to be sent; both."""
    accumulator = producer._message_accumulator
    sent = await accumulator.add_message(PLACE, b"key", b"value", timeout=1)
    return sent, accumulator._pop_batch(PLACE)


async def ended(sent):
    with pytest.raises(KafkaTimeoutError):
        await sent
    await asyncio.sleep(0)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_batch_that_is_to_be_sent_again_is_cut_without_a_word(producer, said, when):
    """Before it waits for its next turn, and while it does."""
    sent, batch = await drained(producer)
    if when == "after":
        producer._message_accumulator.reenqueue(batch)
    delivery._cut(producer)
    await ended(sent)
    if when == "before":
        producer._message_accumulator.reenqueue(batch)
    assert said == []


async def test_canary_the_library_takes_a_batch_that_ends_in_a_retry_out_twice(producer, said):
    sent, batch = await drained(producer)
    producer._message_accumulator.reenqueue(batch)
    producer._message_accumulator.fail_all(KafkaTimeoutError())
    batch._drain_waiter.exception()
    await ended(sent)
    assert [type(one["exception"]) for one in said] == [KeyError]
