"""Every offset that is committed is covered, whoever ends which work when."""

from dataclasses import dataclass, field
from itertools import product
from typing import get_args
from uuid import UUID

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from schemas.dead_letter import Reason
from tests.support.works import claim, rejected, upsert
from worker.config import DeadLetterOptions
from worker.core.flood import FloodGuard
from worker.core.isolation import Isolation
from worker.core.lifecycle import (
    COMPLETES,
    Halt,
    Lives,
    PartitionLife,
    Phase,
    Start,
    decide_start,
    landmark,
    other_topic,
)
from worker.core.model import (
    Claim,
    DeadLettered,
    Deleted,
    Landmark,
    Outcome,
    Partition,
    Position,
    Progress,
    Record,
    Released,
    Stored,
    Superseded,
    Unchanged,
    Work,
)

OUTCOMES: list[tuple[Outcome, bool]] = [
    (Stored(), True),
    (Deleted(), True),
    (Unchanged(), True),
    (Superseded(), True),
    (DeadLettered(Reason.REJECTED_INPUT), True),
    (Released(), False),
]


# ---- outcomes ----


def test_every_outcome_there_is_completes_its_offset_or_not():
    assert set(COMPLETES) == set(get_args(Outcome))
    assert {type(outcome): completes for outcome, completes in OUTCOMES} == COMPLETES


def running(of: Claim | None = None, *, offset: int = 0, works: int = 3) -> PartitionLife:
    of = of or claim()
    life = PartitionLife(of.partition, assignment=1)
    life.start(of, offset)
    for n in range(offset, offset + works):
        life.track(upsert("a", offset=n, of=of).record, at=n)
    return life


def test_the_oldest_record_is_the_first_that_was_polled_and_has_not_ended():
    life = running(works=3)
    assert life.oldest_at == 0
    life.end_work(upsert("a", offset=1), Stored())
    assert life.oldest_at == 0
    life.end_work(upsert("a", offset=0), Stored())
    assert life.oldest_at == 2
    life.drain()
    assert life.oldest_at == 2
    life.end_work(upsert("a", offset=2), Stored())
    assert life.oldest_at is None


@pytest.mark.parametrize(
    "stand",
    [
        pytest.param(lambda life: life.hold("a flood"), id="held"),
        pytest.param(lambda life: life.halt("re-created"), id="halted"),
        pytest.param(lambda life: life.fence(claim()), id="fenced"),
    ],
)
def test_of_a_partition_that_stands_no_record_is_in_work(stand):
    life = running()
    stand(life)
    assert (life.in_flight, life.oldest_at) == (3, None)


@pytest.mark.parametrize(("outcome", "completes"), OUTCOMES)
def test_an_outcome_completes_its_own_offset_and_no_other(outcome, completes):
    life = running()
    life.end_work(upsert("a", offset=0), outcome)
    assert life.progress.next_offset == int(completes)
    assert (life.settled, life.in_flight) == (int(completes), 3 - completes)


@pytest.mark.parametrize("outcome", [outcome for outcome, _ in OUTCOMES])
def test_a_task_of_an_old_claim_completes_nothing_of_a_new_one(outcome):
    """C2 of the protocol: A, then B, then A again, and A's first task ends late."""
    old, new = claim(epoch=1), claim(epoch=3)
    life = running(new)
    life.end_work(upsert("a", offset=0, of=old), outcome)
    assert (life.progress.next_offset, life.settled) == (0, 0)


def test_what_is_not_tracked_yet_is_not_passed():
    """C3 of the protocol: nothing is in flight, and the client's position is further on."""
    life = running(works=1)
    life.end_work(upsert("a", offset=0), Stored())
    assert life.in_flight == 0
    assert life.progress.next_offset == 1
    life.advance(5)
    assert life.progress.next_offset == 5


def test_progress_names_a_settled_record_below_it():
    mark = Landmark(4, 0, b"12345678")
    life = running(claim()._replace(landmark=mark), offset=5)
    works = [upsert("a", offset=offset, of=life.claim) for offset in (5, 6, 7)]
    assert life.progress == Progress(5, mark)
    life.end_work(works[1], Stored())
    assert life.progress == Progress(5, mark)
    life.end_work(works[0], Released())
    assert life.progress == Progress(5, mark)
    life.end_work(works[0], Stored())
    assert life.progress == Progress(7, landmark(works[0].record))


