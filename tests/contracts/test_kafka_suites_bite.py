"""The suites of the Kafka ports are red for every planted bug, so green means something."""

import inspect
from dataclasses import replace

import pytest

from schemas.dead_letter import NO_FACTS
from tests.contracts.test_dead_letters import DeadLettersContract
from tests.contracts.test_source import DoubtfulSpanContract, SourceContract
from tests.support.kafka_worlds import MemoryWorld
from tests.support.virtual_time import run
from worker.adapters.memory_kafka import MemoryDeadLetters, MemorySource
from worker.errors import BrokerUnavailable, PermanentError


class ForgetsMarkers(MemorySource):
    """The end of a log in markers is never reported."""

    def _read(self, partition, limit):
        batch = super()._read(partition, limit)
        return batch if batch is None or batch.records else None


class StarvesShallowPartitions(MemorySource):
    def _take(self, wanted, singly):
        return super()._take(wanted, singly)[:1]

    @property
    def _turn(self):
        return 0

    @_turn.setter
    def _turn(self, turn):
        pass


class AcceptsAnOldAssignment(MemorySource):
    def begin(self, assignment, partition, offset):
        return super().begin(self._number, partition, offset)


class CommitsWhatIsNotOurs(MemorySource):
    async def commit(self, offsets):
        self._broker.commit(self._group_name, offsets)


class FlowsBeforeBegin(MemorySource):
    def _take_over(self, partitions):
        super()._take_over(partitions)
        for partition in partitions:
            self.begin(self._number, partition, 0)


class NeverYields(MemorySource):
    async def poll(self, wanted, singly=frozenset()):
        return self._take(wanted, singly) or await super().poll(wanted, singly)


class DoesNotDrain(MemorySource):
    async def _give_up(self):
        self._holds = False
        self._flowing.clear()
        self._positions.clear()


class StaysInTheGroup(MemorySource):
    async def close(self):
        self._flowing.clear()


class ConfirmsFromMemory(MemorySource):
    async def confirm(self):
        return self._number, self._partitions


class TakesAsManyAsEver(MemorySource):
    """`singly` is not heard."""

    def _take(self, wanted, singly):
        return super()._take(wanted, frozenset())


class LosesWhatIsBeforeABrokenBatch(MemorySource):
    """As an exception out of a bulk read does."""

    def _read(self, partition, limit):
        batch = super()._read(partition, limit)
        if batch is not None and batch.next_offset in self._starts_of_broken(partition):
            return super()._read(partition, limit)
        return batch

    def _starts_of_broken(self, partition):
        return [broken.start for broken in self._broker.log(partition).broken]


class TellsWithTheRecordsStillInHand(LosesWhatIsBeforeABrokenBatch):
    def _read(self, partition, limit):
        batch = MemorySource._read(self, partition, limit)
        if batch is not None and batch.next_offset in self._starts_of_broken(partition):
            MemorySource._read(self, partition, limit)
        return batch


class PassesOverWhatCannotBeRead(MemorySource):
    def _read(self, partition, limit):
        for broken in self._broker.log(partition).broken:
            if self._positions[partition] in broken:
                self._positions[partition] = broken.stop
        return super()._read(partition, limit)


class FailsForWhatCannotBeRead(MemorySource):
    async def open(self, assignments):
        assignments.unreadable = lambda partition, *_: assignments.failed(partition, "corrupt")
        await super().open(assignments)


class GoesOnTrying(MemorySource):
    """A batch that cannot be read does not pause its partition."""

    def _read(self, partition, limit):
        was = partition in self._flowing
        batch = super()._read(partition, limit)
        if was:
            self._flowing.add(partition)
        return batch


class SpansNothingButTheOffset(MemorySource):
    async def batch(self, partition, offset):
        span = await super().batch(partition, offset)
        return span and replace(span, first=offset, last=offset)


class SpansOnlyWhatIsThere(MemorySource):
    """The first batch behind a gap is not looked for."""

    async def batch(self, partition, offset):
        span = await super().batch(partition, offset)
        return span if span is not None and span.first <= offset else None


class BelievesEveryHeader(MemorySource):
    async def batch(self, partition, offset):
        self._broker.log(partition).doubtful.clear()
        return await super().batch(partition, offset)


