"""A cluster of three brokers of which one after the other goes away."""

import pytest

from tests.chaos import brokers

pytestmark = [pytest.mark.chaos, pytest.mark.real]


async def test_leaders_and_coordinators_that_go_cost_no_record_and_no_worker(
    make_clustered_world, kafka_cluster, verdicts
):
    async with make_clustered_world(seats=3) as world:
        verdicts += await brokers.leaders(world, kafka_cluster)
    assert all(verdict.held for verdict in verdicts), verdicts
