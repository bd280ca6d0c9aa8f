"""Works of a key leave one at a time and in order, tenants take turns, nothing is lost."""

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.support.works import claim, collection, delete, rejected, scope, tombstone, upsert
from worker.core import changeset
from worker.core.model import Base, Claim, Order, StoredDocument, Work
from worker.core.scheduler import Scheduler

ORIGIN = Order("documents", 0, 0, 0)
BOUNDLESS = 2**62


def unbounded(*works: Work, quantum_bytes: int = 2_000) -> Scheduler:
    queue = Scheduler(max_documents=BOUNDLESS, max_bytes=BOUNDLESS, quantum_bytes=quantum_bytes)
    for work in works:
        queue.add(work)
    return queue


def taken(queue: Scheduler) -> Iterator[Work]:
    """Yield works, each finished before the next one is taken, until none is left."""
    while (work := queue.take()) is not None:
        yield work
        queue.done(work)


# ---- one key ----


def test_a_key_has_one_work_in_flight():
    first, second = tombstone("a", offset=0), tombstone("a", offset=1)
    queue = unbounded(first, second)
    assert queue.take() is first
    assert queue.take() is None
    queue.done(first)
    assert queue.take() is second


def test_the_same_document_in_two_topics_or_two_tenants_is_not_one_key():
    works = [
        upsert("a"),
        upsert("a", of=claim(topic="others")),
        upsert("a", tenant="other"),
        upsert("a", collection="other"),
        scope(),
        rejected(offset=7),
        rejected(offset=8),
    ]
    queue = unbounded(*works)
    assert {queue.take() for _ in works} == set(works)


@pytest.mark.parametrize(
    ("waiting", "parked"),
    [
        pytest.param([upsert("a", version=v) for v in (3, 5, 7)], 2, id="rising versions"),
        pytest.param([upsert("a", version=v) for v in (3, 3)], 1, id="equal: the later one"),
        pytest.param([upsert("a", version=3), delete("a", version=4)], 1, id="under a delete"),
        pytest.param([delete("a", version=3), upsert("a", version=4)], 1, id="a delete too"),
        pytest.param([scope(version=3), scope(version=4)], 1, id="a scope too"),
        pytest.param([upsert("a", version=v) for v in (3, 7, 5, 9)], 1, id="up to a fall"),
        pytest.param([upsert("a", version=v) for v in (0, 0)], 1, id="version 0 is a version"),
        pytest.param([tombstone("a"), upsert("a")], 0, id="a barrier parks nothing"),
        pytest.param([upsert("a"), tombstone("a")], 0, id="a barrier is not parked"),
        pytest.param([upsert("a"), tombstone("a"), upsert("a")], 0, id="none across a barrier"),
        pytest.param([upsert("a", claimed_origin=ORIGIN), upsert("a")], 0, id="no replay"),
        pytest.param([upsert("a"), upsert("a", claimed_origin=ORIGIN)], 0, id="under none"),
        pytest.param([upsert("a", of=claim(epoch=e)) for e in (1, 2)], 0, id="other claim"),
        pytest.param([upsert("a", of=claim(p)) for p in (0, 1)], 0, id="other partition"),
    ],
)
def test_what_the_next_work_replaces_is_parked_under_it(waiting, parked):
    queue = unbounded(*waiting)
    work = queue.take()
    assert [*work.parked, work] == waiting[: parked + 1]
    assert queue.waiting == len(waiting) - parked - 1


def test_a_poison_version_gives_back_the_older_one():
    """C1 of the protocol: a version that waits under a poisoned one is not lost with it."""
    older, poison = upsert("a", version=1, offset=0), upsert("a", version=2, offset=1)
    queue = unbounded(older, poison)
    queue.refuse(queue.take())
    assert (queue.documents, queue.bytes) == (1, older.size_bytes)
    assert queue.take() is older
    assert (older.parked, poison.parked) == ([], [])


def test_of_the_keys_of_a_tenant_the_one_that_waits_longest_is_next():
    queue = unbounded(*(tombstone(key) for key in "aabc"))
    order = [work.document_key.id for work in taken(queue)]
    assert order == ["a", "b", "c", "a"]