def test_a_pointer_to_a_batch_that_cannot_be_read_is_no_landmark():
    mark = Landmark(4, 0, b"12345678")
    life = running(claim()._replace(landmark=mark), offset=5, works=1)
    pointer = rejected(offset=5, of=life.claim)
    pointer.record = Record(pointer.position, 9, None, None)
    life.end_work(pointer, DeadLettered(Reason.UNREADABLE_BATCH))
    assert life.progress == Progress(6, mark)


@pytest.mark.parametrize(("key", "value"), [(b"key", None), (None, b"value")])
def test_a_record_with_a_key_or_a_value_alone_is_a_landmark(key, value):
    life = running(works=1)
    work = upsert("a", offset=0)
    work.record = Record(work.position, 9, key, value)
    life.end_work(work, Stored())
    assert life.progress == Progress(1, landmark(work.record))


def test_a_work_that_was_never_tracked_is_no_landmark():
    life = running(works=0)
    life.end_work(upsert("a", offset=0), Stored())
    assert life.progress == Progress(0, None)


def test_an_offset_is_in_flight_until_its_work_has_ended():
    life = running(works=1)
    assert [life.has_in_flight(offset) for offset in (0, 1)] == [True, False]
    life.end_work(upsert("a", offset=0), Stored())
    assert not life.has_in_flight(0)


def test_a_held_partition_completes_what_is_in_flight_and_takes_nothing_in():
    life = running()
    life.hold("too many")
    assert (life.phase, life.problem) == (Phase.HELD, "too many")
    life.end_work(upsert("a", offset=0), Stored())
    assert life.progress.next_offset == 1
    life.drain()
    assert life.phase is Phase.HELD
    assert life.fence(life.claim)


def test_only_a_running_partition_can_be_held():
    life = running()
    life.drain()
    life.hold("too many")
    assert (life.phase, life.problem) == (Phase.DRAINING, None)


def test_a_partition_that_begins_again_has_no_problem_and_no_guard_of_before():
    life = running()
    life.hold("too many")
    life.gives_up = True
    life.start(claim(epoch=2), 0)
    assert (life.phase, life.problem, life.room) == (Phase.RUNNING, None, None)
    assert life.gives_up is False


def test_there_is_room_as_far_as_its_guards_let_it():
    options = DeadLetterOptions(probe_records=2)
    life = PartitionLife(claim().partition, assignment=1)
    life.start(claim(), 0, flood=FloodGuard(options))
    assert life.room is None
    life.start(claim(), 0, flood=FloodGuard(options, is_held=True))
    assert life.room == 2
    one_by_one = Isolation(until=10, suspect=None, given_up=0)
    life.start(claim(), 0, isolation=one_by_one)
    assert life.room == 1
    life.start(claim(), 0, flood=FloodGuard(options, is_held=True), isolation=one_by_one)
    assert life.room == 1
    life.flood.took(2)
    assert life.room == 0


def test_there_is_no_room_while_a_batch_is_given_up():
    life = running()
    life.gives_up = True
    assert life.room == 0


def test_a_landmark_knows_a_record_by_offset_timestamp_and_key():
    record = Record(Position("documents", 0, 5), 7, b"key", b"value")
    others = [
        Record(Position("documents", 0, 6), 7, b"key", b"value"),
        Record(Position("documents", 0, 5), 8, b"key", b"value"),
        Record(Position("documents", 0, 5), 7, b"yek", b"value"),
        Record(Position("documents", 0, 5), 7, None, b"value"),
    ]
    assert len({landmark(one) for one in (record, *others)}) == 5
    assert landmark(record) == landmark(Record(record.position, 7, b"key", b"other"))
    assert len(landmark(record).key_hash) == 8


def test_what_a_landmark_keeps_of_a_key_stays_what_it_is_in_the_tables():
    keys = {None: "e4a6a0577479b2b4", b"": "e4a6a0577479b2b4", b"key": "ce7cccadc3a94cf5"}
    for key, digest in keys.items():
        record = Record(Position("documents", 0, 5), 7, key, b"value")
        assert landmark(record) == Landmark(5, 7, bytes.fromhex(digest))


# ---- phases ----

ENDINGS = {
    Phase.DRAINING: PartitionLife.drain,
    Phase.FENCED: lambda life: life.fence(life.claim),
    Phase.HALTED: lambda life: life.halt("why"),
    Phase.ENDED: PartitionLife.end,
}


