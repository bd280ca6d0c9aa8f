"""The contract of the port `Poisons`, on memory and on PostgreSQL."""

from datetime import timedelta

import pytest

from schemas.dead_letter import Reason
from tests.support.store_changes import KEY, key
from tests.support.store_worlds import MemoryWorld, PostgresWorld, World
from worker.ports import PoisonKey, Refusal

FIRST = PoisonKey("tenant", "model", b"\x00" * 16)
FILTERED = Refusal(Reason.CONTENT_FILTER, "the provider answered 400 (content_filter)")
TOO_LONG = Refusal(Reason.INPUT_TOO_LONG, "the provider answered 413")


class PoisonContract:
    """What the memory of refused chunks promises."""

    async def test_what_is_remembered_is_known(self, world: World) -> None:
        assert await world.poisons.known([FIRST]) == {}
        await world.poisons.remember({FIRST: FILTERED})
        (found,) = (await world.poisons.known([FIRST, FIRST])).items()
        assert (found[0], *found[1][:2]) == (FIRST, *FILTERED)
        assert found[1].seen_at.utcoffset() == timedelta(0)

    async def test_another_tenant_another_model_and_another_text_are_not_known(
        self, world: World
    ) -> None:
        await world.poisons.remember({FIRST: FILTERED})
        others = [
            FIRST._replace(tenant="other"),
            FIRST._replace(model="other"),
            FIRST._replace(chunk_hash=b"\x01" * 16),
        ]
        assert await world.poisons.known(others) == {}
        assert list(await world.poisons.known([*others, FIRST])) == [FIRST]

    async def test_remembered_again_it_is_known_by_the_last_refusal(self, world: World) -> None:
        await world.poisons.remember({FIRST: FILTERED})
        before = (await world.poisons.known([FIRST]))[FIRST]
        await world.poisons.remember({FIRST: TOO_LONG})
        after = (await world.poisons.known([FIRST]))[FIRST]
        assert after[:2] == TOO_LONG
        assert after.seen_at >= before.seen_at

    async def test_what_is_forgotten_is_not_known_and_the_others_are(
        self, world: World
    ) -> None:
        keys = [FIRST._replace(chunk_hash=bytes([number]) * 16) for number in range(5)]
        await world.poisons.remember(dict.fromkeys(keys, FILTERED))
        await world.poisons.forget([*keys[:3], FIRST._replace(tenant="nobody")])
        await world.poisons.forget(keys[:1])
        assert set(await world.poisons.known(keys)) == set(keys[3:])

    async def test_nothing_changes_nothing(self, world: World) -> None:
        assert await world.poisons.known([]) == {}
        await world.poisons.remember({})
        await world.poisons.forget([])

    async def test_a_detail_that_postgresql_refuses_is_remembered_all_the_same(
        self, world: World
    ) -> None:
        refusal = Refusal(Reason.REJECTED_INPUT, "nul \0, half \ud800, " + "long " * 1_000)
        await world.poisons.remember({FIRST: refusal})
        found = (await world.poisons.known([FIRST]))[FIRST]
        assert found.detail.startswith("nul \ufffd, half ?, long")

    async def test_a_tenant_with_poison_is_told_with_each_of_its_documents(
        self, world: World
    ) -> None:
        await world.poisons.remember({FIRST: FILTERED})
        assert (await world.base(KEY)).has_poison
        assert (await world.base(key("never seen"))).has_poison
        assert not (await world.base(key(tenant="other"))).has_poison
        await world.poisons.forget([FIRST])
        assert not (await world.base(KEY)).has_poison

    async def test_a_stored_document_of_the_tenant_has_it_too(self, world: World) -> None:
        claim = await world.claim()
        await world.put(claim, version=1, texts=["text"])
        assert not (await world.base()).has_poison
        await world.poisons.remember({FIRST: FILTERED})
        base = await world.base()
        assert base.has_poison
        assert base.document is not None


class TestPoisonInMemory(PoisonContract):
    @pytest.fixture
    def world(self, in_memory: MemoryWorld) -> World:
        return in_memory


@pytest.mark.real
class TestPoisonOnPostgres(PoisonContract):
    @pytest.fixture
    def world(self, on_postgres: PostgresWorld) -> World:
        return on_postgres

    async def test_a_reason_of_a_newer_worker_is_a_refusal(self, world: PostgresWorld) -> None:
        await world.poisons.remember({FIRST: FILTERED})
        await world.fetch("update poison_chunk set reason = 'of_a_later_day'")
        assert (await world.poisons.known([FIRST]))[FIRST].reason is Reason.REJECTED_INPUT