class CallsADoubtAnOutage(MemorySource):
    """Its callers ask again, for ever."""

    async def batch(self, partition, offset):
        try:
            return await super().batch(partition, offset)
        except PermanentError as error:
            raise BrokerUnavailable from error


class DropsHeaders(MemoryDeadLetters):
    async def publish(self, letter, recorded):
        await super().publish(letter, recorded)
        records = self._broker.log(self._broker.partitions([self._topic])[0]).records
        object.__setattr__(records[-1], "headers", records[-1].headers[1:])


class EmptiesNulls(MemoryDeadLetters):
    async def publish(self, letter, recorded):
        await super().publish(letter, recorded)
        records = self._broker.log(self._broker.partitions([self._topic])[0]).records
        object.__setattr__(records[-1], "value", records[-1].value or b"")


class AcknowledgesWithoutWriting(MemoryDeadLetters):
    async def publish(self, letter, recorded):
        if not self.letters:
            await super().publish(letter, recorded)


@pytest.mark.parametrize(
    "bug",
    [
        ForgetsMarkers,
        StarvesShallowPartitions,
        AcceptsAnOldAssignment,
        CommitsWhatIsNotOurs,
        FlowsBeforeBegin,
        NeverYields,
        DoesNotDrain,
        StaysInTheGroup,
        ConfirmsFromMemory,
        TakesAsManyAsEver,
        LosesWhatIsBeforeABrokenBatch,
        TellsWithTheRecordsStillInHand,
        PassesOverWhatCannotBeRead,
        FailsForWhatCannotBeRead,
        GoesOnTrying,
        SpansNothingButTheOffset,
        SpansOnlyWhatIsThere,
    ],
)
def test_the_source_suite_sees(bug):
    async def make_world(partitions=1):
        world = MemoryWorld(partitions)
        world.source_class = bug
        return world

    assert _turns_red(SourceContract(), lambda: {"make_world": make_world})


@pytest.mark.parametrize(
    "bug", [BelievesEveryHeader, CallsADoubtAnOutage, PassesOverWhatCannotBeRead]
)
def test_the_suite_of_doubtful_spans_sees(bug):
    def arguments():
        world = MemoryWorld(partitions=2)
        world.source_class = bug
        return {"world": world}

    assert _turns_red(DoubtfulSpanContract(), arguments)


class TellsNoFacts(MemoryDeadLetters):
    async def publish(self, letter, recorded):
        await super().publish(replace(letter, facts=NO_FACTS), recorded)


class CountsForItself(MemoryDeadLetters):
    async def publish(self, letter, recorded):
        await super().publish(letter, recorded._replace(attempts=1))


@pytest.mark.parametrize(
    "bug",
    [DropsHeaders, EmptiesNulls, AcknowledgesWithoutWriting, TellsNoFacts, CountsForItself],
)
def test_the_dead_letter_suite_sees(bug):
    def arguments():
        world = MemoryWorld()
        world.letters_class = bug
        return {"world": world}

    assert _turns_red(DeadLettersContract(), arguments)


def _turns_red(suite, arguments):
    # In virtual time: what a bug makes wait for ever costs nothing.
    for _, test in inspect.getmembers(suite, inspect.iscoroutinefunction):
        for case in _cases(test):
            try:
                run(test(**arguments(), **case))
            except (AssertionError, TimeoutError, BrokerUnavailable, pytest.fail.Exception):
                return True
    return False


def _cases(test):
    for mark in getattr(test, "pytestmark", []):
        names, cases = mark.args
        if isinstance(names, str):
            return [{names: case} for case in cases]
        return [dict(zip(names, case, strict=True)) for case in cases]
    return [{}]


def test_without_a_bug_the_suites_are_green():
    async def make_world(partitions=1):
        return MemoryWorld(partitions)

    assert not _turns_red(SourceContract(), lambda: {"make_world": make_world})
    assert not _turns_red(DoubtfulSpanContract(), lambda: {"world": MemoryWorld(partitions=2)})
    assert not _turns_red(DeadLettersContract(), lambda: {"world": MemoryWorld()})
