"""The contract of the port `Holds`, on memory and on PostgreSQL."""

import pytest

from tests.contracts.test_claims import stale
from tests.support.store_changes import GROUP, PARTITION
from tests.support.store_worlds import MemoryWorld, PostgresWorld, World
from worker.core.model import Partition
from worker.errors import FencedError
from worker.ports import Hold

OTHER = Partition("documents", 1)
HELD = Hold("too many", is_resumed=False)


class HoldsContract:
    """What the holds promise."""

    async def test_a_partition_is_not_held_before_somebody_says_so(self, world: World) -> None:
        assert await world.holds.found(GROUP, PARTITION) is None
        assert not await world.holds.resume(GROUP, PARTITION)

    async def test_a_hold_is_found_by_the_next_owner(self, world: World) -> None:
        await world.holds.hold(await world.claim(), "too many")
        await world.claim()
        assert await world.holds.found(GROUP, PARTITION) == HELD

    async def test_an_operator_says_that_it_should_go_on(self, world: World) -> None:
        await world.holds.hold(await world.claim(), "too many")
        assert await world.holds.resume(GROUP, PARTITION)
        found = await world.holds.found(GROUP, PARTITION)
        assert found == Hold("too many", is_resumed=True)

    async def test_held_again_it_keeps_an_operators_word(self, world: World) -> None:
        claim = await world.claim()
        await world.holds.hold(claim, "too many")
        await world.holds.hold(claim, "still too many")
        found = await world.holds.found(GROUP, PARTITION)
        assert found == Hold("still too many", is_resumed=False)
        await world.holds.resume(GROUP, PARTITION)
        await world.holds.hold(claim, "again too many")
        found = await world.holds.found(GROUP, PARTITION)
        assert found == Hold("again too many", is_resumed=True)
        await world.holds.lift(claim)
        await world.holds.hold(claim, "too many")
        assert await world.holds.found(GROUP, PARTITION) == HELD

    async def test_a_lifted_hold_is_gone(self, world: World) -> None:
        claim = await world.claim()
        await world.holds.hold(claim, "too many")
        await world.holds.lift(claim)
        assert await world.holds.found(GROUP, PARTITION) is None
        await world.holds.lift(claim)

    async def test_a_stale_claim_neither_holds_nor_lifts(self, world: World) -> None:
        await world.claim()
        claim = await world.claim()
        for other in stale(claim):
            with pytest.raises(FencedError):
                await world.holds.hold(other, "too many")
        assert await world.holds.found(GROUP, PARTITION) is None
        await world.holds.hold(claim, "too many")
        for other in stale(claim):
            with pytest.raises(FencedError):
                await world.holds.lift(other)
        assert await world.holds.found(GROUP, PARTITION) == HELD

    async def test_partitions_and_groups_stand_alone(self, world: World) -> None:
        claim, beside = await world.claim(), await world.claim(OTHER)
        await world.holds.hold(claim, "too many")
        assert await world.holds.found(GROUP, OTHER) is None
        assert await world.holds.found("other", PARTITION) is None
        assert not await world.holds.resume(GROUP, OTHER)
        await world.holds.lift(beside)
        assert await world.holds.found(GROUP, PARTITION) == HELD


class TestHoldsInMemory(HoldsContract):
    @pytest.fixture
    def world(self, in_memory: MemoryWorld) -> World:
        return in_memory


@pytest.mark.real
class TestHoldsOnPostgres(HoldsContract):
    @pytest.fixture
    def world(self, on_postgres: PostgresWorld) -> World:
        return on_postgres
