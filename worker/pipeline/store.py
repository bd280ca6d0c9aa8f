"""
Change sets become rows, many documents to a transaction.

Owns the transactions that wait or are under way. A document that PostgreSQL refuses is found
by writing each of its batch alone, so it never fails its neighbours. A caller that leaves
waits for the end of its transaction first, so a key is never free while a write of it runs.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import NamedTuple

from schemas.events import ScopeDeleted
from worker.config import IngestOptions
from worker.core.model import ChangeSet, ChunkId, Vector, Work
from worker.pipeline.batcher import Batcher, Call
from worker.ports import Clock, Spawn, Store, Verdict, Write
from worker.telemetry import Counters, Tracing

_LINGER_SECONDS = 0.05
"""What a transaction that has room waits at most for one that is under way: documents come in
the course of that. Under an index one takes longer, and others run beside it."""


class _Item(NamedTuple):
    write: Write
    group: Hashable
    traceparent: str | None
    size: int


class Save:
    """The stage from a change set and its vectors to committed rows."""

    def __init__(
        self,
        store: Store,
        options: IngestOptions,
        *,
        counters: Counters,
        clock: Clock,
        tracing: Tracing,
        observe: Callable[[str, float], None],
        spawn: Spawn,
    ) -> None:
        self._store = store
        self._clock = clock
        self._tracing = tracing
        self._observe = observe
        self._options = options
        self._counters = counters
        self._alone = 0
        self._batcher = Batcher[_Item, Verdict](
            self._apply,
            spawn=spawn,
            slots=options.store_slots,
            take=self._take,
            group=lambda item: item.group,
            tenant=lambda item: item.write.change.key.tenant,
            settles=True,
            apart=True,
            linger_seconds=_LINGER_SECONDS,
            more_to_come=lambda: self._batcher.working > 0,
        )

    async def __call__(
        self,
        work: Work,
        change: ChangeSet,
        vectors: Mapping[ChunkId, Vector],
        *,
        alone: bool = False,
    ) -> Verdict:
        """
        Write one document, with others or alone in its transaction.

        Raises:
            StoreUnavailable: the outcome is unknown.
            PermanentError: PostgreSQL refuses the document.
        """
        self._alone += alone
        group = self._alone if alone else 0
        return await self._batcher.submit(_item(work, change, vectors, group))

    def put(
        self, work: Work, change: ChangeSet, vectors: Mapping[ChunkId, Vector]
    ) -> Call[_Item, Verdict]:
        """Queue one document, to be written with others."""
        return self._batcher.put(_item(work, change, vectors, 0))

    def leave(self, call: Call[_Item, Verdict]) -> None:
        """Take note that nobody waits for a document any more."""
        self._batcher.leave(call)

    async def left(self, call: Call[_Item, Verdict]) -> None:
        """Wait for the end of the transaction that a document is in which was left."""
        await self._batcher.left(call)

    async def scope(self, work: Work) -> Verdict:
        """Delete what a scope reaches."""
        assert isinstance(work.event, ScopeDeleted)
        return await self._store.delete_scope(work.claim, work.event, work.rank)

    async def _apply(self, items: list[_Item]) -> list[Verdict]:
        verdicts = await self._write(items)
        self._count(items, verdicts)
        return verdicts

    async def _write(self, items: list[_Item]) -> list[Verdict]:
        began = self._clock()
        traceparents = [item.traceparent for item in items]
        with self._tracing.batch_span("store", traceparents, {"documents": len(items)}):
            verdicts = await self._store.apply([item.write for item in items])
        self._observe("store_latency", self._clock() - began)
        return verdicts

    def _count(self, items: list[_Item], verdicts: list[Verdict]) -> None:
        for item, verdict in zip(items, verdicts, strict=True):
            if verdict is Verdict.APPLIED:
                change = item.write.change
                self._counters.pgvector_write_throughput += 1 + len(change.insert)
                self._counters.chunks_kept_total += change.kept

    def _take(self, items: Iterable[_Item]) -> int:
        return _fitting(
            (item.size for item in items),
            self._options.store_batch_documents,
            self._options.store_batch_bytes,
        )


def _item(
    work: Work, change: ChangeSet, vectors: Mapping[ChunkId, Vector], group: Hashable
) -> _Item:
    write = Write(change, work.claim, vectors)
    return _Item(write, group, work.traceparent, _bytes(write))


def _bytes(write: Write) -> int:
    vectors = sum(map(len, write.vectors.values()))
    return vectors + sum(len(chunk.content) for chunk in write.change.insert)


def _fitting(sizes: Iterable[int], most: int, most_bytes: int) -> int:
    count = total = 0
    for size in sizes:
        total += size
        if count and (count == most or total > most_bytes):
            break
        count += 1
    return count
