"""
Fleets that are hurt for long, and what they claimed to bear: `make chaos` runs them.

`EMBEDFLEET_TEST_SEED` names the seed of a run; each run prints the one that it had. Verdicts
are written as JSON, too, into `build/chaos`, or where `EMBEDFLEET_TEST_VERDICTS` says.
"""

import json
import os
import secrets
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path

import pytest

from tests.chaos.world import ProxiedKafka, World
from tests.support.fleet import Fleet
from tests.support.kafka import topics
from tests.support.kafka_cluster import BROKERS, KafkaCluster
from tests.support.servers import open_folder
from tests.support.verdicts import Verdict, lines
from worker.config import DatabaseOptions, KafkaOptions
from worker.embedded.postgres import EmbeddedPostgres

VERDICTS = "verdicts"
FOLDER = Path(os.environ.get("EMBEDFLEET_TEST_VERDICTS", "build/chaos"))


def pytest_terminal_summary(terminalreporter):
    for report in chain.from_iterable(terminalreporter.stats.values()):
        found = dict(getattr(report, "user_properties", ())).get(VERDICTS)
        if found is not None and report.when == "teardown":
            _tell(terminalreporter, report.head_line, found)


def _tell(terminal, name, found):
    terminal.section(name, sep="-")
    for line in lines([Verdict(**verdict) for verdict in found]):
        terminal.write_line(line)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1))


@pytest.fixture
def verdicts(request):
    """The verdicts of this run: printed at the end, whatever they are; all must hold."""
    verdicts: list[Verdict] = []
    yield verdicts
    found = [verdict._asdict() for verdict in verdicts]
    request.node.user_properties.append((VERDICTS, found))


@pytest.fixture
async def fleet(kafka_options, database, create_topic, tmp_path):
    """A fleet without workers on four partitions."""
    fleet = Fleet(
        kafka=kafka_options,
        database=database,
        topic=await create_topic(partitions=4),
        dead_letter_topic=await create_topic(),
        folder=tmp_path,
    )
    async with fleet:
        yield fleet


@pytest.fixture(scope="session")
def proxied_kafka():
    """A broker of our own, with a listener behind a proxy for each seat."""
    with open_folder() as folder, ProxiedKafka(folder / "kafka") as broker:
        yield broker


@pytest.fixture(scope="session")
def own_postgres():
    """A database server of our own, to be hurt."""
    with open_folder() as folder, EmbeddedPostgres(folder / "postgres") as server:
        yield server


@pytest.fixture
def seed(verdicts) -> int:
    """What decides the load and the faults of a run."""
    seed = int(os.environ.get("EMBEDFLEET_TEST_SEED") or secrets.randbelow(1 << 31))
    verdicts.append(Verdict("the seed", f"{seed}", held=True))
    return seed


@pytest.fixture(scope="session")
def kafka_cluster():
    """Three brokers of our own, of which one may be away."""
    with open_folder() as folder, KafkaCluster(folder) as cluster:
        yield cluster


@pytest.fixture
async def make_world(proxied_kafka, own_postgres, group, seed, tmp_path):
    """`make_world(seats=4)`: a world to enter, with everything but its workers."""
    async with _worlds(proxied_kafka, own_postgres, group, seed, tmp_path) as make:
        yield make


@pytest.fixture
async def make_clustered_world(kafka_cluster, own_postgres, group, seed, tmp_path):
    """The same on three brokers, to which the workers talk themselves."""
    async with _worlds(
        kafka_cluster, own_postgres, group, seed, tmp_path, replicas=BROKERS
    ) as make:
        yield make


@asynccontextmanager
async def _worlds(
    kafka: ProxiedKafka | KafkaCluster,
    postgres: EmbeddedPostgres,
    group: str,
    seed: int,
    folder: Path,
    *,
    replicas: int = 1,
):
    servers = kafka.bootstrap_servers
    async with topics(servers, replicas) as made:
        topic, letters = await made.create(partitions=12), await made.create()

        def make(*, seats: int = 4, **more) -> World:
            fleet = Fleet(
                kafka=KafkaOptions(bootstrap_servers=servers, group=group),
                database=DatabaseOptions(
                    url=postgres.url, schema=group.replace("-", "_"), pool_min=1
                ),
                topic=topic,
                dead_letter_topic=letters,
                folder=folder,
            )
            return World(fleet, kafka, seed, seat_count=seats, **more)

        yield make
