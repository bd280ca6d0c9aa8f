"""
Creates the topics of a fleet, and says how those are that exist.

Owns what the document topics and the dead-letter topic should be. Never changes a topic that
exists: a difference is reported, an operator decides.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    LeaderNotAvailableError,
    NodeNotReadyError,
    NoError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)

from worker.adapters.kafka_admin import REQUEST_SECONDS, opened_admin
from worker.adapters.kafka_client import milliseconds
from worker.config import KafkaOptions

Cleanup = Literal["compact", "delete"]

_RETRY_SECONDS = 0.1
# A letter waits for a person, perhaps over a holiday.
_DEAD_LETTER_HOURS = 30 * 24
# Any record that met a limit of 16 MiB, and its envelope.
_DEAD_LETTER_BYTES = 16 * 1024 * 1024 + 64 * 1024
_DEAD_LETTER_PARTITIONS = 1
# How the protocol says "as the broker is configured" where a replication factor stands.
_BROKER_DEFAULT = -1


class TopicReport(NamedTuple):
    """What became of one topic; `detail` names the differences."""

    topic: str
    state: Literal["created", "existed", "differs"]
    detail: str = ""


@dataclass(frozen=True)
class TopicDescription:
    """How a topic is."""

    topic: str
    partitions: int
    replication: int
    configuration: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Wanted:
    topic: str
    partitions: int
    replication: int | None
    configuration: dict[str, str]

    def differences(self, found: TopicDescription) -> Iterable[str]:
        """Name what is otherwise than wanted."""
        if found.partitions != self.partitions:
            yield f"{found.partitions} partitions, not {self.partitions}"
        if self.replication is not None and found.replication != self.replication:
            yield f"replication {found.replication}, not {self.replication}"
        for name, value in self.configuration.items():
            if found.configuration.get(name) != value:
                yield f"{name} {found.configuration.get(name)}, not {value}"


class Topics:
    """The document topics and the dead-letter topic of `options`."""

    def __init__(self, options: KafkaOptions) -> None:
        self._options = options

    async def create(
        self,
        *,
        partitions: int = 8,
        replication: int | None = 1,
        cleanup: Cleanup = "compact",
        retention_hours: float | None = None,
    ) -> list[TopicReport]:
        """
        Create what is missing; `None` leaves replication or retention to the broker.

        Raises:
            BrokerUnavailable: some may have been created; calling it again is safe.
            ConfigError: the broker refuses the settings or us.
        """
        documents: dict[str, str] = {"cleanup.policy": cleanup}
        if retention_hours is not None:
            documents["retention.ms"] = _hours_in_ms(retention_hours)
        wanted = [
            _Wanted(topic, partitions, replication, documents) for topic in self._options.topics
        ]
        letters = {
            "cleanup.policy": "delete",
            "retention.ms": _hours_in_ms(_DEAD_LETTER_HOURS),
            "max.message.bytes": str(_DEAD_LETTER_BYTES),
        }
        topic = self._options.dead_letter_topic
        wanted.append(_Wanted(topic, _DEAD_LETTER_PARTITIONS, replication, letters))
        async with opened_admin(self._options) as admin:
            return [await _create(admin, one) for one in wanted]

    async def delete(self) -> None:
        """
        Delete them with all that is in them; what is not there is no error.

        Raises:
            BrokerUnavailable: some may have been deleted; calling it again is safe.
            ConfigError: the broker refuses.
        """
        names = [*self._options.topics, self._options.dead_letter_topic]
        async with opened_admin(self._options) as admin:
            with _controlled():
                answer = await admin.delete_topics(names, milliseconds(REQUEST_SECONDS))
            for name, code in answer.topic_error_codes:
                if (error := for_code(code)) not in (NoError, UnknownTopicOrPartitionError):
                    raise error(name)

    async def describe(self) -> dict[str, TopicDescription]:
        """Return how the topics are, without those that do not exist."""
        names = [*self._options.topics, self._options.dead_letter_topic]
        async with opened_admin(self._options) as admin:
            found = [await _describe(admin, name) for name in names]
        return {topic.topic: topic for topic in found if topic is not None}


@contextmanager
def _controlled() -> Iterator[None]:
    """Say what the library means where it asks a controller that the cluster has not."""
    try:
        yield
    except AttributeError as missing:
        raise NodeNotReadyError("the cluster has no controller at the moment") from missing


async def _create(admin: AIOKafkaAdminClient, wanted: _Wanted) -> TopicReport:
    topic = NewTopic(
        wanted.topic,
        wanted.partitions,
        wanted.replication or _BROKER_DEFAULT,
        # The library insists on a choice here where the factor is the broker's.
        replica_assignments=None if wanted.replication else {},
        topic_configs=wanted.configuration,
    )
    with _controlled():
        answer = await admin.create_topics([topic], timeout_ms=milliseconds(REQUEST_SECONDS))
    ((_, code, message),) = answer.topic_errors
    error = for_code(code)
    if error not in (NoError, TopicAlreadyExistsError):
        raise error(f"{wanted.topic}: {message}")
    # The controller knows a topic a moment before the brokers that are asked about it.
    while (found := await _describe(admin, wanted.topic)) is None:  # noqa: ASYNC110 - not our event
        await asyncio.sleep(_RETRY_SECONDS)
    if error is NoError:
        return TopicReport(wanted.topic, "created")
    differences = ", ".join(wanted.differences(found))
    return TopicReport(wanted.topic, "differs" if differences else "existed", differences)


async def _describe(admin: AIOKafkaAdminClient, name: str) -> TopicDescription | None:
    while True:
        (topic,) = await admin.describe_topics([name])
        error = for_code(topic["error_code"])
        if error is UnknownTopicOrPartitionError:
            return None
        if error is NoError:
            break
        if error is not LeaderNotAvailableError:
            raise error(name)
        await asyncio.sleep(_RETRY_SECONDS)  # it was created a moment ago
    partitions: Sequence[dict[str, Any]] = topic["partitions"]
    replication = min(len(partition["replicas"]) for partition in partitions)
    return TopicDescription(
        name, len(partitions), replication, await _configuration(admin, name)
    )


async def _configuration(admin: AIOKafkaAdminClient, name: str) -> dict[str, str]:
    resource = ConfigResource(ConfigResourceType.TOPIC, name)
    (answer,) = await admin.describe_configs([resource])
    ((code, message, _, _, entries),) = answer.resources
    error = for_code(code)
    if error is not NoError:
        raise error(f"{name}: {message}")
    return {entry[0]: entry[1] for entry in entries if entry[1] is not None}


def _hours_in_ms(hours: float) -> str:
    return str(milliseconds(hours * 3600))
