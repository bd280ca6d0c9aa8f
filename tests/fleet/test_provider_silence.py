"""A provider that says nothing for long: nobody is expelled, and nothing is given up."""

import asyncio

from tests.support import provider
from tests.support.fleet import upsert

MAX_POLL_INTERVAL_SECONDS = 3


async def test_a_silence_longer_than_the_poll_interval_expels_nobody_and_loses_nothing(
    make_fleet,
):
    fleet = await make_fleet(partitions=2)
    fleet.environment |= {
        "EMBEDFLEET_KAFKA_MAX_POLL_INTERVAL_SECONDS": str(MAX_POLL_INTERVAL_SECONDS),
        # The queue is full, so no record is polled; and each request runs into its limit.
        "EMBEDFLEET_QUEUE_MAX_DOCUMENTS": "20",
        "EMBEDFLEET_QUEUE_MAX_IN_FLIGHT": "10",
        "EMBEDFLEET_EMBEDDING_TIMEOUT_SECONDS": "1",
        "EMBEDFLEET_EMBEDDING_MAX_INPUTS": "2",
        "EMBEDFLEET_RETRY_CAP_SECONDS": "0.5",
    }
    workers = [await fleet.start(), await fleet.start()]
    await fleet.until(lambda: fleet.is_shared_by(*workers))
    assigned = [worker.actions()["assigned"] for worker in workers]
    answers = asyncio.Event()
    fleet.provider.script = lambda _: None if answers.is_set() else provider.held(answers)
    await fleet.publish(upsert(f"d{n}", 1, f"text {n}") for n in range(200))
    for worker in workers:
        await worker.shows(lambda state: state["queue"]["documents"] >= 20)
    before = await fleet.committed()
    await fleet.pass_time(2 * MAX_POLL_INTERVAL_SECONDS)
    assert await fleet.committed() == before
    for worker in workers:
        status, _ = await worker.ask("/livez")
        assert status == 200
    answers.set()
    await fleet.settled()
    assert await fleet.letters() == []
    assert await fleet.stored() == await fleet.expected()
    assert [worker.actions()["assigned"] for worker in workers] == assigned
