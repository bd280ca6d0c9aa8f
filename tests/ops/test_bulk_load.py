"""When a load without an index is worth it, and when it has ended."""

import asyncio
from dataclasses import dataclass, field

import pytest

from worker.core.model import Partition
from worker.core.progress import Progress
from worker.core.vector_index import State
from worker.errors import StoreUnavailable
from worker.ops.bulk_load import Bounds, Ended, Load, Loading, Seen, left_of, missed, why_not

ONE, TWO, THREE, FOUR = (Partition("documents", number) for number in range(4))
EMPTY = Loading("docs", 0, State.EARLY)
FULL = Loading("docs", 100_000, State.VALID)


@pytest.mark.parametrize(
    ("bounds", "done", "left"),
    [
        (Bounds(0, 10), None, 10),
        (Bounds(0, 10), 0, 10),
        (Bounds(0, 10), 4, 6),
        (Bounds(0, 10), 10, 0),
        (Bounds(0, 10), 12, 0),  # more has come since, and is done
        (Bounds(7, 10), None, 3),
        (Bounds(7, 10), 2, 3),  # what retention removed is not to be done
        (Bounds(7, 7), None, 0),
        (Bounds(0, 0), None, 0),
    ],
)
def test_what_is_left_of_a_partition_is_what_is_still_there_and_not_done(bounds, done, left):
    assert bounds.left(done) == left


def test_what_is_left_is_named_by_partition():
    goal = {ONE: Bounds(0, 10), TWO: Bounds(0, 10), THREE: Bounds(0, 10), FOUR: Bounds(3, 3)}
    assert left_of(goal, {ONE: 10, TWO: 4}) == {TWO: 6, THREE: 10}


@pytest.mark.parametrize(
    ("lag", "collections", "why"),
    [
        (100, [EMPTY], None),
        (99, [EMPTY], "99 records wait, fewer than the threshold of 100"),
        (0, [Loading("docs", 5_000, State.MISSING)], None),
        (0, [EMPTY, Loading("docs", 5_000, State.DUE)], None),
        (0, [Loading("docs", 5_000, State.INVALID)], None),
        (1_000_000, [FULL], None),
        (999_999, [FULL], "docs has 100,000 chunks under an index"),
        (999_999, [EMPTY, FULL._replace(state=State.DIFFERS)], "docs has 100,000 chunks"),
        (100, [FULL._replace(rows=10)], None),
        (10**9, [], "no collection should have an index"),
        # Somebody works on it: whoever asks for the lock is told so.
        (100, [FULL._replace(state=State.BUILDING)], None),
    ],
)
def test_a_load_is_worth_it_where_much_waits_and_little_is_there(lag, collections, why):
    said = why_not(lag, 100, collections)
    assert said == why if why is None else why in said


def test_readers_miss_an_index_of_many_chunks():
    few = Loading("few", 9_999, State.VALID)
    many = Loading("many", 10_000, State.DIFFERS)
    none = Loading("none", 10**6, State.DUE)
    assert missed([few, many, none]) == [many]


@dataclass
class Group:
    """Progress as it is told at each look; the last one stays."""

    told: list[dict | Exception]
    halted: dict = field(default_factory=dict)
    held: dict = field(default_factory=dict)
    now: float = 0.0
    seen: list[Progress] = field(default_factory=list)

    async def look(self):
        found = self.told.pop(0) if len(self.told) > 1 else self.told[0]
        if isinstance(found, Exception):
            raise found
        self.now += 10
        return Seen(found, self.held)


async def load(group: Group, goal: dict, monkeypatch) -> Ended | None:
    monkeypatch.setattr("worker.ops.bulk_load._LOOK_SECONDS", 0)
    stop = asyncio.Event()
    one = Load(
        goal,
        group.look,
        halted=lambda: group.halted,
        stop=stop,
        clock=lambda: group.now,
        watch=group.seen.append,
    )
    async with asyncio.timeout(5):
        await one.run()
    assert stop.is_set()
    return one.ended


async def test_a_load_ends_when_every_partition_is_done_whoever_did_it(monkeypatch):
    goal = {one: Bounds(0, 100) for one in (ONE, TWO, THREE, FOUR)}
    all_ = dict.fromkeys(goal, 100)
    group = Group([{}, {}, {ONE: 100}, all_ | {TWO: 70}, StoreUnavailable("away"), all_])
    assert await load(group, goal, monkeypatch) == Ended(400, {}, {})
    assert group.seen == [
        Progress("loading", 0.0, None, "400 records to go"),
        Progress(
            "loading", 0.25, 60.0, "300 records to go in documents/1, documents/2, documents/3"
        ),
        Progress(
            "loading", 0.925, pytest.approx(2.43, rel=0.01), "30 records to go in documents/1"
        ),
    ]


async def test_a_load_of_nothing_ends_at_once(monkeypatch):
    assert await load(Group([{}]), {ONE: Bounds(5, 5)}, monkeypatch) == Ended(0, {}, {})


async def test_what_is_halted_is_not_waited_for_and_all_else_is(monkeypatch):
    goal = {ONE: Bounds(0, 10), TWO: Bounds(0, 10)}
    group = Group(
        [{}, {ONE: 3}, {ONE: 3, TWO: 10}], halted={ONE: "gone", THREE: "not asked for"}
    )
    ended = await load(group, goal, monkeypatch)
    assert ended == Ended(13, {ONE: 7}, {ONE: "gone"})


async def test_what_nothing_but_held_partitions_waits_for_is_said(monkeypatch):
    goal = {ONE: Bounds(0, 10), TWO: Bounds(0, 10), THREE: Bounds(0, 10)}
    before, waiting = {ONE: 10, TWO: 5}, {ONE: 10, TWO: 5, THREE: 5}
    group = Group(
        [{}, before, waiting, dict.fromkeys(goal, 10)],
        halted={THREE: "gone"},
        held={ONE: "done", TWO: "9 of 10 letters"},
    )
    await load(group, goal, monkeypatch)
    *_, last = group.seen
    assert last == Progress(
        "waiting for partitions that are held (`embedfleet partitions resume`)",
        pytest.approx(2 / 3),
        None,
        "10 records to go in documents/1, documents/2; documents/1: 9 of 10 letters",
    )