def test_what_comes_back_stands_before_what_came_meanwhile_in_the_order_of_the_log():
    works = [upsert("a", version=version, offset=version) for version in range(4)]
    queue = unbounded(*works[:3])
    first = queue.take()
    queue.add(tombstone("a", offset=3))
    queue.retry(first)
    assert queue.waiting == 4
    again = queue.take()
    assert [*again.parked, again] == works[:3]


def test_an_older_version_that_stands_behind_a_newer_one_is_not_parked_under_it():
    """
    A delete without a version from another partition ends the newer version, not the older.

    Were version 3 parked under version 7, it would be settled as superseded with it, and no
    row would ever carry it.
    """
    seven = upsert("a", version=7, offset=0, timestamp_ms=10)
    three = upsert("a", version=3, offset=1, timestamp_ms=30)
    barrier = tombstone("a", of=claim(1), timestamp_ms=20).rank.order
    row = StoredDocument(1, None, barrier, barrier, deleted=True, content_hash=None)
    assert changeset.settled(seven, Base(row)) is not None
    assert changeset.settled(three, Base(row)) is None
    assert unbounded(seven, three).take().parked == []


ROWS = st.builds(
    lambda version, order, barrier: StoredDocument(
        revision=1,
        version=version,
        order=order if version is not None else barrier or order,
        barrier=barrier if version is not None else barrier or order,
        deleted=version is None,
        content_hash=None,
    ),
    version=st.none() | st.integers(0, 4),
    order=st.builds(
        lambda partition, at: Order("documents", partition, at, at),
        st.integers(0, 1),
        st.integers(0, 8),
    ),
    barrier=st.none()
    | st.builds(lambda at: Order("documents", 1, at, at), at=st.integers(0, 8)),
)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=5), ROWS, st.none() | st.integers(0, 4))
def test_what_covers_a_work_covers_all_that_is_parked_under_it(versions, row, scope_version):
    """The rule by which settle ends parked works as superseded (S3 of the protocol)."""
    works = [
        upsert("a", version=version, offset=2 * n, timestamp_ms=2 * n)
        for n, version in enumerate(versions)
    ]
    work = unbounded(*works).take()
    base = Base(row, scope_version=scope_version)
    if changeset.settled(work, base) is None:
        change = changeset.upsert(work, collection(), base, b"hash", ())
        row = StoredDocument(2, *work.rank, change.barrier, deleted=False, content_hash=b"hash")
        base = Base(row, scope_version=scope_version)
    for parked in work.parked:
        assert changeset.settled(parked, base) is not None


def test_an_ended_claim_takes_its_waiting_works_along_and_leaves_those_of_others():
    old, new = claim(epoch=1), claim(epoch=2)
    flying, waiting = tombstone("a", of=old), tombstone("a", of=old, offset=1)
    other_key, fresh = upsert("b", of=old, offset=2), upsert("a", of=new)
    queue = unbounded(flying)
    assert queue.take() is flying
    for work in (waiting, other_key, fresh):
        queue.add(work)
    assert queue.drop(old) == [waiting, other_key]
    assert (queue.documents, queue.waiting, queue.in_flight) == (2, 1, 1)
    assert queue.take() is None
    queue.done(flying)
    assert queue.take() is fresh


def test_works_in_flight_may_be_finished_while_they_are_walked_through():
    queue = unbounded(upsert("a"), upsert("b"), upsert("c"))
    works = [queue.take(), queue.take()]
    for work in queue.works_in_flight():
        queue.done(work)
        works.remove(work)
    assert works == []
    assert (queue.in_flight, queue.waiting) == (0, 1)


@pytest.mark.parametrize(
    ("bounds", "full"),
    [
        ({"max_documents": 2, "max_bytes": 100}, True),
        ({"max_documents": 3, "max_bytes": 20}, True),
        ({"max_documents": 3, "max_bytes": 21}, False),
    ],
)
def test_it_is_full_by_documents_or_bytes_until_what_is_in_flight_has_ended(bounds, full):
    queue = Scheduler(**bounds, quantum_bytes=100)
    queue.add(upsert("a", size_bytes=10, version=1))
    queue.add(upsert("a", size_bytes=10, version=2, offset=1))
    assert queue.is_full is full
    work = queue.take()
    assert queue.is_full is full
    queue.done(work)
    assert not queue.is_full