@pytest.mark.parametrize("phase", ENDINGS)
def test_only_a_running_or_draining_partition_completes_offsets(phase):
    life = running()
    ENDINGS[phase](life)
    assert life.phase is phase
    still = phase is Phase.DRAINING
    assert life.owns(claim()) is still
    life.end_work(upsert("a", offset=0), Stored())
    assert life.progress.next_offset == int(still)


def test_nothing_is_owned_before_the_claim():
    life = PartitionLife(claim().partition, assignment=4)
    assert (life.phase, life.claim, life.assignment) == (Phase.CLAIMING, None, 4)
    assert (life.problem, life.flood, life.isolation) == (None, None, None)
    assert life.gives_up is False
    assert not life.owns(claim())
    assert not life.fence(claim())
    life.drain()
    assert life.phase is Phase.CLAIMING


def test_it_waits_for_its_claim_until_it_starts():
    life = PartitionLife(claim().partition, assignment=1)
    assert life.is_claiming()
    life.start(claim(), 0)
    assert not life.is_claiming()


def test_only_the_claim_itself_is_fenced():
    life = running(claim(epoch=2))
    assert not life.fence(claim(epoch=1))
    assert life.phase is Phase.RUNNING
    life.drain()
    assert life.fence(claim(epoch=2))
    assert life.phase is Phase.FENCED
    assert not life.fence(claim(epoch=2)), "what is fenced already is not fenced again"


@pytest.mark.parametrize("phase", [Phase.FENCED, Phase.HALTED, Phase.ENDED])
def test_a_partition_that_is_not_ours_any_more_does_not_drain(phase):
    life = running()
    ENDINGS[phase](life)
    life.drain()
    assert life.phase is phase


def test_a_halted_partition_says_why():
    life = running()
    assert life.problem is None
    life.halt("the topic was re-created")
    assert (life.phase, life.problem) == (Phase.HALTED, "the topic was re-created")


def test_a_new_claim_starts_with_an_empty_tracker_where_it_is_told():
    life = running(claim(epoch=1), offset=5)
    life.end_work(upsert("a", offset=5), Stored())
    life.fence(claim(epoch=1))
    life.start(claim(epoch=2), 3)
    assert (life.phase, life.claim) == (Phase.RUNNING, claim(epoch=2))
    assert life.progress == Progress(3, None)
    assert (life.settled, life.in_flight) == (0, 0)


# ---- the lives of a worker ----


def test_a_new_assignment_ends_the_one_before_it():
    lives = Lives()
    old, new = running(claim(epoch=1)), running(claim(epoch=2))
    lives.begin(old)
    lives.begin(new)
    assert (old.phase, new.phase) == (Phase.ENDED, Phase.RUNNING)
    assert list(lives) == [new]
    assert lives.find(new.partition) is new


def test_an_assignment_ends_once_and_another_partition_goes_on():
    lives = Lives()
    ours, other = running(), running(claim(1))
    lives.begin(ours)
    lives.begin(other)
    lives.end(ours.partition)
    lives.end(ours.partition)
    assert ours.phase is Phase.ENDED
    assert lives.find(ours.partition) is None
    assert list(lives) == lives.in_phase(Phase.RUNNING) == [other]


def test_a_life_is_found_only_under_the_claim_it_works_under_now():
    lives = Lives()
    life = running(claim(epoch=2))
    lives.begin(life)
    assert lives.under(claim(epoch=2)) is life
    assert lives.under(claim(epoch=1)) is None
    assert lives.under(claim(1, epoch=2)) is None
    life.fence(claim(epoch=2))
    assert lives.under(claim(epoch=2)) is None


def test_what_has_not_begun_is_left_to_the_next_owner_while_draining_or_fenced():
    lives = Lives()
    life = running()
    lives.begin(life)
    assert not lives.is_ending(claim())
    life.drain()
    assert lives.is_ending(claim())
    assert lives.under(claim()) is life
    life.fence(claim())
    assert lives.is_ending(claim())


def test_lives_may_end_while_they_are_walked_through():
    lives = Lives()
    for partition in range(3):
        lives.begin(running(claim(partition)))
    for life in lives:
        lives.end(life.partition)
    assert list(lives) == []


# ---- where to start ----


