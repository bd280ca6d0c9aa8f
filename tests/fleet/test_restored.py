"""A database put back to an older state: the log fills it again (C4, C12)."""

import asyncio
import signal

import pytest

from tests.support import provider
from tests.support.fleet import QUICK_TIMERS, delete, upsert
from tests.support.servers import open_folder
from worker.config import DatabaseOptions
from worker.embedded.postgres import EmbeddedPostgres

PARTITIONS = 3


@pytest.fixture(scope="module")
def postgres():
    """A server of our own, to be set back."""
    with open_folder() as folder, EmbeddedPostgres(folder / "postgres") as server:
        yield server


async def off_the_loop(call, *arguments):
    """Run what blocks beside the loop: the provider goes on answering."""
    return await asyncio.to_thread(call, *arguments)


async def before_and_after(fleet, postgres, snapshot):
    """Documents of before the snapshot, and changes of all kinds after it."""
    await fleet.publish(upsert(f"d{n}", 1, f"one {n}") for n in range(60))
    await fleet.settled()
    await fleet.sql.close()
    await off_the_loop(postgres.snapshot, snapshot)
    await fleet.connect()
    await fleet.publish(upsert(f"d{n}", 2, f"two {n}") for n in range(20))
    await fleet.publish(delete(f"d{n}", 2) for n in range(20, 30))
    await fleet.publish(upsert(f"d{n}", 1, f"one {n}") for n in range(60, 80))
    await fleet.settled()
    assert await fleet.stored() == await fleet.expected()


async def restore(fleet, postgres, snapshot):
    await fleet.sql.close()
    await off_the_loop(postgres.restore, snapshot)
    await fleet.connect()


async def check(fleet):
    await fleet.as_expected()
    await fleet.check_vectors()

    async def done():
        return await fleet.progress() == await fleet.ends() == await fleet.committed()

    await fleet.until(done)
    assert await fleet.letters() == []


async def test_workers_that_start_on_a_restored_database_fill_it_again(
    make_fleet, postgres, tmp_path
):
    options = DatabaseOptions(url=postgres.url, schema="restarted", pool_min=1)
    fleet = await make_fleet(PARTITIONS, database=options)
    worker = await fleet.start()
    await worker.works_on(PARTITIONS)
    await before_and_after(fleet, postgres, tmp_path / "snapshot")
    assert await fleet.stop(worker) == 0
    await restore(fleet, postgres, tmp_path / "snapshot")
    assert await fleet.stored() == {f"d{n}": f"one {n}" for n in range(60)}
    again = await fleet.start()
    await check(fleet)
    assert again.actions()["start_alarm"] == PARTITIONS
    assert await fleet.stop(again) == 0


async def test_workers_that_stay_up_notice_a_restored_database_and_fill_it_again(
    make_fleet, postgres, tmp_path
):
    options = DatabaseOptions(url=postgres.url, schema="running", pool_min=1)
    fleet = await make_fleet(PARTITIONS, database=options)
    workers = [await fleet.start(), await fleet.start()]
    await fleet.until(lambda: fleet.is_shared_by(*workers))
    await before_and_after(fleet, postgres, tmp_path / "snapshot")
    await restore(fleet, postgres, tmp_path / "snapshot")
    # A partition on which nothing happens is noticed within a minute; this is sooner.
    for partition in range(PARTITIONS):
        await fleet.publish([upsert(f"new {partition}", 1, "new")], partition=partition)
    await check(fleet)
    alarms = sum(worker.actions()["start_alarm"] for worker in workers)
    assert alarms >= PARTITIONS
    for worker in workers:
        assert await fleet.stop(worker) == 0


async def test_a_worker_frozen_before_a_restore_writes_nothing_though_its_epoch_comes_again(
    make_fleet, postgres, tmp_path
):
    """C12."""
    options = DatabaseOptions(url=postgres.url, schema="frozen", pool_min=1)
    fleet = await make_fleet(1, database=options)
    fleet.environment |= QUICK_TIMERS
    early = await fleet.start()
    await early.works_on(1)
    assert await fleet.stop(early) == 0
    await fleet.sql.close()
    await off_the_loop(postgres.snapshot, tmp_path / "snapshot")
    await fleet.connect()
    gates = {"frozen": asyncio.Event(), "other": asyncio.Event()}
    fleet.provider.script = lambda call: (
        provider.held(gates[call.request.query["worker"]]) if "text" in call.texts else None
    )
    urls = {
        name: {"EMBEDFLEET_EMBEDDING_URL": f"{fleet.provider.url}?worker={name}"}
        for name in gates
    }
    frozen = await fleet.start(**urls["frozen"])
    state = await frozen.works_on(1)
    await fleet.publish([upsert("a", 1, "text")])
    await fleet.provider_works_on(1)
    frozen.signal(signal.SIGSTOP)
    await restore(fleet, postgres, tmp_path / "snapshot")
    other = await fleet.start(**urls["other"])
    assert (await other.works_on(1))["partitions"][0]["epoch"] == state["partitions"][0][
        "epoch"
    ]
    await fleet.provider_works_on(2)
    gates["frozen"].set()
    frozen.signal(signal.SIGCONT)
    await frozen.logged("revoked")
    assert await fleet.row("a") is None
    gates["other"].set()
    await fleet.settled()
    assert await fleet.stored() == {"a": "text"}
    for worker in (frozen, other):
        assert await fleet.stop(worker) == 0
