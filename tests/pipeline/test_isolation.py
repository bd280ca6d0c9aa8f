"""A record of which workers die is found by letting its partition run one record at a time."""

import asyncio
from collections import Counter

import pytest

from tests.support.universe import GROUP, TOPIC, live, upsert
from worker.adapters.memory_broker import Log, Unreadable
from worker.core.isolation import Alone
from worker.core.model import Partition
from worker.errors import BrokerUnavailable, ProviderUnavailable
from worker.pipeline import decode, prepare

SPLIT = prepare.split
KILLER = "a text of which the worker dies"


class Died(Exception):
    """The process is gone."""


@pytest.fixture
def dies_of_cutting(monkeypatch):
    split = prepare.split

    def split_or_die(text, *how):
        if text == KILLER:
            raise Died
        return split(text, *how)

    monkeypatch.setattr(prepare, "split", split_or_die)


@pytest.fixture
def dies_of_decoding(monkeypatch):
    decode_record = decode.decode_record

    def decode_or_die(key, value, *more):
        if KILLER.encode() in value:
            raise Died
        return decode_record(key, value, *more)

    monkeypatch.setattr(decode, "decode_record", decode_or_die)


async def supervise(universe, *, at_most=30) -> int:
    """Run one worker, and start another whenever it has died, until all is done."""
    deaths = 0
    while True:
        member = universe.start()
        settled = asyncio.ensure_future(universe.settled())  # noqa: TID251
        await asyncio.wait({member.task, settled}, return_when=asyncio.FIRST_COMPLETED)
        if settled.done() and not settled.exception():
            return deaths
        settled.cancel()
        await asyncio.wait({member.task, settled})
        universe.members.remove(member)
        assert member.task.exception() is not None
        deaths += 1
        assert deaths <= at_most


def reasons(universe):
    return Counter(letter.reason for letter in universe.letters.letters)


@pytest.mark.parametrize("at", [0, 1, 40])
@pytest.mark.parametrize("how", ["dies_of_cutting", "dies_of_decoding"])
def test_a_killer_is_dead_lettered_by_position_and_nobody_else_is(request, how, at):
    request.getfixturevalue(how)

    async def story(universe):
        for number in range(60):
            text = KILLER if number == at else f"text {number}"
            universe.publish(upsert(f"d{number}", 1, text), partition=0)
        deaths = await supervise(universe)
        assert 4 <= deaths <= 6
        assert reasons(universe) == {"worker_killer": 1}
        (letter,) = universe.letters.letters
        assert letter.record.position.offset == at
        assert KILLER.encode() in letter.record.value
        assert letter.tenant == "tenant"
        for number in range(60):
            if number != at:
                assert universe.text(f"d{number}") == f"text {number}"

    live(story, partitions=1)


def test_several_killers_in_several_partitions_are_found_one_by_one(dies_of_cutting):
    async def story(universe):
        killers = {(0, 3), (0, 4), (1, 0), (2, 25)}
        for number in range(30):
            for partition in range(3):
                is_killer = (partition, number) in killers
                text = KILLER if is_killer else f"text {partition} {number}"
                document = upsert(f"d{partition}-{number}", 1, text)
                universe.publish(document, partition=partition)
        await supervise(universe)
        found = {
            (letter.record.position.partition, letter.record.position.offset)
            for letter in universe.letters.letters
        }
        assert found == killers
        assert reasons(universe) == {"worker_killer": 4}
        assert len(universe.database.state.documents) == 90 - 4

    live(story, partitions=3)


def test_the_other_partitions_go_on(dies_of_cutting):
    async def story(universe):
        universe.publish(upsert("killer", 1, KILLER), partition=0)
        for number in range(200):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"), partition=1)
        await supervise(universe)
        offsets = [letter.record.position for letter in universe.letters.letters]
        assert [tuple(offset) for offset in offsets] == [(TOPIC, 0, 0)]
        assert len(universe.database.state.documents) == 200

    live(story, partitions=2)


@pytest.mark.parametrize("silent", [False, True])
def test_workers_that_are_killed_in_an_outage_blame_nobody(silent):
    async def story(universe):
        is_down = True

        async def script(request):
            if is_down and silent:
                await asyncio.sleep(30)
            if is_down:
                raise ProviderUnavailable("503", status=503)

        universe.embedder.script = script
        for number in range(20):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"), partition=0)
        for _ in range(12):
            member = universe.start(guarded=True)
            await universe.embedder.in_flight(1)
            await universe.kill(member)
        entry = universe.database.state.crashes[GROUP, Partition(TOPIC, 0)]
        assert entry.unclean_ends >= 2
        is_down = False
        universe.start(guarded=True)
        await universe.settled()
        assert universe.letters.letters == []
        assert len(universe.database.state.documents) == 20

    live(story, partitions=1)


class Seen(dict):
    """What was marked at the first of each call."""

    def __init__(self, universe):
        self.universe = universe

    @property
    def entry(self):
        return self.universe.database.state.crashes.get((GROUP, Partition(TOPIC, 0)))

    async def hook(self, call, moment):
        if moment == "before" and call in {"read", "apply", "collection"}:
            self.setdefault(call, self.entry.alone)

    async def script(self, request):
        await asyncio.sleep(1)
        self["embed"] = self.entry.alone

    def split(self, *how):
        self["cut"] = self.entry.alone
        return SPLIT(*how)

    async def begun_by(self, owner):
        while self.entry is None or self.entry.owner != owner:  # noqa: ASYNC110
            await asyncio.sleep(0)


