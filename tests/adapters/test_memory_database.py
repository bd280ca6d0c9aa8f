"""What simulations rely on: faults before and after a commit, frozen writers, restores."""

import asyncio

import pytest

from schemas.events import ScopeDeleted
from tests.support.store_changes import at, upsert, write
from tests.support.store_worlds import MemoryWorld, memory_world
from worker.adapters.memory_database import MemoryDatabase
from worker.core.model import Base, Progress, Rank
from worker.errors import StoreUnavailable
from worker.ports import Verdict

APPLIED, BASE_CHANGED, FENCED = Verdict.APPLIED, Verdict.BASE_CHANGED, Verdict.FENCED


@pytest.fixture
async def world() -> MemoryWorld:
    return await memory_world()


def failing(at_call: str, at_moment: str):
    async def hook(call: str, moment: str) -> None:
        if (call, moment) == (at_call, at_moment):
            raise StoreUnavailable

    return hook


class Freeze:
    """Holds the first write at a moment until it is told to go on."""

    def __init__(self, moment: str = "open") -> None:
        self.moment = moment
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    async def __call__(self, call: str, moment: str) -> None:
        if (call, moment) == ("apply", self.moment) and not self.reached.is_set():
            self.reached.set()
            await self.go_on.wait()


@pytest.mark.parametrize(
    ("moment", "stored"), [("before", False), ("open", False), ("committed", True)]
)
async def test_a_fault_loses_the_write_or_only_its_answer(
    world: MemoryWorld, moment: str, *, stored: bool
) -> None:
    claim = await world.claim()
    world.database.hook = failing("apply", moment)
    with pytest.raises(StoreUnavailable):
        await world.put(claim, version=1, texts=["text"])
    world.database.hook = None
    assert (await world.texts() == ["text"]) == stored


async def test_a_frozen_writer_makes_the_next_claim_wait(world: MemoryWorld) -> None:
    claim = await world.claim()
    world.database.hook = freeze = Freeze()
    async with asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(world.put(claim, version=1, texts=["text"]))
        await freeze.reached.wait()
        claiming = tasks.create_task(world.claim())
        await world.until_waiting(claiming)
        freeze.go_on.set()
    assert writing.result() is APPLIED
    assert claiming.result().epoch == claim.epoch + 1


async def test_a_claim_ends_a_writer_that_stays_frozen() -> None:
    world = await memory_world(MemoryDatabase(patience_seconds=0.01))
    claim = await world.claim()
    world.database.hook = freeze = Freeze()
    async with asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(expect_unavailable(world, claim))
        await freeze.reached.wait()
        await world.claim()
        freeze.go_on.set()
        await writing
    assert world.claims.blockers_ended == 1
    assert await world.base() == Base()


async def expect_unavailable(world: MemoryWorld, claim) -> None:
    with pytest.raises(StoreUnavailable):
        await world.put(claim, version=1, texts=["text"])


async def test_a_writer_that_is_cancelled_while_frozen_writes_nothing(
    world: MemoryWorld,
) -> None:
    claim = await world.claim()
    world.database.hook = freeze = Freeze()
    async with asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(world.put(claim, version=1, texts=["text"]))
        await freeze.reached.wait()
        writing.cancel()
    assert await world.base() == Base()
    assert (await world.claim()).epoch == claim.epoch + 1


async def test_two_frozen_writers_of_one_base_do_not_tear_it(world: MemoryWorld) -> None:
    claim = await world.claim()
    world.database.hook = freeze = Freeze()
    change = upsert(world.articles, Base(), version=1, texts=["first"])
    other = upsert(world.articles, Base(), version=2, offset=1, texts=["second"])
    async with asyncio.TaskGroup() as tasks:
        frozen = tasks.create_task(world.store.apply([write(change, claim)]))
        await freeze.reached.wait()
        assert await world.store.apply([write(other, claim)]) == [APPLIED]
        freeze.go_on.set()
    assert frozen.result() == [BASE_CHANGED]
    assert await world.texts() == ["second"]


async def test_a_restore_puts_everything_back_under_another_history(world: MemoryWorld) -> None:
    claim = await world.claim()
    await world.claims.begin(claim, 0)
    await world.put(claim, version=1, texts=["old"])
    await world.claims.save_progress({claim: Progress(1)})
    backup = world.database.snapshot()
    await world.put(claim, version=2, offset=1, texts=["new"])
    await world.claims.save_progress({claim: Progress(2)})
    newer = await world.claim()
    for _ in range(2):
        world.database.restore(backup)
        assert await world.texts() == ["old"]
        for lost in (claim, newer):
            assert await world.put(lost, version=3, offset=2) is FENCED
        again = await world.claim()
        assert (again.epoch, again.next_offset) == (newer.epoch, 1)
        assert again.claim_id not in (claim.claim_id, newer.claim_id)
        assert again.history != newer.history


async def test_a_restore_ends_open_transactions(world: MemoryWorld) -> None:
    claim, backup = await world.claim(), world.database.snapshot()
    world.database.hook = freeze = Freeze()
    async with asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(expect_unavailable(world, claim))
        await freeze.reached.wait()
        world.database.restore(backup)
        freeze.go_on.set()
        await writing
    assert await world.base() == Base()


async def test_a_scope_delete_can_be_cut_after_its_first_step(world: MemoryWorld) -> None:
    claim = await world.claim()
    await world.put(claim, version=1, texts=["text"])
    scope, rank = ScopeDeleted(tenant="tenant", version=5), Rank(5, at(9))
    for moment in ("barrier", "sweep"):
        world.database.hook = failing("delete_scope", moment)
        with pytest.raises(StoreUnavailable):
            await world.store.delete_scope(claim, scope, rank)
        base = await world.base()
        assert (base.scope_version, base.document.version) == (5, 1)
    world.database.hook = None
    assert await world.store.delete_scope(claim, scope, rank) is APPLIED
    assert await world.base() == Base(scope_version=5)