@pytest.mark.parametrize(
    ("committed", "next_offset", "bounds", "offset"),
    [
        pytest.param(None, None, (0, 9), 0, id="nothing known: the earliest"),
        pytest.param(None, None, (4, 9), 4, id="the earliest that is still there"),
        pytest.param(0, None, (0, 9), 0, id="nothing is done, and nothing was"),
        pytest.param(1, None, (2, 9), 2, id="what was done is not there any more"),
        pytest.param(None, 5, (2, 9), 5, id="Kafka's offset has expired"),
        pytest.param(5, 5, (2, 9), 5, id="they agree"),
        pytest.param(3, 5, (2, 9), 3, id="the smaller: rewound, or not committed yet"),
        pytest.param(0, 5, (2, 9), 2, id="rewound to before what is still there"),
        pytest.param(9, 9, (2, 9), 9, id="at the end"),
        pytest.param(2, 2, (2, 9), 2, id="at the beginning"),
        pytest.param(9, 9, (9, 9), 9, id="all of it is gone, and all of it was done"),
    ],
)
def test_a_partition_starts_at_the_smaller_of_the_two_offsets(
    committed, next_offset, bounds, offset
):
    assert decide_start(committed, next_offset, bounds) == Start(offset)


@pytest.mark.parametrize("committed", [6, 99])
def test_kafka_ahead_of_the_table_is_an_alarm_and_nothing_is_skipped(committed):
    """C4 of the protocol: the table was restored, or somebody reset the group forward."""
    start = decide_start(committed, 5, (2, 9))
    assert start == Start(
        5,
        f"Kafka's committed offset {committed} is ahead of the table's 5: the database was "
        "restored, or the group reset forward; starting at the table's",
    )


@pytest.mark.parametrize("committed", [3, 9, 99])
def test_a_table_that_has_seen_nothing_of_what_was_done_is_an_alarm(committed):
    """Another database than before under the same group, or one that has lost its progress."""
    start = decide_start(committed, None, (2, 9))
    assert start.offset == 2
    assert f"committed offset is {committed}, but this table has seen nothing" in start.alarm


@pytest.mark.parametrize(
    ("next_offset", "why"),
    [
        (10, "but the log ends at 9: the topic was re-created"),
        (1, "but the log begins at 2: retention removed 1 records that were never read"),
        (0, "but the log begins at 2: retention removed 2 records that were never read"),
    ],
)
@pytest.mark.parametrize("committed", [None, 0, 1, 5, 10])
def test_an_offset_outside_the_log_halts_and_never_jumps(committed, next_offset, why):
    halt = decide_start(committed, next_offset, (2, 9))
    assert halt == Halt(f"the table is done up to offset {next_offset}, {why}")


def test_where_to_start_is_where_the_checked_protocol_starts():
    """`StartAt` of the TLA+ module, whose log is complete, for all small numbers."""
    numbers = [None, *range(5)]
    for committed, next_offset in product(numbers, numbers):
        start = decide_start(committed, next_offset, (0, 4))
        if next_offset is None:
            expected = 0
        elif committed is not None and committed < next_offset:
            expected = committed
        else:
            expected = next_offset
        # A table that has seen nothing is at 0, where the log begins.
        ahead = committed is not None and committed > (next_offset or 0)
        assert (start.offset, start.alarm is not None) == (expected, ahead)


# ---- one log, many claims, any order ----


@dataclass
class Tenure:
    """What the model knows of one claim: what was handed out under it, what it completed."""

    claim: Claim
    start: int
    handed_out: int
    owned: bool = True
    tracked: set[int] = field(default_factory=set)
    completed: set[int] = field(default_factory=set)

    @property
    def next_offset(self) -> int:
        return min(self.tracked - self.completed, default=self.handed_out)


