"""
A fleet of worker processes on the broker and the database of this run.

`make_fleet` makes one for a test. `fleet` is one for a whole module, with one worker that is
never restarted: its tests share it, each on documents of its own. The module says by
`ENVIRONMENT` how that worker is configured.
"""

from uuid import uuid4

import pytest
import pytest_asyncio

from tests.support.fleet import Fleet
from tests.support.kafka import topics
from tests.support.postgres import drop_schema
from worker.config import DatabaseOptions, KafkaOptions


@pytest.fixture
async def make_fleet(kafka_options, database, create_topic, tmp_path):
    """`await make_fleet(partitions=4)`: topics, schema, collection and provider are there."""
    fleets = []

    async def make(partitions=4, **more):
        fleet = Fleet(
            **{"kafka": kafka_options, "database": database} | more,
            topic=await create_topic(partitions=partitions),
            dead_letter_topic=await create_topic(),
            folder=tmp_path,
        )
        fleets.append(fleet)
        return await fleet.__aenter__()

    yield make
    for fleet in fleets:
        await fleet.__aexit__()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(request, kafka_server, postgres_server, tmp_path_factory):
    """The fleet of a module, with its one worker at work on three partitions."""
    schema = f"test_{uuid4().hex[:12]}"
    async with topics(kafka_server.bootstrap_servers) as made:
        standing = Fleet(
            kafka=KafkaOptions(
                bootstrap_servers=kafka_server.bootstrap_servers,
                group=f"group-{uuid4().hex[:12]}",
            ),
            database=DatabaseOptions(
                url=postgres_server.url, schema=schema, pool_min=1, pool_max=10
            ),
            topic=await made.create(partitions=3),
            dead_letter_topic=await made.create(),
            folder=tmp_path_factory.mktemp("fleet"),
            environment=dict(getattr(request.module, "ENVIRONMENT", {})),
        )
        async with standing:
            worker = await standing.start()
            await worker.works_on(3)
            yield standing
            assert await standing.stop(worker) == 0
    await drop_schema(postgres_server.url, schema)
