"""Three brokers in one cluster, of which any one may be away, and who leads what in it."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from worker.embedded.kafka import EmbeddedKafka
from worker.embedded.kafka_settings import NODE, VOTERS
from worker.embedded.ports import HOST, ReservedPort

BROKERS = 3
SESSION_SECONDS = 3.0
"""A broker that is silent for longer is replaced; less than a busy machine may pause one."""
REQUEST_SECONDS = 2.0
PATIENCE_SECONDS = 60
PAUSE_SECONDS = 0.1
REPLICATED = {
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "share.coordinator.state.topic.replication.factor": "3",
    "share.coordinator.state.topic.min.isr": "2",
    "replica.lag.time.max.ms": "3000",
    "broker.session.timeout.ms": str(int(SESSION_SECONDS * 1000)),
}


class KafkaCluster:
    """Brokers 1, 2 and 3, each a controller as well; everything is on all of them."""

    def __init__(self, folder: Path) -> None:
        ports = {node: ReservedPort() for node in range(1, BROKERS + 1)}
        voters = ",".join(f"{node}@{HOST}:{port.number}" for node, port in ports.items())
        self.brokers = {
            node: EmbeddedKafka(
                folder / f"kafka-{node}",
                controller=port,
                settings=REPLICATED | {NODE: str(node), VOTERS: voters},
            )
            for node, port in ports.items()
        }

    def __enter__(self):
        try:
            self._all(EmbeddedKafka.start)
        except BaseException:
            self._all(EmbeddedKafka.kill)
            raise
        return self

    def __exit__(self, *_) -> None:
        # Not in order: the last ones would wait for a majority that has gone already.
        self._all(EmbeddedKafka.kill)

    def _all(self, verb) -> None:
        # Together: a broker is ready when most of them are there.
        with ThreadPoolExecutor(BROKERS) as threads:
            list(threads.map(verb, self.brokers.values()))

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(broker.bootstrap_servers for broker in self.brokers.values())

    # ---- who leads ----

    async def leaders(self, topic: str) -> dict[int, int]:
        """Partition -> the broker that leads it, -1: nobody."""
        return {one["partition"]: one["leader"] for one in await self._described(topic)}

    async def leads(self, topic: str) -> Counter[int]:
        """How many partitions each broker leads."""
        return Counter((await self.leaders(topic)).values())

    async def is_in_sync(self, topic: str) -> bool:
        """Whether every partition has a leader and all its replicas."""
        return all(
            one["leader"] >= 0 and len(one["isr"]) == BROKERS
            for one in await self._described(topic)
        )

    async def coordinator(self, group: str) -> int:
        """The broker that coordinates a group."""
        return await self._ask(lambda admin: admin.find_coordinator(group))

    async def committed(self, group: str) -> dict[TopicPartition, int]:
        """What a group has committed, where it has."""
        known = await self._ask(lambda admin: admin.list_consumer_group_offsets(group))
        return {place: at.offset for place, at in known.items()}

    async def _described(self, topic: str) -> list[dict[str, Any]]:
        (described,) = await self._ask(lambda admin: admin.describe_topics([topic]))
        return described["partitions"]

    async def _ask(self, question: Callable[[AIOKafkaAdminClient], Awaitable[Any]]) -> Any:
        """Ask the brokers until one answers; whoever is away is asked as well."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                # A new one each time: an older one may wait for the broker that is away.
                admin = AIOKafkaAdminClient(
                    bootstrap_servers=self.bootstrap_servers,
                    request_timeout_ms=int(REQUEST_SECONDS * 1000),
                )
                try:
                    await admin.start()
                    return await question(admin)
                except KafkaError:
                    await asyncio.sleep(PAUSE_SECONDS)
                finally:
                    await admin.close()