def test_the_mark_stands_while_the_worker_is_busy_and_not_while_it_waits(monkeypatch):
    async def story(universe):
        universe.publish(upsert("a", 1, "text"), partition=0)
        seen = Seen(universe)
        for number in range(2):
            member = universe.start()
            await seen.begun_by(f"worker-{number}")
            await universe.kill(member)
        universe.hook, universe.embedder.script = seen.hook, seen.script
        monkeypatch.setattr(prepare, "split", seen.split)
        universe.start()
        await universe.settled()
        busy = Alone(0, fetching=False)
        waits = dict.fromkeys(("collection", "read", "embed", "apply"))
        assert seen == {**waits, "cut": busy}
        assert seen.entry.alone is None

    live(story, partitions=1)


def test_a_suspect_waits_until_nothing_else_is_in_flight(dies_of_cutting):
    async def story(universe):
        company = []

        async def hook(call, moment):
            if (call, moment) == ("mark", "committed"):
                entry = universe.database.state.crashes[GROUP, Partition(TOPIC, 0)]
                if entry.suspect and entry.alone == entry.suspect.alone:
                    company.append(universe.members[-1].worker.dispatch.scheduler.documents)

        async def script(request):
            await asyncio.sleep(0.5)

        universe.embedder.script, universe.hook = script, hook
        universe.publish(upsert("killer", 1, KILLER), partition=0)
        for number in range(40):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"), partition=1)
        await supervise(universe)
        # Then itself, while it is cut and when the worker ends.
        assert company == [0, 1, 1]

    live(story, partitions=2)


def test_behind_a_killer_the_partition_runs_freely_again(dies_of_cutting):
    async def story(universe):
        universe.publish(upsert("killer", 1, KILLER), partition=0)
        for number in range(300):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"), partition=0)
        await supervise(universe)
        (life,) = universe.members[0].worker.lives
        assert life.isolation is None
        assert reasons(universe) == {"worker_killer": 1}

    live(story, partitions=1)


def test_a_partition_that_is_given_back_in_order_has_no_unclean_end():
    async def story(universe):
        universe.publish(upsert("a", 1, "text"), partition=0)
        for _ in range(4):
            member = universe.start()
            await universe.settled()
            await universe.stop(member)
        entry = universe.database.state.crashes[GROUP, Partition(TOPIC, 0)]
        assert (entry.ended, entry.unclean_ends) == (True, 0)

    live(story, partitions=1)


@pytest.fixture
def dies_of_fetching(monkeypatch):
    read = Log.read

    def read_or_die(log, offset, limit):
        try:
            return read(log, offset, limit)
        except Unreadable:
            raise Died from None

    monkeypatch.setattr(Log, "read", read_or_die)


@pytest.mark.parametrize("batch", [range(3), range(1, 2), range(40, 44)])
def test_a_batch_that_kills_when_it_is_fetched_is_skipped_by_its_header(
    dies_of_fetching, batch
):
    async def story(universe):
        for number in range(60):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"), partition=0)
        universe.broker.log(Partition(TOPIC, 0)).spoil(batch.start, batch.stop - 1)
        deaths = await supervise(universe)
        assert 4 <= deaths <= 6
        (letter,) = universe.letters.letters
        assert (letter.reason, letter.record.position.offset) == ("worker_killer", batch.start)
        assert (letter.record.key, letter.record.value) == (None, None)
        assert f"offsets {batch.start} to {batch.stop - 1}: " in letter.detail
        stored = {key.id for key in universe.database.state.documents}
        assert stored == {f"d{number}" for number in range(60) if number not in batch}

    live(story, partitions=1)


@pytest.mark.parametrize("batch", [range(3), range(1, 2), range(40, 44), range(57, 60)])
def test_a_batch_that_cannot_be_read_is_a_pointer_and_what_stands_behind_it_is_stored(batch):
    async def story(universe):
        for number in range(60):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"), partition=0)
        universe.broker.log(Partition(TOPIC, 0)).spoil(batch.start, batch.stop - 1)
        universe.start()
        await universe.settled()
        (letter,) = universe.letters.letters
        position = letter.record.position
        assert (letter.reason, position.offset) == ("unreadable_batch", batch.start)
        assert f"offsets {batch.start} to {batch.stop - 1}: a batch of " in letter.detail
        assert len(universe.database.state.documents) == 60 - len(batch)

    live(story, partitions=1)


def test_an_unreadable_batch_in_an_isolated_partition_is_skipped_as_well(dies_of_cutting):
    async def story(universe):
        for number in range(30):
            text = KILLER if number == 20 else f"text {number}"
            universe.publish(upsert(f"d{number}", 1, text), partition=0)
        universe.broker.log(Partition(TOPIC, 0)).spoil(22, 24)
        await supervise(universe)
        assert reasons(universe) == {"worker_killer": 1, "unreadable_batch": 1}
        assert len(universe.database.state.documents) == 30 - 4

    live(story, partitions=1)


def test_what_stands_behind_an_unreadable_batch_waits_for_the_brokers_answer():
    async def story(universe):
        for number in range(10):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"), partition=0)
        universe.broker.log(Partition(TOPIC, 0)).spoil(4, 5)
        universe.broker.fail("batch", *[BrokerUnavailable()] * 5)
        universe.start()
        await universe.settled()
        assert reasons(universe) == {"unreadable_batch": 1}
        assert len(universe.database.state.documents) == 8

    live(story, partitions=1)