# ---- the turns of tenants ----


def backlog(tenant: str, sizes: Iterable[int]) -> list[Work]:
    return [
        upsert(f"{n}", tenant=tenant, offset=n, size_bytes=size) for n, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("holds", [False, True], ids=["each finished at once", "all held"])
def test_a_tenant_that_offers_a_hundred_times_as_much_delays_another_by_one_turn(holds):
    quantum, size = 4_000, 1_000
    loud, quiet = backlog("loud", [size] * 500), backlog("quiet", [size] * 5)
    queue = unbounded(*loud, quantum_bytes=quantum)
    before = [queue.take() for _ in range(7)]
    for work in quiet:
        queue.add(work)
    waited = defaultdict(int)
    served = 0
    for work in iter(queue.take, None):
        if work.tenant == "loud":
            waited[served] += work.size_bytes
        served += work.tenant == "quiet"
        if not holds:
            queue.done(work)
    assert served == len(quiet)
    assert len(before) + sum(waited.values()) // size == len(loud)
    del waited[served]  # nobody waits behind the last one
    assert max(waited.values()) <= quantum


def test_a_large_work_has_its_turn_after_as_many_turns_as_it_is_large():
    quantum = 1_000
    (large,) = backlog("large", [10 * quantum])
    queue = unbounded(*backlog("small", [100] * 500), large, quantum_bytes=quantum)
    before = 0
    for work in taken(queue):
        if work is large:
            break
        before += work.size_bytes
    assert 9 * quantum <= before <= 11 * quantum


def test_a_work_as_large_as_the_share_of_a_turn_is_sent_in_it():
    quantum = 1_000
    (exact,) = backlog("exact", [quantum])
    queue = unbounded(exact, *backlog("small", [100]), quantum_bytes=quantum)
    assert queue.take() is exact


def test_what_is_charged_is_the_work_that_is_taken_not_the_small_one_parked_under_it():
    quantum = 1_000
    cheap = [
        upsert(f"{n}", tenant="a", version=version, offset=2 * n + version, size_bytes=size)
        for n in range(20)
        for version, size in ((0, 1), (1, quantum))
    ]
    queue = unbounded(*cheap, *backlog("b", [quantum] * 20), quantum_bytes=quantum)
    tenants = [work.tenant for work in taken(queue)]
    assert tenants == ["a", "b"] * 20


def test_a_tenant_without_works_saves_nothing_up():
    quantum = 1_000
    queue = unbounded(
        *backlog("idle", [10]), *backlog("busy", [quantum] * 30), quantum_bytes=quantum
    )
    for _ in range(15):
        queue.done(queue.take())
    for work in backlog("idle", [quantum] * 10):
        queue.add(work)
    tenants = [work.tenant for work in taken(queue)]
    assert ("idle", "idle") not in pairwise(tenants[:20])
    assert tenants.count("idle") == 10


@given(
    st.lists(st.lists(st.integers(1, 3_000), min_size=1, max_size=12), min_size=2, max_size=4),
    st.integers(1, 4_000),
)
def test_tenants_that_all_have_works_waiting_get_the_same_bytes(sizes, quantum):
    """Never further apart than one quantum and the largest work (the bound of the paper)."""
    tenants = [backlog(f"{n}", one) for n, one in enumerate(sizes)]
    queue = unbounded(*(work for one in tenants for work in one), quantum_bytes=quantum)
    served = dict.fromkeys((f"{n}" for n in range(len(tenants))), 0)
    left = {f"{n}": len(one) for n, one in enumerate(tenants)}
    largest = max(map(max, sizes))
    for work in taken(queue):
        served[work.tenant] += work.size_bytes
        left[work.tenant] -= 1
        if min(left.values()) == 0:
            break
        assert max(served.values()) - min(served.values()) <= quantum + largest


def test_where_it_is_asked_for_only_a_tenant_that_has_few_in_flight_is_served():
    queue = unbounded(*backlog("loud", [1_000] * 9), quantum_bytes=2_000)
    flying = [queue.take() for _ in range(4)]
    assert queue.take(few=2) is None
    large, larger, last = backlog("quiet", [9_000, 9_001, 1])
    for work in (large, larger, last):
        queue.add(work)
    assert [queue.take(few=2) for _ in range(3)] == [large, larger, None]
    queue.done(large)
    assert queue.take(few=2) is last
    for work in flying[:3]:
        queue.done(work)
    assert queue.take(few=2).tenant == "loud"
    assert queue.take(few=2) is None
    assert len(list(iter(queue.take, None))) == 4


def test_tenants_and_keys_that_are_done_leave_nothing_behind():
    queue = unbounded(*(upsert(f"{n}", tenant=f"{n % 7}") for n in range(50)))
    assert len(list(taken(queue))) == 50
    left = queue._queues, queue._in_flight, dict(queue._tenants), dict(queue._flying)
    assert left == ({}, {}, {}, {})


# ---- what it costs ----


def distinct(n: int) -> list[Work]:
    return [upsert(f"{i}", tenant=f"{i % 100}", offset=i) for i in range(n)]


def rising(n: int) -> list[Work]:
    return [upsert("a", version=i, offset=i) for i in range(n)]


def falling(n: int) -> list[Work]:
    return [upsert("a", version=n - i, offset=i) for i in range(n)]


def barriers(n: int) -> list[Work]:
    return [tombstone("a", offset=i) for i in range(n)]


def calls(action: Callable[[], object]) -> int:
    """Count the calls that an action makes; unlike time, the same on every machine."""
    counter = count()

    def on_event(_frame: object, event: str, _arg: object) -> None:
        if event in ("call", "c_call"):
            next(counter)

    sys.setprofile(on_event)
    try:
        action()
    finally:
        sys.setprofile(None)
    return next(counter)


@pytest.mark.parametrize("works", [distinct, rising, falling, barriers])
def test_ten_times_the_works_cost_ten_times_as_much(works):
    def cost(n: int) -> int:
        queued = works(n)
        return calls(lambda: list(taken(unbounded(*queued))))

    assert cost(5_000) <= 11 * cost(500)


# ---- all of it, in any order, against plain lists ----


def may_park(older: Work, newer: Work) -> bool:
    versions = older.rank.version, newer.rank.version
    origins = older.claimed_origin, newer.claimed_origin
    return (
        None not in versions
        and origins == (None, None)
        and versions[0] <= versions[1]
        and older.claim == newer.claim
    )


SIZES = st.integers(1, 4_000)


@st.composite
def records(draw: st.DrawFn) -> tuple[Callable[..., Work], int]:
    """Draw a work to be made, and the partition it comes from."""
    document = draw(st.sampled_from("ab"))
    what = {"tenant": draw(st.sampled_from(["t1", "t2"])), "size_bytes": draw(SIZES)}
    versioned = {"version": draw(st.integers(0, 4)), **what}
    make = draw(
        st.sampled_from(
            [
                partial(upsert, document, **versioned),
                partial(upsert, document, **versioned),
                partial(delete, document, **versioned),
                partial(upsert, document, claimed_origin=ORIGIN, **versioned),
                partial(tombstone, document, **what),
                partial(scope, **versioned),
                rejected,
            ]
        )
    )
    return make, draw(st.sampled_from([0, 0, 1]))


class Scheduling(RuleBasedStateMachine):
    """Every operation in any order, against one list per key."""

    @initialize(quantum=st.integers(1, 5_000), most=st.integers(1, 20))
    def begin(self, quantum: int, most: int) -> None:
        self.most = most
        self.queue = Scheduler(
            max_documents=most, max_bytes=1_000 * most, quantum_bytes=quantum
        )
        self.offsets = count()
        self.epochs = [1, 1]
        self.waiting: dict[object, list[Work]] = defaultdict(list)
        self.in_flight: dict[object, tuple[Work, list[Work]]] = {}

    def claim(self, partition: int) -> Claim:
        topic = "documents" if partition == 0 else "others"
        return claim(partition, epoch=self.epochs[partition], topic=topic)

    @staticmethod
    def key(work: Work) -> object:
        return work.position.topic, work.document_key

    @rule(batch=st.lists(records(), min_size=1, max_size=8))
    def add(self, batch: list[tuple[Callable[..., Work], int]]) -> None:
        for make, partition in batch:
            work = make(of=self.claim(partition), offset=next(self.offsets))
            self.queue.add(work)
            self.waiting[self.key(work)].append(work)

    @rule(few=st.none() | st.integers(1, 3))
    def take(self, few: int | None) -> None:
        flying = Counter(work.tenant for work, _ in self.in_flight.values())
        work = self.queue.take(few=few)
        ready = {
            key
            for key, works in self.waiting.items()
            if works and (few is None or flying[works[0].tenant] < few)
        } - set(self.in_flight)
        if work is None:
            assert not ready
            return
        key = self.key(work)
        assert key in ready, "its key is in flight, or it was not there"
        run, works = [*work.parked, work], self.waiting[key]
        assert run == works[: len(run)], "they leave in order, and nothing is passed over"
        assert all(map(may_park, run, run[1:]))
        assert all(one.rank <= work.rank for one in run), "the taken one is the newest"
        rest = works[len(run) :]
        assert not (rest and may_park(work, rest[0])), "what may be parked is"
        self.waiting[key] = rest
        self.in_flight[key] = work, list(work.parked)

    @precondition(lambda self: self.in_flight)
    @rule(how=st.sampled_from(["done", "refuse", "retry"]), pick=st.integers(0, 9))
    def end(self, how: str, pick: int) -> None:
        key = sorted(self.in_flight)[pick % len(self.in_flight)]
        work, parked = self.in_flight.pop(key)
        getattr(self.queue, how)(work)
        self.waiting[key][:0] = {"done": [], "refuse": parked, "retry": [*parked, work]}[how]

    @precondition(lambda self: self.queue.waiting > 5)
    @rule(partition=st.sampled_from([0, 1]))
    def end_a_claim(self, partition: int) -> None:
        ended = self.claim(partition)
        self.epochs[partition] += 1
        mine = {work for works in self.waiting.values() for work in works}
        mine = {work for work in mine if work.claim == ended}
        dropped = self.queue.drop(ended)
        assert set(dropped) == mine
        assert len(dropped) == len(mine)
        for key, works in self.waiting.items():
            self.waiting[key] = [work for work in works if work not in mine]

    @invariant()
    def counts_what_was_added_and_not_finished(self) -> None:
        waiting = [work for works in self.waiting.values() for work in works]
        held = [one for work, parked in self.in_flight.values() for one in (work, *parked)]
        assert self.queue.waiting == len(waiting)
        assert self.queue.documents == len(waiting) + len(held)
        assert self.queue.bytes == sum(work.size_bytes for work in waiting + held)
        assert self.queue.is_full == (
            self.queue.documents >= self.most or self.queue.bytes >= 1_000 * self.most
        )

    @invariant()
    def nothing_is_parked_under_what_waits(self) -> None:
        assert all(one.parked == [] for works in self.waiting.values() for one in works)

    @invariant()
    def has_one_work_in_flight_per_key(self) -> None:
        flying = {work for work, _ in self.in_flight.values()}
        assert set(self.queue.works_in_flight()) == flying
        assert self.queue.in_flight == len(flying)

    def teardown(self) -> None:
        """Everything drains."""
        for work, _ in getattr(self, "in_flight", {}).values():
            self.queue.done(work)
        if not hasattr(self, "queue"):
            return
        left = [one for work in taken(self.queue) for one in (work, *work.parked)]
        assert len(left) == sum(map(len, self.waiting.values()))
        assert (self.queue.documents, self.queue.bytes, self.queue.waiting) == (0, 0, 0)


TestScheduling = Scheduling.TestCase
