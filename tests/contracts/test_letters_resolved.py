"""A success resolves the dead letters of its document, on memory and on PostgreSQL."""

from typing import Any

import pytest

from tests.support.store_changes import GROUP, KEY, PARTITION, at, key
from tests.support.store_letters import letter
from tests.support.store_worlds import MemoryWorld, PostgresWorld, World
from worker.core.model import Claim, DocumentKey, Order
from worker.ports import LetterPlace, Verdict

APPLIED = Verdict.APPLIED


async def dead(
    world: World, claim: Claim, offset: int, of: DocumentKey | None = KEY, **facts: Any
) -> None:
    """Dead-letter a record, wholly."""
    if of is not None:
        names = {"tenant": of.tenant, "collection": of.collection, "document_id": of.id}
        facts = names | facts
    origin = facts.pop("origin", at(offset, timestamp_ms=1_700_000_000_000))
    await world.ledger.record([letter(claim, offset, origin=origin, **facts)])
    await world.ledger.mark_published(GROUP, [LetterPlace(*PARTITION, offset)])


async def states(world: World) -> dict[int, str]:
    return {row.offset: row.state for row in await world.letters()}


class ResolutionContract:
    """What a write says about dead letters."""

    async def test_a_newer_version_resolves_an_older_one_and_not_a_newer_one(
        self, world: World
    ) -> None:
        claim = await world.claim()
        for offset, version in enumerate((4, 5, 6)):
            await dead(world, claim, offset, version=version)
        assert await world.put(claim, version=5, offset=9, texts=["x"]) is APPLIED
        assert await states(world) == {0: "resolved", 1: "resolved", 2: "published"}

    async def test_of_equal_versions_only_the_earlier_one_is_resolved(
        self, world: World
    ) -> None:
        claim = await world.claim()
        await dead(world, claim, 3, version=5)
        await dead(world, claim, 7, version=5)
        await world.put(claim, version=5, offset=5, texts=["x"])
        assert await states(world) == {3: "resolved", 7: "published"}

    async def test_a_replay_that_is_stored_resolves_its_own_letter(self, world: World) -> None:
        claim = await world.claim()
        await dead(world, claim, 3, version=5)
        order = at(3, timestamp_ms=1_700_000_000_000)
        await world.put(claim, version=5, order=order, texts=["x"])
        assert await states(world) == {3: "resolved"}

    async def test_a_chained_letter_is_ranked_by_its_first_origin(self, world: World) -> None:
        claim = await world.claim()
        await dead(world, claim, 9, version=5, origin=at(3))
        await world.put(claim, version=5, offset=5, texts=["x"])
        assert await states(world) == {9: "resolved"}

    async def test_a_letter_without_an_origin_is_ranked_by_its_position(
        self, world: World
    ) -> None:
        claim = await world.claim()
        await dead(world, claim, 3, version=5, origin=None)
        await dead(world, claim, 9, version=5, origin=None)
        await world.put(claim, version=5, offset=5, texts=["x"])
        assert await states(world) == {3: "resolved", 9: "published"}

    async def test_between_partitions_the_timestamp_decides(self, world: World) -> None:
        claim = await world.claim()
        await dead(world, claim, 3, version=5)
        later = Order("documents", 1, 0, 1_700_000_000_001)
        await world.put(claim, version=5, order=later, texts=["x"])
        assert await states(world) == {3: "resolved"}

    async def test_a_delete_resolves_what_it_deletes(self, world: World) -> None:
        claim = await world.claim()
        await dead(world, claim, 3, version=5)
        await world.drop(claim, version=6, offset=5)
        assert await states(world) == {3: "resolved"}

    async def test_a_delete_without_version_resolves_what_stands_before_it(
        self, world: World
    ) -> None:
        claim = await world.claim()
        await dead(world, claim, 3, version=500)
        await dead(world, claim, 4, version=None)
        await dead(world, claim, 9, version=1)
        await world.drop(claim, version=None, offset=5)
        assert await states(world) == {3: "resolved", 4: "resolved", 9: "published"}

    async def test_a_late_delete_without_version_resolves_although_the_row_stays(
        self, world: World
    ) -> None:
        claim = await world.claim()
        await world.put(claim, version=1, offset=9, texts=["x"])
        await dead(world, claim, 3, version=500)
        await world.drop(claim, version=None, offset=5)
        assert await states(world) == {3: "resolved"}

    async def test_a_delete_without_version_that_failed_is_not_resolved_by_a_version(
        self, world: World
    ) -> None:
        """Nothing but a later delete of its kind covers it."""
        claim = await world.claim()
        await dead(world, claim, 3, version=None)
        await world.put(claim, version=5, offset=5, texts=["x"])
        assert await states(world) == {3: "published"}

    async def test_other_documents_and_unreadable_records_are_left(self, world: World) -> None:
        claim = await world.claim()
        await dead(world, claim, 1, key("other"), version=1)
        await dead(world, claim, 2, key(tenant="other"), version=1)
        await dead(world, claim, 3, None)
        await world.put(claim, version=5, offset=5, texts=["x"])
        assert set((await states(world)).values()) == {"published"}

    async def test_what_is_not_published_yet_stays_pending(self, world: World) -> None:
        """Every state but pending says that the dead-letter topic has the letter."""
        claim = await world.claim()
        names = {"tenant": KEY.tenant, "collection": KEY.collection, "document_id": KEY.id}
        await world.ledger.record([letter(claim, 3, version=1, **names)])
        await world.put(claim, version=5, offset=5, texts=["x"])
        assert await states(world) == {3: "pending"}

    async def test_a_write_that_does_not_apply_resolves_nothing(self, world: World) -> None:
        claim = await world.claim()
        await dead(world, claim, 3, version=1)
        old, claim = claim, await world.claim()
        assert await world.put(old, version=5, offset=5, texts=["x"]) is Verdict.FENCED
        assert await states(world) == {3: "published"}


class TestResolutionInMemory(ResolutionContract):
    @pytest.fixture
    def world(self, in_memory: MemoryWorld) -> World:
        return in_memory


@pytest.mark.real
class TestResolutionOnPostgres(ResolutionContract):
    @pytest.fixture
    def world(self, on_postgres: PostgresWorld) -> World:
        return on_postgres
