"""The contract of the port `Crashes`, on memory and on PostgreSQL."""

import pytest

from tests.contracts.test_claims import stale
from tests.support.store_worlds import MemoryWorld, PostgresWorld, World
from worker.core.isolation import Alone, CrashEntry, Suspect
from worker.core.model import Claim, Partition
from worker.errors import FencedError

OTHER = Partition("documents", 1)
WORKED = Alone(7, fetching=False)
FETCHED = Alone(7, fetching=True)


async def begin(world: World, owner: str, start: int = 7) -> tuple[Claim, CrashEntry]:
    claim = await world.claim()
    return claim, await world.crashes.begin(claim, owner, start)


class CrashesContract:
    """What the crash ledger promises."""

    async def test_the_first_entry_is_the_owners(self, world: World) -> None:
        claim, entry = await begin(world, "a")
        assert entry == CrashEntry(claim.claim_id, "a", claim.history, 7)

    async def test_an_owner_that_did_not_end_has_ended_uncleanly(self, world: World) -> None:
        await begin(world, "a")
        _, second = await begin(world, "b")
        _, third = await begin(world, "c")
        assert (second.unclean_ends, third.unclean_ends) == (1, 2)

    async def test_what_it_was_alone_with_is_suspected(self, world: World) -> None:
        claim, _ = await begin(world, "a")
        await world.crashes.mark(claim, FETCHED)
        await world.crashes.mark(claim, WORKED)
        claim, entry = await begin(world, "b")
        assert entry.suspect == Suspect(WORKED, 1)
        assert entry.alone is None
        await world.crashes.mark(claim, WORKED)
        _, entry = await begin(world, "c")
        assert entry.suspect == Suspect(WORKED, 2)

    async def test_a_mark_can_be_of_a_fetch_and_the_offset_nought(self, world: World) -> None:
        claim, _ = await begin(world, "a", 0)
        await world.crashes.mark(claim, Alone(0, fetching=True))
        _, entry = await begin(world, "b", 0)
        assert entry.suspect == Suspect(Alone(0, fetching=True), 1)

    async def test_a_mark_that_was_taken_back_blames_nobody(self, world: World) -> None:
        claim, _ = await begin(world, "a")
        await world.crashes.mark(claim, WORKED)
        await world.crashes.mark(claim, None)
        _, entry = await begin(world, "b")
        assert (entry.unclean_ends, entry.suspect) == (1, None)

    async def test_an_end_in_order_is_no_crash(self, world: World) -> None:
        claim, _ = await begin(world, "a")
        await world.crashes.mark(claim, WORKED)
        await world.crashes.end([claim])
        _, entry = await begin(world, "b")
        assert (entry.ended, entry.unclean_ends, entry.suspect) == (False, 0, None)

    async def test_the_end_of_a_replaced_claim_ends_nothing(self, world: World) -> None:
        old, _ = await begin(world, "a")
        await begin(world, "b")
        await world.crashes.end([old])
        _, entry = await begin(world, "c")
        assert entry.unclean_ends == 2

    async def test_the_end_of_nothing_ends_nothing(self, world: World) -> None:
        await begin(world, "a")
        await world.crashes.end([])
        _, entry = await begin(world, "b")
        assert entry.unclean_ends == 1

    async def test_the_same_owner_may_claim_again(self, world: World) -> None:
        await begin(world, "a")
        _, entry = await begin(world, "a")
        assert entry.unclean_ends == 0

    async def test_beginning_twice_under_one_claim_changes_nothing(self, world: World) -> None:
        await begin(world, "a")
        claim, entry = await begin(world, "b")
        await world.crashes.mark(claim, WORKED)
        again = await world.crashes.begin(claim, "b", 7)
        assert again == entry._replace(alone=WORKED)

    async def test_a_stale_claim_neither_begins_nor_marks(self, world: World) -> None:
        await begin(world, "a")
        claim, entry = await begin(world, "b")
        for other in stale(claim):
            with pytest.raises(FencedError):
                await world.crashes.begin(other, "z", 3)
        for other in (claim._replace(claim_id=stale(claim)[2].claim_id),):
            with pytest.raises(FencedError):
                await world.crashes.mark(other, WORKED)
            with pytest.raises(FencedError):
                await world.crashes.gave_up(other, 1)
        assert await world.crashes.begin(claim, "b", 7) == entry

    async def test_how_many_were_given_up_is_handed_on(self, world: World) -> None:
        claim, entry = await begin(world, "a")
        assert entry.given_up == 0
        await world.crashes.gave_up(claim, 2)
        claim, entry = await begin(world, "b")
        assert entry.given_up == 2
        await world.crashes.gave_up(claim, 0)
        assert (await begin(world, "c"))[1].given_up == 0

    async def test_partitions_and_groups_stand_alone(self, world: World) -> None:
        claim, _ = await begin(world, "a")
        await world.crashes.mark(claim, WORKED)
        for other in (await world.claim(OTHER), await world.claim(group="other")):
            entry = await world.crashes.begin(other, "b", 7)
            assert (entry.unclean_ends, entry.suspect) == (0, None)
        await world.crashes.end([other])
        _, entry = await begin(world, "c")
        assert entry.suspect == Suspect(WORKED, 1)


class TestCrashesInMemory(CrashesContract):
    @pytest.fixture
    def world(self, in_memory: MemoryWorld) -> World:
        return in_memory


@pytest.mark.real
class TestCrashesOnPostgres(CrashesContract):
    @pytest.fixture
    def world(self, on_postgres: PostgresWorld) -> World:
        return on_postgres