class Life(RuleBasedStateMachine):
    """
    One log, claimed again and again; works end late, twice, or never.

    A work that ended with a completing outcome is durable, whatever claim it had: that is
    what the outcome means. Every number that a life ever shows must name durable records only.
    """

    @initialize(markers=st.sets(st.integers(0, 200)))
    def begin(self, markers: set[int]) -> None:
        self.markers = markers
        self.durable: set[int] = set()
        self.tenures: list[Tenure] = []
        self.open: list[Work] = []
        self.lives = Lives()
        self.life = PartitionLife(Partition("documents", 0), assignment=1)
        self.lives.begin(self.life)
        self.table = 0

    @property
    def tenure(self) -> Tenure:
        return self.tenures[-1]

    def claimed(self) -> bool:
        return bool(self.tenures)

    def running(self) -> bool:
        return self.life.phase is Phase.RUNNING

    @precondition(lambda self: self.life.phase not in (Phase.HALTED, Phase.ENDED))
    @rule(rewind=st.integers(0, 3), mark=st.none() | st.just(Landmark(0, 0, b"")))
    def claim(self, rewind: int, mark: Landmark | None) -> None:
        new = claim(epoch=len(self.tenures) + 1)._replace(landmark=mark)
        start = max(0, self.table - rewind)
        self.tenures.append(Tenure(new, start, start))
        self.life.start(new, start)

    @rule(rewind=st.integers(0, 3))
    def assign_again_and_claim(self, rewind: int) -> None:
        self.life = PartitionLife(self.life.partition, self.life.assignment + 1)
        self.lives.begin(self.life)
        self.claim(rewind, None)

    @precondition(running)
    @rule(records=st.integers(0, 4))
    def poll(self, records: int) -> None:
        tenure = self.tenure
        for _ in range(records):
            while tenure.handed_out in self.markers:
                tenure.handed_out += 1
            work = upsert("a", offset=tenure.handed_out, of=tenure.claim)
            self.life.track(work.record, at=tenure.handed_out)
            tenure.tracked.add(tenure.handed_out)
            tenure.handed_out += 1
            self.open.append(work)

    @precondition(running)
    @rule()
    def pass_markers(self) -> None:
        while self.tenure.handed_out in self.markers:
            self.tenure.handed_out += 1
        self.life.advance(self.tenure.handed_out)

    @precondition(lambda self: self.open)
    @rule(pick=st.integers(0, 50), outcome=st.sampled_from(OUTCOMES), again=st.booleans())
    def end_a_work(self, pick: int, outcome: tuple[Outcome, bool], *, again: bool) -> None:
        index = pick % len(self.open)
        work = self.open[index] if again else self.open.pop(index)
        how, completes = outcome
        self.life.end_work(work, how)
        if completes:
            self.durable.add(work.position.offset)
            if self.tenure.owned and work.claim == self.tenure.claim:
                self.tenure.completed.add(work.position.offset)

    @precondition(claimed)
    @rule(pick=st.integers(0, 5))
    def fence(self, pick: int) -> None:
        tenure = self.tenures[-1 - pick % len(self.tenures)]
        ours = tenure is self.tenure and tenure.owned
        assert self.life.fence(tenure.claim) is ours
        if ours:
            tenure.owned = False

    @rule()
    def drain(self) -> None:
        self.life.drain()

    @precondition(claimed)
    @rule()
    def halt(self) -> None:
        self.life.halt("why")
        self.tenure.owned = False

    @precondition(claimed)
    @rule()
    def end(self) -> None:
        self.lives.end(self.life.partition)
        self.tenure.owned = False

    @precondition(lambda self: self.tenures and self.tenure.owned)
    @rule()
    def save(self) -> None:
        self.table = max(self.table, self.life.progress.next_offset)

    @invariant()
    def every_number_shown_is_covered(self) -> None:
        if self.tenures:
            shown = range(self.life.progress.next_offset)
            assert set(shown) <= self.durable | self.markers

    @invariant()
    def progress_is_what_was_completed_under_this_claim_and_no_more(self) -> None:
        if not self.tenures:
            assert self.life.progress == Progress(0, None)
            return
        tenure = self.tenure
        assert self.life.progress.next_offset == tenure.next_offset <= tenure.handed_out
        assert self.life.settled == len(tenure.completed)
        assert self.life.in_flight == len(tenure.tracked - tenure.completed)

    @invariant()
    def the_landmark_is_a_record_below_it_that_was_settled(self) -> None:
        next_offset, mark, _ = self.life.progress
        if mark is not None and mark != self.tenure.claim.landmark:
            assert mark.offset < next_offset
            assert mark.offset in self.tenure.completed

    @invariant()
    def a_life_is_found_under_the_newest_claim_alone(self) -> None:
        for tenure in self.tenures:
            ours = tenure is self.tenure and tenure.owned
            assert self.lives.under(tenure.claim) is (self.life if ours else None)


TestLife = Life.TestCase


def test_another_topic_of_the_same_name_halts_in_words_that_name_both():
    halt = other_topic(UUID(int=1), UUID(int=2))
    assert str(UUID(int=1)) in halt.problem
    assert str(UUID(int=2)) in halt.problem


@pytest.mark.parametrize(
    ("known", "seen"), [(UUID(int=1), UUID(int=1)), (None, UUID(int=1)), (UUID(int=1), None)]
)
def test_the_same_topic_or_one_that_nobody_knows_halts_nothing(known, seen):
    assert other_topic(known, seen) is None
