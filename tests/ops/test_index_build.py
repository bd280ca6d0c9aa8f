"""A build goes from what is there to what is wanted, and tells how far it is."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from tests.support.works import collection
from worker.config import IndexBuildOptions
from worker.core.index_facts import BuildProgress
from worker.core.progress import Progress
from worker.core.vector_index import NO_INDEX, Place, Places, Present, VectorIndex
from worker.errors import ConfigError, StoreUnavailable
from worker.ops.index_build import Built, IndexBuild, memory_for

MIB = 2**20
DOCS = replace(collection("docs"), dimensions=1536, index=VectorIndex())
GOOD = Present("hnsw", 16, 64)
OPTIONS = IndexBuildOptions()


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Server:
    """Indexes in memory; a build takes as many looks as there is progress to be told."""

    clock: Clock
    rows: int = 20_000
    there: Places = field(default_factory=dict)
    script: list[BuildProgress | Exception | None] = field(default_factory=list)
    error: Exception | None = None
    notices: list[str] = field(default_factory=list)
    wanted: VectorIndex = DOCS.index
    calls: list[object] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.told_all = asyncio.Event()

    @asynccontextmanager
    async def locked(self, one, application):
        self.calls.append(("locked", one.name, application))
        yield self
        self.calls.append("unlocked")

    async def collection(self, name):
        return replace(DOCS, name=name, index=self.wanted)

    async def found(self, _):
        return dict(self.there)

    async def progress(self, _):
        self.clock.now += 1
        if not self.script:
            self.told_all.set()
            return None
        told = self.script.pop(0)
        if isinstance(told, Exception):
            raise told
        return told

    async def keep_rate(self, _, rate):
        self.rates.append(rate)

    async def count(self):
        return self.rows

    async def create(self, place, _, *, rows, memory_bytes, workers):
        self.calls.append(("create", place, rows, memory_bytes, workers))
        if self.error is not None:
            raise self.error
        await self.told_all.wait()
        self.there[place] = GOOD

    async def analyse(self):
        self.calls.append("analyse")

    async def drop(self, place):
        self.calls.append(("drop", place))
        if self.script:
            await self.told_all.wait()
        del self.there[place]

    async def promote(self):
        self.calls.append("promote")
        self.there[Place.MAIN] = self.there.pop(Place.NEXT)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr("worker.ops.index_build._LOOK_SECONDS", 0.001)


async def run(server: Server, *, options=OPTIONS, **how) -> tuple[Built, list[Progress]]:
    told: list[Progress] = []
    build = IndexBuild(server, server, options, clock=server.clock, watch=told.append)
    return await build.run(DOCS, by="a test", **how), told


def server(**how) -> Server:
    return Server(Clock(), **how)


async def test_an_index_that_is_missing_is_built_under_the_lock():
    one = server()
    built, told = await run(one)
    need = 20_000 * (3072 + 32 * 16 + 206)
    assert one.calls == [
        ("locked", "docs", "a test"),
        ("create", Place.MAIN, 20_000, need + need // 10 + 8 * MIB, None),
        "analyse",
        "unlocked",
    ]
    assert built.seconds is not None
    assert built == Built("docs", ["built the index"], 20_000, built.seconds)
    assert one.rates == [20_000 / built.seconds]
    assert [one.doing for one in told] == ["counting rows", "analysing"]


async def test_what_is_as_it_should_be_is_left_alone():
    one = server(there={Place.MAIN: GOOD})
    built, told = await run(one)
    assert built == Built("docs", [])
    assert (told, one.rates) == ([], [])


async def test_what_it_should_be_is_what_was_said_last():
    """Who waits for the lock of an hour's build has an old collection in his hands."""
    one = server(there={Place.MAIN: GOOD}, wanted=NO_INDEX)
    built, _ = await run(one)
    assert built.did == ["dropped the index"]


async def test_whom_a_drop_waits_for_is_told():
    waiting = BuildProgress("waiting for a transaction's end (PostgreSQL's process 7)", None)
    one = server(there={Place.MAIN: GOOD}, wanted=NO_INDEX, script=[waiting])
    built, told = await run(one)
    assert built.did == ["dropped the index"]
    assert told == [Progress("dropping an index"), Progress(waiting.phase)]


async def test_a_rebuild_exchanges_it():
    one = server(there={Place.MAIN: GOOD})
    built, told = await run(one, rebuild=True)
    assert one.calls[1][:2] == ("create", Place.NEXT)
    assert one.calls[2:-1] == ["analyse", ("drop", Place.MAIN), "promote"]
    assert built.did == [
        "built the index that replaces it",
        "dropped the index",
        "put the new index in its place",
    ]
    assert [now.doing for now in told] == [
        "counting rows",
        "analysing",
        "dropping an index",
        "putting the new index in its place",
    ]


async def test_what_a_build_left_is_dropped_first():
    left = GOOD._replace(is_valid=False)
    one = server(there={Place.MAIN: left, Place.NEXT: left})
    built, _ = await run(one)
    assert built.did == [
        "dropped the index",
        "dropped what was left of a build",
        "built the index",
    ]


async def test_progress_is_told_with_the_time_that_is_left_at_its_pace():
    phases = [
        BuildProgress("loading", 0.0),
        BuildProgress("loading", 0.1),
        BuildProgress("loading", 0.2),
        StoreUnavailable("this look failed"),
        BuildProgress("loading", 0.8),
        BuildProgress("checking", None),
        BuildProgress("scanning", 0.5),
        BuildProgress("scanning", 0.5),
    ]
    _, told = await run(server(script=phases))
    assert told[1:-1] == [
        Progress("loading", 0.0),
        Progress("loading", 0.1),  # after one second
        Progress("loading", 0.2, pytest.approx(8.0)),
        Progress("loading", 0.8, pytest.approx(1.0)),
        Progress("checking"),
        Progress("scanning", 0.5),
        Progress("scanning", 0.5),
    ]


async def test_what_the_server_says_of_it_is_handed_on():
    built, _ = await run(server(notices=["the graph no longer fits"]))
    assert built.notices == ("the graph no longer fits",)


async def test_a_build_that_fails_raises_what_it_failed_of_and_keeps_no_rate():
    one = server(error=StoreUnavailable("cancelled"))
    with pytest.raises(StoreUnavailable, match="cancelled"):
        await run(one)
    assert one.rates == []


async def test_the_rate_of_a_tiny_build_says_nothing():
    one = server(rows=999)
    assert (await run(one))[0].rows == 999
    assert one.rates == []


async def test_helpers_are_those_that_are_asked_for():
    one = server()
    await run(one, options=IndexBuildOptions(parallel_workers=3))
    assert one.calls[1][-1] == 3


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(0, 64 * MIB), (14_000, 64 * MIB), (10**7, 1024 * MIB)],
)
def test_memory_is_at_least_what_the_server_has_anyway_and_at_most_what_is_allowed(
    rows, expected
):
    assert memory_for(IndexBuildOptions(), DOCS, rows) == expected


def test_lists_that_do_not_fit_are_refused_as_the_server_would_in_the_midst_of_it():
    lists = replace(DOCS, index=VectorIndex("ivfflat", lists=5_000))
    with pytest.raises(ConfigError, match=r"63\d\d MiB .* raise index.max_memory_bytes"):
        memory_for(IndexBuildOptions(), lists, 10**6)
    assert memory_for(IndexBuildOptions(max_memory_bytes=2**33), lists, 10**6) > 2**32
