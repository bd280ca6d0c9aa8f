"""A broker of a test module's own, to be frozen, killed and talked to in secret."""

import asyncio
import os
import signal
from contextlib import contextmanager
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from tests.support.kafka_batches import change_on_disk
from tests.support.kafka_facts import PATIENCE_SECONDS
from tests.support.servers import open_folder
from worker.config import KafkaOptions
from worker.embedded.kafka import EmbeddedKafka


@contextmanager
def run_own_kafka(*, security=False):
    with open_folder() as folder, EmbeddedKafka(folder / "kafka", security=security) as broker:
        yield broker


@contextmanager
def frozen(broker):
    """Let the broker neither answer nor end a connection."""
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        while not _all_threads_stopped(broker.pid):
            os.sched_yield()
        yield
    finally:
        os.kill(broker.pid, signal.SIGCONT)


async def usable(broker):
    """Wait until the controller accepts topics again: a freeze beyond its session fences it."""
    topic = NewTopic("never-made", 1, 1)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await _accepts(broker.bootstrap_servers, topic):
            pass


async def _accepts(bootstrap_servers, topic):
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    try:
        await admin.start()
        answer = await admin.create_topics([topic], validate_only=True)
    except (KafkaError, AttributeError):  # the library's, where there is no controller
        return False
    finally:
        await admin.close()
    return all(code == 0 for _, code, _ in answer.topic_errors)


def break_on_disk(broker, partition, changes):
    """Restart the broker; meanwhile `changes[offset](batch)` work on the file of its log."""
    (segment,) = Path(broker.folder).rglob(f"{partition.topic}-{partition.number}/*.log")
    broker.stop()
    for offset, change in changes.items():
        change_on_disk(segment, offset, change)
    broker.start()


def _all_threads_stopped(pid):
    # The state is the first word behind the name, which is in parentheses.
    threads = Path(f"/proc/{pid}/task").iterdir()
    states = [(thread / "stat").read_text().rpartition(") ")[2][0] for thread in threads]
    return set(states) == {"T"}


def quick_options(broker, group: str, **changes) -> KafkaOptions:
    """Options with the shortest timers that the configuration lets through."""
    timers = {
        "heartbeat_seconds": 0.3,
        "drain_seconds": 0.1,
        "rebalance_seconds": 5.2,
        "request_seconds": 5.5,
        "session_seconds": 30,
    }
    return KafkaOptions(
        bootstrap_servers=broker.bootstrap_servers, group=group, **(timers | changes)
    )
