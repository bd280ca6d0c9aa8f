"""The contract of the port `Claims`, on memory and on PostgreSQL."""

import asyncio
from uuid import UUID

import pytest

from tests.support.store_changes import GROUP, PARTITION
from tests.support.store_worlds import MemoryWorld, PostgresWorld, World
from worker.core.model import Claim, Landmark, Partition, Progress
from worker.errors import FencedError

OTHER = Partition("documents", 1)
LANDMARK = Landmark(offset=7, timestamp_ms=1_700_000_000_000, key_hash=b"12345678")


def stale(claim: Claim) -> list[Claim]:
    """Claims that are like a good one but for one thing."""
    return [
        claim._replace(epoch=claim.epoch - 1),
        claim._replace(epoch=claim.epoch + 1),
        claim._replace(claim_id=UUID(int=1 << 100)),
        claim._replace(history="of another server"),
        claim._replace(partition=Partition("nobody's", 0)),
        claim._replace(group="nobody's"),
    ]


class ClaimsContract:
    """What the claims promise."""

    async def test_the_first_claim_of_a_partition_knows_no_progress(self, world: World) -> None:
        claim = await world.claims.claim(GROUP, PARTITION, "owner")
        assert (claim.group, claim.partition, claim.epoch) == (GROUP, PARTITION, 1)
        assert (claim.next_offset, claim.landmark, claim.incarnation) == (None, None, 0)
        assert claim.history

    async def test_each_claim_raises_the_epoch_and_has_an_id_of_its_own(
        self, world: World
    ) -> None:
        claims = [await world.claim() for _ in range(3)]
        assert [claim.epoch for claim in claims] == [1, 2, 3]
        assert len({claim.claim_id for claim in claims}) == 3

    async def test_claims_of_other_partitions_topics_and_groups_stand_alone(
        self, world: World
    ) -> None:
        first = await world.claim()
        others = [
            await world.claim(OTHER),
            await world.claim(Partition("other", 0)),
            await world.claim(group="other"),
        ]
        assert [claim.epoch for claim in others] == [1, 1, 1]
        await world.claims.begin(first, 5)
        assert await world.claims.next_offset("other", PARTITION) is None
        assert await world.claims.next_offset(GROUP, OTHER) is None

    async def test_the_start_is_written_back_also_downwards(self, world: World) -> None:
        claim = await world.claim()
        await world.claims.begin(claim, 10)
        assert await world.claims.next_offset(GROUP, PARTITION) == 10
        await world.claims.begin(claim, 3)
        assert await world.claims.next_offset(GROUP, PARTITION) == 3
        assert (await world.claim()).next_offset == 3

    async def test_a_stale_claim_cannot_begin(self, world: World) -> None:
        await world.claim()
        claim = await world.claim()
        await world.claims.begin(claim, 10)
        for other in stale(claim):
            with pytest.raises(FencedError):
                await world.claims.begin(other, 1)
        assert await world.claims.next_offset(GROUP, PARTITION) == 10

    async def test_progress_is_raised_and_never_lowered(self, world: World) -> None:
        claim = await world.claim()
        await world.claims.begin(claim, 0)
        for offset, expected in ((5, 5), (9, 9), (7, 9)):
            saved = await world.claims.save_progress({claim: Progress(offset)})
            assert saved == {PARTITION: expected}
            assert await world.claims.next_offset(GROUP, PARTITION) == expected

    async def test_progress_of_a_stale_claim_is_not_saved(self, world: World) -> None:
        await world.claim()
        claim = await world.claim()
        await world.claims.begin(claim, 0)
        for other in stale(claim):
            assert await world.claims.save_progress({other: Progress(9)}) == {}
        assert await world.claims.next_offset(GROUP, PARTITION) == 0

    async def test_a_fenced_partition_keeps_no_other_from_being_saved(
        self, world: World
    ) -> None:
        old, other = await world.claim(), await world.claim(OTHER)
        new = await world.claim()
        await world.claims.begin(new, 0)
        await world.claims.begin(other, 0)
        progress = {old: Progress(5), new: Progress(6), other: Progress(7)}
        assert await world.claims.save_progress(progress) == {PARTITION: 6, OTHER: 7}

    async def test_what_has_not_begun_saves_nothing(self, world: World) -> None:
        """An operator may have said meanwhile that the topic is another one."""
        claim = await world.claim()
        assert await world.claims.save_progress({claim: Progress(5)}) == {}
        assert await world.claims.next_offset(GROUP, PARTITION) is None

    async def test_nothing_to_save_saves_nothing(self, world: World) -> None:
        assert await world.claims.save_progress({}) == {}

    async def test_the_landmark_comes_back_with_the_next_claim(self, world: World) -> None:
        claim = await world.claim()
        await world.claims.begin(claim, 0)
        await world.claims.save_progress({claim: Progress(8, LANDMARK)})
        again = await world.claim()
        assert (again.next_offset, again.landmark) == (8, LANDMARK)

    async def test_the_landmark_goes_with_the_highest_progress(self, world: World) -> None:
        claim = await world.claim()
        await world.claims.begin(claim, 0)
        await world.claims.save_progress({claim: Progress(8, LANDMARK)})
        await world.claims.save_progress({claim: Progress(4, LANDMARK._replace(offset=3))})
        await world.claims.save_progress({claim: Progress(9, None)})
        assert (await world.claim()).landmark == LANDMARK
        claim = await world.claim()
        await world.claims.save_progress({claim: Progress(9, LANDMARK._replace(offset=8))})
        assert (await world.claim()).landmark == LANDMARK._replace(offset=8)

    async def test_a_rewind_keeps_the_landmark(self, world: World) -> None:
        claim = await world.claim()
        await world.claims.begin(claim, 0)
        await world.claims.save_progress({claim: Progress(8, LANDMARK)})
        await world.claims.begin(claim, 2)
        again = await world.claim()
        assert (again.next_offset, again.landmark) == (2, LANDMARK)

    async def test_the_topic_s_id_stands_with_the_start_and_stays(self, world: World) -> None:
        claim = await world.claim()
        assert claim.topic_id is None
        await world.claims.begin(claim._replace(topic_id=UUID(int=7)), 0)
        await world.claims.save_progress({claim: Progress(8, LANDMARK)})
        again = await world.claim()
        assert (again.next_offset, again.topic_id) == (8, UUID(int=7))
        await world.claims.begin(again, 3)
        assert (await world.claim()).topic_id == UUID(int=7)

    async def test_a_stale_claim_does_not_say_which_topic_it_is(self, world: World) -> None:
        old = await world.claim()
        await world.claims.begin((await world.claim())._replace(topic_id=UUID(int=7)), 0)
        with pytest.raises(FencedError):
            await world.claims.begin(old._replace(topic_id=UUID(int=8)), 0)
        assert (await world.claim()).topic_id == UUID(int=7)

    async def test_claims_carry_the_incarnation_of_the_topic(self, world: World) -> None:
        await world.claim()
        await world.renew_topic(PARTITION, 2)
        assert (await world.claim()).incarnation == 2
        beside = PARTITION._replace(number=PARTITION.number + 7)
        assert (await world.claim(beside)).incarnation == 2
        assert (await world.claim(PARTITION._replace(topic="another"))).incarnation == 0

    async def test_a_claim_waits_for_the_writers_of_the_old_one(self, world: World) -> None:
        claim = await world.claim()
        async with asyncio.TaskGroup() as tasks:
            async with world.writing(claim):
                next_claim = tasks.create_task(world.claim())
                await world.until_waiting(next_claim)
            assert (await next_claim).epoch == claim.epoch + 1

    async def test_writers_of_one_claim_do_not_wait_for_each_other(self, world: World) -> None:
        claim = await world.claim()
        async with world.writing(claim), asyncio.timeout(5):
            await world.claims.begin(claim, 1)
            assert await world.claims.save_progress({claim: Progress(2)}) == {PARTITION: 2}

    async def test_concurrent_claims_get_epochs_of_their_own(self, world: World) -> None:
        async with asyncio.TaskGroup() as tasks:
            claiming = [tasks.create_task(world.claim()) for _ in range(4)]
        assert sorted(task.result().epoch for task in claiming) == [1, 2, 3, 4]


class TestClaimsInMemory(ClaimsContract):
    @pytest.fixture
    def world(self, in_memory: MemoryWorld) -> World:
        return in_memory


@pytest.mark.real
class TestClaimsOnPostgres(ClaimsContract):
    @pytest.fixture
    def world(self, on_postgres: PostgresWorld) -> World:
        return on_postgres
