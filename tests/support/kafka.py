"""The Kafka of a test run; `EMBEDFLEET_TEST_KAFKA` names bootstrap servers to use."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from uuid import uuid4

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError, for_code

from tests.support.servers import container_host, local_image, open_folder
from worker.embedded.kafka import EmbeddedKafka
from worker.embedded.ports import ReservedPort

VARIABLE = "EMBEDFLEET_TEST_KAFKA"
REPOSITORY = "apache/kafka"
LISTENER_IN_CONTAINER = 19092


@dataclass(frozen=True)
class KafkaServer:
    """Where it is, and how it was chosen. `embedded` is None where it is not ours."""

    bootstrap_servers: str
    origin: str
    embedded: EmbeddedKafka | None = None


@contextmanager
def run_kafka() -> Iterator[KafkaServer]:
    """Choose a broker, and start it where that is ours to do."""
    servers = os.environ.get(VARIABLE)
    if servers:
        yield KafkaServer(servers, VARIABLE)
        return
    local = local_image(REPOSITORY)
    if local.image is not None:
        with _container(local.image) as servers:
            yield KafkaServer(servers, local.why)
        return
    with open_folder() as folder, EmbeddedKafka(folder / "kafka") as embedded:
        yield KafkaServer(embedded.bootstrap_servers, f"embedded ({local.why})", embedded)


@contextmanager
def _container(image: str) -> Iterator[str]:
    # The library's KafkaContainer runs Confluent's image only.
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    reserved = ReservedPort()
    port = reserved.number
    container = DockerContainer(image).with_bind_ports(port, port)
    host = container_host()
    settings = {
        "NODE_ID": "1",
        "PROCESS_ROLES": "broker,controller",
        "LISTENERS": f"EXT://:{port},INT://:{LISTENER_IN_CONTAINER},CONTROLLER://:19093",
        "ADVERTISED_LISTENERS": f"EXT://{host}:{port},INT://localhost:{LISTENER_IN_CONTAINER}",
        "LISTENER_SECURITY_PROTOCOL_MAP": "EXT:PLAINTEXT,INT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "INTER_BROKER_LISTENER_NAME": "INT",
        "CONTROLLER_QUORUM_VOTERS": "1@localhost:19093",
        "AUTO_CREATE_TOPICS_ENABLE": "false",
        "OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
    }
    for name, value in settings.items():
        container.with_env(f"KAFKA_{name}", value)
    container.waiting_for(LogMessageWaitStrategy("Kafka Server started"))
    with container:
        yield f"{host}:{port}"
    reserved.release()


@dataclass
class Topics:
    """Topics made for one test, and deleted after it."""

    admin: AIOKafkaAdminClient
    replicas: int = 1
    made: list[str] = field(default_factory=list)

    async def create(
        self,
        *,
        partitions: int = 1,
        config: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> str:
        """Create a topic and return its name once every partition has a leader."""
        name = name or f"topic-{uuid4().hex[:12]}"
        # Many records of tests are of 1970: retention would remove them 30 s after the start.
        settings = {"retention.ms": "-1"} | dict(config or {})
        topic = NewTopic(name, partitions, self.replicas, topic_configs=settings)
        answer = await self.admin.create_topics([topic])
        for _, code, message in answer.topic_errors:
            if code:
                raise for_code(code)(message)
        self.made.append(name)
        await self._wait_for_leaders(name, partitions)
        return name

    async def delete(self, name: str) -> None:
        """Delete a topic before the end of the test."""
        self.made.remove(name)
        await self.admin.delete_topics([name])

    async def create_again(self, name: str, partitions: int = 1) -> None:
        """Delete a topic that somebody else made, and create it under the same name."""
        await self.admin.delete_topics([name])
        while True:  # its name is free once the broker has removed it, in its own time
            try:
                await self.create(name=name, partitions=partitions)
            except TopicAlreadyExistsError:
                continue
            self.made.remove(name)
            return

    async def _wait_for_leaders(self, name: str, partitions: int) -> None:
        while True:
            (topic,) = await self.admin.describe_topics([name])
            led = [part for part in topic["partitions"] if part["leader"] >= 0]
            if not topic["error_code"] and len(led) == partitions:
                return
            await asyncio.sleep(0.02)


@asynccontextmanager
async def topics(bootstrap_servers: str, replicas: int = 1) -> AsyncIterator[Topics]:
    """Connect an admin client for one test."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        made = Topics(admin, replicas)
        yield made
        if made.made:
            await admin.delete_topics(made.made)
    finally:
        await admin.close()
