"""
The ids of topics (KIP-516): a topic that is created again under its name has another one.

aiokafka 0.14 asks for metadata without them (version 5 at most); version 10 is described here.
Asks the group's coordinator, once; changes nothing that the client knows.
"""

from collections.abc import Collection, Mapping
from io import BytesIO
from typing import Any
from uuid import UUID

from aiokafka import AIOKafkaConsumer
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from worker.adapters import kafka_internals

_NO_ID = UUID(int=0)


class _Uuid:
    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        return UUID(bytes=data.read(16))


_PARTITION = (
    ("error_code", Int16),
    ("partition", Int32),
    ("leader", Int32),
    ("leader_epoch", Int32),
    ("replicas", CompactArray(Int32)),
    ("isr", CompactArray(Int32)),
    ("offline_replicas", CompactArray(Int32)),
    ("tags", TaggedFields),
)


class _Response(Response):  # type: ignore[misc]  # the library has no types
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                ("partitions", CompactArray(*_PARTITION)),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _Struct(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Response
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("topic_id", _Uuid), ("topic", CompactString("utf-8")), ("tags", TaggedFields)
            ),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _Request(Request[_Struct]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: Collection[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_Struct]) -> Any:
        """Return the request on the wire."""
        named: list[tuple[UUID, str, dict[int, bytes]]] = [
            (_NO_ID, topic, {}) for topic in self._topics
        ]
        return request_struct_class(named, False, False, False, {})  # noqa: FBT003


async def topic_ids(consumer: AIOKafkaConsumer, topics: Collection[str]) -> Mapping[str, UUID]:
    """
    Return the ids of those topics that are there; of none where the broker tells no ids.

    Raises:
        KafkaError: it does not answer.
    """
    try:
        answer = await kafka_internals.ask_coordinator(consumer, _Request(topics))
    except NotImplementedError:  # the library's, for a broker before Kafka 2.8
        return {}
    return {
        topic: topic_id
        for code, topic, topic_id, *_ in answer.topics
        if code == 0 and topic_id != _NO_ID
    }
