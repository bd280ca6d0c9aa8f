"""A fleet of worker processes on the broker and the database of this run."""

import pytest

from tests.support.fleet import Fleet


@pytest.fixture
async def make_fleet(kafka_options, database, create_topic, tmp_path):
    """`await make_fleet(partitions=4)`: topics, schema, collection and provider are there."""
    fleets = []

    async def make(partitions=4, **more):
        fleet = Fleet(
            kafka=kafka_options,
            database=database,
            topic=await create_topic(partitions=partitions),
            dead_letter_topic=await create_topic(),
            folder=tmp_path,
            **more,
        )
        fleets.append(fleet)
        return await fleet.__aenter__()

    yield make
    for fleet in fleets:
        await fleet.__aexit__()
