"""
The fixtures that need something real, and how Hypothesis runs.

Servers start at their first use, once per run; a run without real tests starts none.
"""

import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings

from worker.config import DatabaseOptions, KafkaOptions

# Which examples are tried must not depend on chance or on the speed of the machine.
settings.register_profile(
    "test",
    derandomize=True,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "random", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow]
)
# A mutant is tried thousands of times: few examples, and the first that fails is enough.
settings.register_profile(
    "mutation",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=20,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))

# Whoever is started in a script's background inherits that Ctrl-C is ignored, and so would all
# processes of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)

CreateTopic = Callable[..., Coroutine[Any, Any, str]]
Server = TypeVar("Server")
TOLD = "told"


def _start(
    request: pytest.FixtureRequest, name: str, run: Callable[[], AbstractContextManager[Server]]
) -> Iterator[Server]:
    with run() as server:
        _tell(request.config, f"{name}: {server.origin}")
        yield server


def _tell(config: pytest.Config, line: str) -> None:
    """Say it on the terminal; a process that has none says it when it ends."""
    terminal = config.pluginmanager.getplugin("terminalreporter")
    if terminal is None:
        config.workeroutput.setdefault(TOLD, []).append(line)
        return
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        terminal.ensure_newline()
        terminal.write_line(line)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Say what one of several test processes had to say."""
    for line in getattr(node, "workeroutput", {}).get(TOLD, ()):
        _tell(node.config, f"{node.gateway.id}: {line}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Let a report carry whatever a test has logged, lone surrogates too."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode())
        for name, text in report.sections
    ]
    return report


@pytest.fixture(scope="session")
def kafka_server(request):
    """The broker of this run: `.bootstrap_servers`, `.embedded` (None where it is not ours)."""
    from tests.support.kafka import run_kafka

    yield from _start(request, "Kafka", run_kafka)


@pytest.fixture(scope="module")
def broker():
    """A broker of the module's own, to be frozen, killed and broken."""
    from tests.support.kafka_own import run_own_kafka

    with run_own_kafka() as broker:
        yield broker


@pytest.fixture
async def own_world(broker, group):
    """A topic of two partitions on that broker."""
    from tests.support.kafka import topics
    from tests.support.kafka_own import quick_options, usable
    from tests.support.kafka_worlds import KafkaWorld

    await usable(broker)
    async with topics(broker.bootstrap_servers) as made:
        topic = await made.create(partitions=2)
        world = KafkaWorld(quick_options(broker, group), topic, own_broker=broker)
        yield world
        await world.close()


@pytest.fixture(scope="session")
def postgres_server(request):
    """The database server of this run: `.url`, `.embedded` (None where it is not ours)."""
    from tests.support.postgres import run_postgres

    yield from _start(request, "PostgreSQL", run_postgres)


@pytest.fixture
async def database(postgres_server) -> AsyncIterator[DatabaseOptions]:
    """A schema name of the test's own, not created yet; dropped with all in it."""
    from tests.support.postgres import drop_schema

    schema = f"test_{uuid4().hex[:12]}"
    yield DatabaseOptions(url=postgres_server.url, schema=schema, pool_min=1, pool_max=10)
    await drop_schema(postgres_server.url, schema)


@pytest.fixture
async def create_topic(kafka_server) -> AsyncIterator[CreateTopic]:
    """`await create_topic(partitions=1, config=None, name=None)`: a topic, deleted later."""
    from tests.support.kafka import topics

    async with topics(kafka_server.bootstrap_servers) as made:
        yield made.create


@pytest.fixture
async def topic(create_topic: CreateTopic) -> str:
    """A new topic of one partition."""
    return await create_topic()


@pytest.fixture
def group() -> str:
    """A consumer group nobody has used."""
    return f"group-{uuid4().hex[:12]}"


@pytest.fixture
def kafka_options(kafka_server, group: str) -> KafkaOptions:
    """Options for the broker of this run and a group of the test's own."""
    return KafkaOptions(bootstrap_servers=kafka_server.bootstrap_servers, group=group)
