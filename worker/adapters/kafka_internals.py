"""
What the worker needs of aiokafka 0.14 and its public interface does not give.

The only place that reads private attributes of the library; `test_kafka_canaries.py` asserts
each shape and each defect that is relied on, so that an upgrade fails there first.
"""

import asyncio
import contextlib
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, LeaderNotAvailableError, NoError, for_code
from aiokafka.protocol.fetch import FetchRequest

_READ_COMMITTED = 1
_NO_LEADER = (None, -1)
_GENTLE_SECONDS = 3.0
_HARD_SECONDS = 2.0
_LAST_SECONDS = 1.0


def mark_polled(consumer: AIOKafkaConsumer) -> None:
    """
    Count as a poll, so that `max_poll_interval_ms` does not expel us; takes no records.

    Only for the one task that polls, while no `getmany` is under way. An exception out of
    `getmany` leaves the count of running polls raised, which would switch the protection
    against a dead poll loop off for good; so the count is put right here.
    """
    subscription = consumer._subscription  # noqa: SLF001 - see the module
    subscription._fetch_count = 0  # noqa: SLF001
    with subscription.fetch_context():
        pass


def check(consumer: AIOKafkaConsumer) -> None:
    """
    Raise what has gone wrong in the background, before `getmany` would.

    The coordination can end in a `CancelledError` that nobody asked for: a heartbeat that is
    just leaving the group is cancelled by a rebalance. Out of `getmany` it would end the task
    that polls as if somebody had cancelled it.
    """
    coordinator = consumer._coordinator  # noqa: SLF001
    for task in (coordinator._coordination_task, consumer._fetcher.error_future):  # noqa: SLF001
        if task.done():
            cause = None if task.cancelled() else task.exception()
            raise KafkaError("a background task of the client has ended") from cause
    coordinator.check_errors()


async def arrival(consumer: AIOKafkaConsumer, timeout_seconds: float) -> None:
    """
    Wait until something was fetched, or for a while, without taking it.

    Waiting with `getmany` takes records of all partitions at once, so an error could not be
    told to its partition; and it ignores its timeout during a rebalance.
    """
    waiter: asyncio.Future[None] = consumer._fetcher._create_fetch_waiter()  # noqa: SLF001
    try:
        await asyncio.wait({waiter}, timeout=timeout_seconds)
    finally:
        if not waiter.cancel() and not waiter.cancelled():
            waiter.exception()  # retrieved: `check` raises it


def position(consumer: AIOKafkaConsumer, partition: TopicPartition) -> int | None:
    """Return the next offset to be handed out, without waiting; None while unknown."""
    state = _state(consumer, partition)
    return state.position if state is not None and state.has_valid_position else None


def read_up_to(consumer: AIOKafkaConsumer, partition: TopicPartition) -> int | None:
    """
    Return the offset at which an exception out of `getmany` was raised, None while unknown.

    Records below it that the same `getmany` had read are lost with the exception, and the
    position does not show them: they are fetched again. Only before the next `getmany`.
    """
    fetched = consumer._fetcher._records.get(partition)  # noqa: SLF001
    records = getattr(fetched, "_partition_records", None)
    return None if records is None else int(records.next_fetch_offset)


async def raw_batches(
    consumer: AIOKafkaConsumer, partition: TopicPartition, offset: int, max_bytes: int
) -> bytes:
    """
    Return what the log holds from the batch of an offset on, as it is, below the stable end.

    Never more than the first batch and `max_bytes`.

    Raises:
        KafkaError: the leader does not answer, or is another one.
    """
    client = consumer._client  # noqa: SLF001
    await client._wait_on_metadata(partition.topic)  # noqa: SLF001
    leader = client.cluster.leader_for_partition(partition)
    if leader in _NO_LEADER:
        client.force_metadata_update()
        raise LeaderNotAvailableError(partition)
    place = (partition.partition, offset, max_bytes)
    request = FetchRequest(0, 1, max_bytes, _READ_COMMITTED, [(partition.topic, [place])])
    response = await client.send(leader, request)
    ((_, ((_, code, *_, data),)),) = response.topics
    error = for_code(code)
    if error is not NoError:
        client.force_metadata_update()
        raise error(partition)
    return data or b""


async def ask_coordinator(consumer: AIOKafkaConsumer, request: Any) -> Any:
    """
    Ask the broker that coordinates the group, any while there is none; return its answer.

    Nothing goes on without that one. Of the others one may be away and still be in the
    metadata; who asks it waits for long, and whoever wants a new connection waits behind.

    Raises:
        NotImplementedError: it does not know the request in this version.
        KafkaError: none is known just now, or it does not answer.
    """
    client = consumer._client  # noqa: SLF001
    node = consumer._coordinator.coordinator_id  # noqa: SLF001
    return await client.send(client.get_random_node() if node is None else node, request)


def stable_end(consumer: AIOKafkaConsumer, partition: TopicPartition) -> int | None:
    """Return the last stable offset of the last fetch, None while unknown."""
    state = _state(consumer, partition)
    return state.lso if state is not None else None


def _state(consumer: AIOKafkaConsumer, partition: TopicPartition) -> Any:
    subscription = consumer._subscription.subscription  # noqa: SLF001
    if subscription is None or subscription.assignment is None:
        return None
    return subscription.assignment.state_value(partition)


def is_member(consumer: AIOKafkaConsumer) -> bool:
    """Whether the group knows us, as far as we know: a generation that was not reset."""
    return bool(consumer._coordinator.generation >= 0)  # noqa: SLF001


def must_rejoin(consumer: AIOKafkaConsumer) -> bool:
    """Whether we know of a rebalance that we have not gone through yet."""
    return bool(consumer._coordinator._rejoin_needed_fut.done())  # noqa: SLF001


async def heartbeat(consumer: AIOKafkaConsumer) -> bool:
    """Send a heartbeat of our own now; tell whether the coordinator knows our generation."""
    return bool(await consumer._coordinator._do_heartbeat())  # noqa: SLF001


async def close(consumer: AIOKafkaConsumer) -> None:
    """
    Stop a consumer within 3 s, wherever its broker is, and leave no task behind.

    Never cancels `stop()` while it may end by itself: a cancelled one leaves the fetcher
    running. Where the broker does not answer, its requests are made to fail instead. In a task
    of its own, because `stop()` may raise a `CancelledError` that nobody asked for.
    """
    stopping = asyncio.create_task(consumer.stop())  # noqa: TID251 - see above
    done, _ = await asyncio.wait({stopping}, timeout=_GENTLE_SECONDS)
    if not done:
        for connection in list(consumer._client._conns.values()):  # noqa: SLF001
            connection.close()
        done, _ = await asyncio.wait({stopping}, timeout=_HARD_SECONDS)
    if not done:
        stopping.cancel()
        await asyncio.wait({stopping}, timeout=_LAST_SECONDS)
    if stopping.done() and not stopping.cancelled():
        stopping.exception()
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_HARD_SECONDS):
            await consumer._client.close()  # noqa: SLF001
