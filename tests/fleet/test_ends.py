"""How a worker ends: killed, told twice, told while it starts, or unable to start."""

import asyncio
import signal
from collections import defaultdict
from contextlib import asynccontextmanager
from itertools import count

import pytest

from tests.support import provider
from tests.support.fleet import DRAIN_SECONDS, QUICK_TIMERS, upsert
from worker.embedded.ports import ReservedPort


@pytest.fixture
def nobody():
    """An address at which nobody listens."""
    port = ReservedPort()
    yield f"127.0.0.1:{port.number}"
    port.release()


async def test_what_a_killed_worker_had_in_flight_and_no_more_is_embedded_again(make_fleet):
    fleet = await make_fleet(partitions=4)
    fleet.environment |= QUICK_TIMERS | {"EMBEDFLEET_EMBEDDING_MAX_INPUTS": "2"}
    fleet.provider.latency_seconds = 0.3
    asked = defaultdict(set)
    fleet.provider.script = lambda call: asked[call.request.query["worker"]].update(call.texts)
    workers = [
        await fleet.start(EMBEDFLEET_EMBEDDING_URL=f"{fleet.provider.url}?worker={name}")
        for name in ("first", "second")
    ]
    await fleet.until(lambda: fleet.is_shared_by(*workers))

    async def first_has_stored():
        return len(asked["first"].intersection((await fleet.stored()).values())) >= 50

    async with fleet.flow((upsert(f"d{n}", 1, f"text {n}") for n in count()), size=20):
        await fleet.until(first_has_stored)
        await fleet.provider_works_on(20)
        stored = set((await fleet.stored()).values())
        await fleet.crash(workers[0])
    in_flight = asked["first"] - stored
    await fleet.settled()
    assert await fleet.stored() == await fleet.expected()
    await fleet.check_vectors()
    twice = fleet.embedded_twice()
    assert twice.keys() <= in_flight
    assert set(twice.values()) <= {2}
    assert await fleet.stop(workers[1]) == 0


async def test_the_second_signal_ends_a_worker_at_once(make_fleet):
    fleet = await make_fleet(partitions=1)
    gate = asyncio.Event()
    fleet.provider.for_text("held", provider.held(gate))
    worker = await fleet.start()
    await worker.works_on(1)
    await fleet.publish([upsert("a", 1, "held")])
    await fleet.provider_works_on(1)
    worker.signal(signal.SIGTERM)
    await worker.logged("stopping")
    worker.signal(signal.SIGINT)
    assert await worker.ended(timeout_seconds=DRAIN_SECONDS / 2) == 128 + signal.SIGINT
    gate.set()
    assert sum((await fleet.committed()).values()) == 0


@asynccontextmanager
async def silent():
    """A server that accepts connections and never says a word: address, and its event."""
    called = asyncio.Event()

    async def listen(reader, writer):
        called.set()
        await reader.read(-1)
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}", called


@pytest.mark.parametrize("frozen", ["broker", "database"])
async def test_a_signal_while_a_frozen_server_is_waited_for_ends_a_worker_in_order(
    make_fleet, frozen
):
    fleet = await make_fleet(partitions=1)
    setting = {
        "broker": "EMBEDFLEET_KAFKA_BOOTSTRAP_SERVERS",
        "database": "EMBEDFLEET_DATABASE_URL",
    }[frozen]
    async with silent() as (address, called), asyncio.timeout(60):
        # The hard end comes first, after the drain's 6 s and 10 more, if this is waited for.
        worker = await fleet.start(
            EMBEDFLEET_KAFKA_REQUEST_SECONDS="40",
            EMBEDFLEET_KAFKA_SESSION_SECONDS="45",
            EMBEDFLEET_DATABASE_CONNECT_TIMEOUT_SECONDS="40",
            **{setting: address if frozen == "broker" else f"postgresql://me@{address}/docs"},
        )
        await called.wait()
        assert await fleet.stop(worker) == 0


async def test_a_signal_while_nobody_answers_ends_a_starting_worker_in_order(
    make_fleet, nobody
):
    fleet = await make_fleet(partitions=1)
    worker = await fleet.start(EMBEDFLEET_KAFKA_BOOTSTRAP_SERVERS=nobody)
    await worker.logged("join_failed")
    assert await fleet.stop(worker) == 0
    assert worker.actions()["stopped"] == 1


class TestExitCode2:
    """One sentence, no traceback."""

    async def check(self, fleet, *words, **environment):
        worker = await fleet.start(EMBEDFLEET_STARTUP_TIMEOUT_SECONDS="0.5", **environment)
        assert await worker.ended() == 2
        fleet.workers.remove(worker)
        output = worker.log_file.read_text()
        said = [line for line in output.splitlines() if not line.startswith("{")]
        assert len(said) == 1, output
        assert said[0].startswith("embedfleet: ")
        for word in words:
            assert word in said[0]

    async def test_for_a_broker_that_cannot_be_reached(self, make_fleet, nobody):
        fleet = await make_fleet(partitions=1)
        await self.check(fleet, "Kafka", EMBEDFLEET_KAFKA_BOOTSTRAP_SERVERS=nobody)

    async def test_for_a_database_that_cannot_be_reached(self, make_fleet, nobody):
        fleet = await make_fleet(partitions=1)
        url = f"postgresql://me@{nobody}/docs"
        await self.check(fleet, "PostgreSQL", EMBEDFLEET_DATABASE_URL=url)

    async def test_for_a_collection_of_other_dimensions_than_the_model(self, make_fleet):
        fleet = await make_fleet(partitions=1)
        fleet.provider.dimensions = 7
        await self.check(fleet, "test-model", "7", "8")

    async def test_for_migrations_that_are_missing(self, make_fleet):
        fleet = await make_fleet(partitions=1)
        await self.check(fleet, "embedfleet migrate up", EMBEDFLEET_DATABASE_SCHEMA="nowhere")
