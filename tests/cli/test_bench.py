"""`embedfleet bench`: workers measured on a real Kafka and a real PostgreSQL."""

import asyncio
import os
import re
import signal
import sys

import asyncpg
import msgspec
import pytest

from tests.support.orphans import children
from worker.adapters.kafka_admin import opened_admin

SMALL = ("--characters", "300", "--dimensions", "8")
PATIENCE_SECONDS = 90


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--workers", "9"), "9 workers need as many partitions: say --partitions"),
        (
            ("--model", "m", "--yes", "--requests-per-minute", "60"),
            "with --model say --embedding.requests-per-minute, for each worker",
        ),
        (("--model", "m", "--latency", "0.1"), "leave it away with --model"),
        (("--documents", "99"), "Must be >= 100."),
        (("--latency", "-1"), "Must be >= 0."),
        (("--size", "0"), "Must be >= 1."),
    ],
)
def test_what_cannot_be_measured_is_refused(embedfleet, arguments, why):
    ended = embedfleet("bench", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert why in ended.err


def test_a_provider_that_bills_is_asked_only_on_a_word(embedfleet):
    ended = embedfleet("bench", "--model", "m", "--embedding.url", "http://127.0.0.1:1/v1")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == (
        "nothing was done: say --yes, to send up to about 26,680,000 tokens to "
        "http://127.0.0.1:1/v1\n"
    )


def test_nobody_to_reach_is_one_sentence(embedfleet):
    ended = embedfleet("bench", "--kafka.bootstrap-servers", "127.0.0.1:1")
    assert ended.code == 2
    assert "Traceback" not in ended.err
    assert "Unable to bootstrap" in ended.err


async def left_behind(kafka_options, database) -> list[str]:
    """Topics and schemas of benchmarks."""
    async with opened_admin(kafka_options) as admin:
        topics = [name for name in await admin.list_topics() if "embedfleet_bench" in name]
    connection = await asyncpg.connect(database.url)
    try:
        rows = await connection.fetch(
            "select nspname from pg_namespace where nspname like 'embedfleet_bench%'"
        )
    finally:
        await connection.close()
    return topics + [row["nspname"] for row in rows]


@pytest.mark.real
@pytest.mark.usefixtures("on_kafka", "on_database")
class TestOnRealParts:
    @pytest.fixture
    def start(self):
        """`await start(*arguments)`: the command in a process of its own."""

        async def started(
            *arguments: str, documents=100, latency=0.01
        ) -> asyncio.subprocess.Process:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "worker", "bench", *SMALL, *arguments),
                *("--documents", str(documents), "--latency", str(latency)),
                env=dict(os.environ),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )

        return started

    async def test_three_workloads_are_measured_and_nothing_is_left(
        self, start, kafka_options, database
    ):
        process = await start("--workers", "2", "--partitions", "4", "--size", "100")
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
        assert process.returncode == 0, err.decode()
        head, _, columns, new, again, offered, _, late, memory = out.decode().splitlines()
        assert head == (
            "2 workers, 4 partitions, documents of 300 characters, 8 dimensions, "
            "a scripted provider of 0.01 s"
        )
        assert columns.split()[:2] == ["WORKLOAD", "DOCUMENTS/S"]
        assert new.startswith("new documents ")
        assert again.startswith("published again, unchanged ")
        assert again.split()[-2:] == ["0", "-"]
        assert offered.startswith("offered, ")
        assert re.fullmatch(r"searchable after: 50% within [\d.]+ s, 99% within [\d.]+ s", late)
        assert memory.endswith("MiB at most")
        assert await left_behind(kafka_options, database) == []

    async def test_json_has_the_figures_of_each_workload(self, start):
        process = await start("--index", "--requests-per-minute", "600", "--json")
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
        assert process.returncode == 0, err.decode()
        new, again, offered = msgspec.json.decode(out)
        assert [one["documents"] for one in (new, again)] == [100, 100]
        assert new["documents_per_second"] == pytest.approx(new["documents"] / new["seconds"])
        assert new["chunks_embedded"] > 0
        assert again["chunks_embedded"] == again["requests"] == 0
        assert offered["within_seconds"]["0.5"] <= offered["within_seconds"]["0.99"]
        assert all(one["cpu_us"] > 0 for one in (new, again, offered))

    async def test_texts_that_a_worker_would_refuse_are_one_sentence(
        self, start, kafka_options, database
    ):
        process = await start("--ingest.max-text-bytes", "100")
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
        assert (process.returncode, out) == (2, b"")
        assert b"the documents cannot be published: " in err.splitlines()[-1]
        assert b"Traceback" not in err
        assert await left_behind(kafka_options, database) == []

    @pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
    async def test_an_interrupt_leaves_nothing_behind(
        self, start, kafka_options, database, ending
    ):
        process = await start(documents=100_000)
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for line in process.stderr:
                if b"new documents" in line:
                    break
            if ending is signal.SIGINT:  # a terminal sends it to all of them
                os.killpg(process.pid, ending)
            else:
                process.send_signal(ending)
            _, err = await process.communicate()
        assert process.returncode == 130, err.decode()
        assert b"Traceback" not in err
        assert await left_behind(kafka_options, database) == []

    async def test_an_interrupt_costs_no_figure_that_was_measured(self, start):
        # What is offered then takes twice as long as these have taken.
        process = await start(latency=0.5, documents=2_000)
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for line in process.stderr:
                if b"offered" in line:
                    break
            process.send_signal(signal.SIGINT)
            out, _ = await process.communicate()
        _, _, _, new, again, _, memory = out.decode().splitlines()
        assert process.returncode == 130
        assert new.startswith("new documents ")
        assert again.startswith("published again, unchanged ")
        assert memory.endswith("MiB at most")

    async def test_workers_end_with_a_benchmark_that_is_killed(
        self, start, kafka_options, database
    ):
        process = await start(documents=100_000)
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for line in process.stderr:
                if b"new documents" in line:
                    break
            watched = [os.pidfd_open(pid) for pid in children(process.pid)]
            assert len(watched) >= 2  # a provider and a worker
            process.kill()
            await process.wait()
            for descriptor in watched:
                await ended(descriptor)
                os.close(descriptor)
        name = (await left_behind(kafka_options, database))[-1]
        connection = await asyncpg.connect(database.url)
        await connection.execute(f'drop schema "{name}" cascade')
        await connection.close()
        async with opened_admin(kafka_options) as admin:
            await admin.delete_topics([name, f"{name}.dead-letters"])


async def ended(descriptor: int) -> None:
    """Wait until the process of a pidfd has ended."""
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(descriptor)
