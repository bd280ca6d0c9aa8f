"""The one-shot job `publish` put together."""

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

from schemas.bounds import Limits
from schemas.delivery import Connection
from schemas.publisher import DeliveryFailed, Publisher
from schemas.records import DEFAULT_MAX_RECORD_BYTES
from worker.adapters.kafka_client import client_arguments
from worker.adapters.kafka_topics import Topics
from worker.config import KafkaOptions, Settings
from worker.errors import BrokerUnavailable, ConfigError
from worker.ops.publish import Publication, Source


async def publish(
    settings: Settings, topic: str, sources: Iterable[Source], publication: Publication
) -> None:
    """
    Publish to a topic.

    Raises:
        ConfigError: there is no such topic, or the broker refuses us.
        BrokerUnavailable: no broker, or no acknowledgement in time.
    """
    async with publishing(settings, topic) as publisher:
        limits = _limits(settings)
        await publication.run(publisher, sources, max_line_bytes=limits.record_bytes)


@asynccontextmanager
async def publishing(settings: Settings, topic: str) -> AsyncIterator[Publisher]:
    """
    Yield a publisher to a topic that is there.

    Raises:
        ConfigError, BrokerUnavailable: as `publish`.
    """
    max_record_bytes = await _max_record_bytes(settings.kafka, topic)
    with in_our_words():
        async with Publisher(
            settings.kafka.bootstrap_servers,
            topic,
            max_record_bytes=max_record_bytes,
            limits=_limits(settings),
            **_connection(settings.kafka),
        ) as publisher:
            yield publisher


@contextmanager
def in_our_words() -> Iterator[None]:
    """Raise `BrokerUnavailable` where Kafka did not take events; inside a task group, too."""
    try:
        yield
    except DeliveryFailed as error:
        raise BrokerUnavailable(f"Kafka did not take the events: {error}") from error


def _limits(settings: Settings) -> Limits:
    return Limits(max_text_bytes=settings.ingest.max_text_bytes, nul=settings.ingest.nul)


async def _max_record_bytes(options: KafkaOptions, topic: str) -> int:
    """Return what the topic takes; a missing one would be waited for, half a minute long."""
    try:
        found = await Topics(replace(options, topics=(topic,))).describe()
    except ConfigError:
        # A publisher may be allowed to write and not to look.
        return DEFAULT_MAX_RECORD_BYTES
    if topic not in found:
        raise ConfigError(f"there is no topic {topic!r}: run `embedfleet topics create`")
    configured = found[topic].configuration.get("max.message.bytes")
    return int(configured or DEFAULT_MAX_RECORD_BYTES)


def _connection(options: KafkaOptions) -> Any:
    known = Connection.__annotations__
    return {name: value for name, value in client_arguments(options).items() if name in known}
