"""
Which work is next: first come first served per key, fair by tenant, bounded.

Owns the queue of one FIFO per (topic, document), with one work in flight per key, and the
turns of the tenants (deficit round robin in bytes: Shreedhar and Varghese, SIGCOMM 1995).
Works are taken, and come back as done or again; nothing is settled here.

Parking: when a key's turn comes, the works at its head are parked under the last of them
(`Work.parked`) as far as their versions do not fall, so that only the newest is paid for. They
come back with it: `done` leaves them to the caller to settle, `retry` and `refuse` return them
to the head of the queue. A work is parked only under one that beats it by version and by
position: a barrier of another partition goes by position alone, so what ends a newer version
there says nothing of an older one that stands behind it. A work without a version (a barrier),
or with a claimed origin, is never parked and never parks another, nor does any across it.

Invariants: what was added and not finished is counted, in documents and bytes, so the bounds
hold for waiting, parked and in-flight works together; the works of a key leave in order.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator
from itertools import islice

from worker.core.model import Claim, DocumentKey, Work

Key = tuple[str, DocumentKey]


class _Tenant:
    """The keys of one tenant that are ready, and what it may still send in this turn."""

    __slots__ = ("deficit", "ready")

    def __init__(self, quantum_bytes: int) -> None:
        self.ready: OrderedDict[Key, None] = OrderedDict()
        # Its first turn's share: without it the others would have two turns before its first.
        self.deficit = quantum_bytes


class Scheduler:
    """
    The queue of a worker.

        >>> from tests.support.works import upsert
        >>> queue = Scheduler(max_documents=10, max_bytes=10_000, quantum_bytes=2_000)
        >>> for offset, version in enumerate([3, 5, 7]):
        ...     queue.add(upsert("a", version=version, offset=offset))
        >>> work = queue.take()
        >>> work.rank.version, [parked.rank.version for parked in work.parked]
        (7, [3, 5])
        >>> queue.take() is None, queue.documents
        (True, 3)
        >>> queue.done(work)
        >>> queue.documents
        0
    """

    def __init__(self, *, max_documents: int, max_bytes: int, quantum_bytes: int) -> None:
        self._max_documents = max_documents
        self._max_bytes = max_bytes
        self._quantum_bytes = quantum_bytes
        self._queues: dict[Key, deque[Work]] = {}
        self._in_flight: dict[Key, Work] = {}
        self._flying: Counter[str] = Counter()
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()
        self._waiting = 0
        self.documents = 0
        self.bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether no more may be polled until something is finished."""
        return self.documents >= self._max_documents or self.bytes >= self._max_bytes

    @property
    def waiting(self) -> int:
        """How many works wait for their turn."""
        return self._waiting

    @property
    def in_flight(self) -> int:
        """How many works are taken and not finished, without those parked under them."""
        return len(self._in_flight)

    def add(self, work: Work) -> None:
        """Queue a work behind the others of its key."""
        self.documents += 1
        self.bytes += work.size_bytes
        self._push(work)

    def take(self, *, few: int | None = None) -> Work | None:
        """
        Return the work whose turn it is, with older versions parked under it.

        With `few` only of a tenant that has fewer works than that in flight.
        """
        passed = 0
        while passed < len(self._tenants):
            name, tenant = next(iter(self._tenants.items()))
            if not tenant.ready:
                del self._tenants[name]
                continue
            if few is not None and self._flying[name] >= few:
                self._tenants.move_to_end(name)
                passed += 1
                continue
            passed = 0
            key = next(iter(tenant.ready))
            run = _run(self._queues[key])
            cost = run[-1].size_bytes
            if tenant.deficit < cost:
                tenant.deficit += self._quantum_bytes
                self._tenants.move_to_end(name)
                continue
            tenant.deficit -= cost
            del tenant.ready[key]
            return self._start(key, run)
        return None

    def done(self, work: Work) -> None:
        """Finish a work and all parked under it."""
        self._forget(work)
        for parked in work.parked:
            self._forget(parked)
        self._free(work)

    def refuse(self, work: Work) -> None:
        """Finish a work that is dead-lettered; what was parked under it has its turn again."""
        self._forget(work)
        self._free(work, again=work.parked)
        work.parked = []

    def retry(self, work: Work) -> None:
        """Return a work and all parked under it to the head of its key's queue."""
        again = [*work.parked, work]
        work.parked = []
        self._free(work, again=again)

    def drop(self, claim: Claim) -> list[Work]:
        """Take out what waits under an ended claim; what is in flight ends by itself."""
        dropped: list[Work] = []
        for key in list(self._queues):
            queue = self._queues[key]
            mine = [work for work in queue if work.claim == claim]
            if not mine:
                continue
            dropped += mine
            self._waiting -= len(mine)
            rest = deque(work for work in queue if work.claim != claim)
            if rest:
                self._queues[key] = rest
            else:
                self._unqueue(key, mine[0].tenant)
        for work in dropped:
            self._forget(work)
        return dropped

    def works_in_flight(self) -> Iterator[Work]:
        """Return what is in flight now."""
        return iter(list(self._in_flight.values()))

    def _push(self, work: Work) -> None:
        key = _key(work)
        self._queues.setdefault(key, deque()).append(work)
        self._waiting += 1
        self._make_ready(key, work.tenant)

    def _make_ready(self, key: Key, tenant: str) -> None:
        if key not in self._in_flight:
            if tenant not in self._tenants:
                self._tenants[tenant] = _Tenant(self._quantum_bytes)
            self._tenants[tenant].ready.setdefault(key)

    def _start(self, key: Key, run: list[Work]) -> Work:
        queue = self._queues[key]
        for _ in run:
            queue.popleft()
        if not queue:
            del self._queues[key]
        self._waiting -= len(run)
        work = run.pop()
        work.parked = run
        self._in_flight[key] = work
        self._flying[work.tenant] += 1
        return work

    def _free(self, work: Work, again: Iterable[Work] = ()) -> None:
        key = _key(work)
        del self._in_flight[key]
        self._land(work.tenant)
        returned = list(again)
        if returned:
            self._queues.setdefault(key, deque()).extendleft(reversed(returned))
            self._waiting += len(returned)
        if key in self._queues:
            self._make_ready(key, work.tenant)

    def _land(self, tenant: str) -> None:
        self._flying[tenant] -= 1
        if not self._flying[tenant]:
            del self._flying[tenant]

    def _unqueue(self, key: Key, tenant: str) -> None:
        del self._queues[key]
        if tenant in self._tenants:
            self._tenants[tenant].ready.pop(key, None)

    def _forget(self, work: Work) -> None:
        self.documents -= 1
        self.bytes -= work.size_bytes


def _key(work: Work) -> Key:
    return work.position.topic, work.document_key


def _run(queue: deque[Work]) -> list[Work]:
    """Return the first work and those right behind it, as far as each replaces the last."""
    run = [queue[0]]
    for work in islice(queue, 1, None):
        if not _replaces(work, run[-1]):
            break
        run.append(work)
    return run


def _replaces(work: Work, older: Work) -> bool:
    """Tell whether the work right before this one may be parked under it."""
    if work.claimed_origin is not None or older.claimed_origin is not None:
        return False
    version, before = work.rank.version, older.rank.version
    if version is None or before is None:
        return False
    return version >= before and work.claim == older.claim
