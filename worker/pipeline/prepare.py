"""
What a document needs: read what is stored, decide, and cut what is new.

Owns the look-up of many documents at once (one statement) and the one hop of many documents
to a thread (normalise, cut, hash). Never writes. A document with a chunk that the provider is
known to refuse ends here, before anything of it is bought. A replay is let through, and a
record of a partition that is probed, as that finds out whether it is refused still. Else what
it answers is an outcome that committed rows cover already, or a change set with the base that
it was computed from.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

from msgspec import UNSET

from schemas.events import DocumentDeleted, DocumentUpserted, Tombstone
from worker.config import IngestOptions
from worker.core import changeset
from worker.core.chunking import content_hash, split
from worker.core.model import (
    Base,
    ChangeSet,
    Chunk,
    Collection,
    Rank,
    Superseded,
    Unchanged,
    Work,
)
from worker.errors import UnknownCollection
from worker.pipeline.batcher import Batcher, Call
from worker.pipeline.marks import Marks
from worker.pipeline.refusals import Refusals
from worker.ports import Catalog, Clock, Offload, Query, Spawn, Store

Prepared = ChangeSet | Unchanged | Superseded
Item = tuple[Work, Collection]
Cut = tuple[bytes, tuple[Chunk, ...] | None]


class _Missed(NamedTuple):
    """Since when a name is known to be unknown, and when it was looked up last."""

    since: float
    looked_at: float


class Collections:
    """
    The collections by name, looked up again for a while where one is unknown.

    An unknown name is most often a deploy in the wrong order, so its first record waits for
    `grace_seconds`; later records of that name wait for what is left of them. `patient` is how
    many records wait so. Of the unknown names only the last ones are remembered.
    """

    _LOOK_AGAIN_SECONDS = 1.0
    _MAX_MISSED = 1000

    def __init__(self, catalog: Catalog, *, clock: Clock, grace_seconds: float) -> None:
        self._catalog = catalog
        self._clock = clock
        self._grace_seconds = grace_seconds
        self._known: dict[str, Collection] = {}
        self._missed: OrderedDict[str, _Missed] = OrderedDict()
        self._looking = asyncio.Lock()
        self.patient = 0

    @property
    def remembered(self) -> int:
        """How many unknown names are remembered."""
        return len(self._missed)

    async def find(self, name: str) -> Collection:
        """
        Return a collection.

        Raises:
            UnknownCollection: there is none, also after the time of grace.
        """
        known = await self._look(name)
        return await self._wait_for(name) if known is None else known

    async def _wait_for(self, name: str) -> Collection:
        since = self._missed[name].since
        self.patient += 1
        try:
            while (waited := self._clock() - since) < self._grace_seconds:
                left = self._grace_seconds - waited
                await asyncio.sleep(min(self._LOOK_AGAIN_SECONDS, left))
                if (known := await self._look(name)) is not None:
                    return known
        finally:
            self.patient -= 1
        raise UnknownCollection(name)

    async def _look(self, name: str) -> Collection | None:
        if name not in self._known:
            async with self._looking:
                if name not in self._known and self._is_due(name):
                    await self._ask(name)
        return self._known.get(name)

    def known(self, name: str) -> Collection | None:
        """Return a collection, None where it is not known yet, or any more."""
        return self._known.get(name)

    def model_of(self, name: str) -> str | None:
        """Return the model of a collection, None where it is not known."""
        known = self.known(name)
        return None if known is None else known.model

    def forget(self, name: str) -> None:
        """Look a name up again, the next time."""
        self._known.pop(name, None)

    def _is_due(self, name: str) -> bool:
        missed = self._missed.get(name)
        return missed is None or self._clock() - missed.looked_at >= self._LOOK_AGAIN_SECONDS

    async def _ask(self, name: str) -> None:
        found = await self._catalog.collection(name)
        missed = self._missed.pop(name, None)
        if found is not None:
            self._known[name] = found
            return
        now = self._clock()
        self._missed[name] = _Missed(missed.since if missed else now, now)
        if len(self._missed) > self._MAX_MISSED:
            self._missed.popitem(last=False)


class Prepare:
    """The stage from an event to its change set."""

    def __init__(
        self,
        store: Store,
        collections: Collections,
        refusals: Refusals,
        marks: Marks,
        options: IngestOptions,
        *,
        offload: Offload,
        spawn: Spawn,
    ) -> None:
        self._store = store
        self._collections = collections
        self._refusals = refusals
        self._marks = marks
        self._offload = offload
        self._batcher = Batcher[Item, Prepared](
            self._prepare,
            spawn=spawn,
            slots=options.prepare_slots,
            take=lambda items: len(list(islice(items, options.prepare_batch_documents))),
            tenant=lambda item: item[0].tenant,
            apart=True,
        )

    @property
    def patient(self) -> int:
        """How many works wait for a collection that is not known yet."""
        return self._collections.patient

    async def __call__(self, work: Work) -> Prepared:
        """Return how the work ends already, or what is to be written."""
        event = work.event
        assert isinstance(event, DocumentUpserted | DocumentDeleted | Tombstone)
        collection = await self._collections.find(event.collection)
        return await self._batcher.submit((work, collection))

    def knows(self, work: Work) -> bool:
        """Tell whether a work is of a document in a collection that is known."""
        event = work.event
        return (
            isinstance(event, DocumentUpserted | DocumentDeleted | Tombstone)
            and self._collections.known(event.collection) is not None
        )

    def put(self, work: Work) -> Call[Item, Prepared] | None:
        """Queue a work, None where its collection is not known (any more)."""
        event = work.event
        assert isinstance(event, DocumentUpserted | DocumentDeleted | Tombstone)
        collection = self._collections.known(event.collection)
        return None if collection is None else self._batcher.put((work, collection))

    def leave(self, call: Call[Item, Prepared]) -> None:
        """Take note that nobody waits for a work's answer any more."""
        self._batcher.leave(call)

    def model_of(self, work: Work) -> str | None:
        """Return the model that a work needs, None where it needs none that is known."""
        event = work.event
        if not isinstance(event, DocumentUpserted):
            return None
        return self._collections.model_of(event.collection)

    def forget(self, work: Work) -> None:
        """Look up a work's collection again, the next time."""
        event = work.event
        if isinstance(event, DocumentUpserted | DocumentDeleted | Tombstone):
            self._collections.forget(event.collection)

    async def _prepare(self, items: list[Item]) -> list[Prepared | BaseException]:
        bases = await self._store.read([_query(work) for work, _ in items])
        for (work, _), base in zip(items, bases, strict=True):
            _rank_by_origin(work, base)
        prepared = [
            changeset.settled(work, base) for (work, _), base in zip(items, bases, strict=True)
        ]
        answers = await self._changes(items, bases, prepared)
        return await self._without_refused(items, bases, answers)

    async def _without_refused(
        self,
        items: list[Item],
        bases: list[Base],
        answers: list[Prepared | BaseException],
    ) -> list[Prepared | BaseException]:
        """End the documents of which a chunk is known to be refused, and not asked again."""
        asked = {
            number: answer
            for number, answer in enumerate(answers)
            if bases[number].has_poison
            and isinstance(answer, ChangeSet)
            and answer.insert
            and not self._refusals.asks_again(items[number][0])
        }
        if asked:
            ends = await self._refusals.known(list(asked.values()))
            for number, end in zip(asked, ends, strict=True):
                answers[number] = end or answers[number]
        return answers

    async def _changes(
        self,
        items: list[Item],
        bases: list[Base],
        settled: Sequence[Unchanged | Superseded | None],
    ) -> list[Prepared | BaseException]:
        todo = [
            (work, collection, base)
            for (work, collection), base, end in zip(items, bases, settled, strict=True)
            if end is None and isinstance(work.event, DocumentUpserted)
        ]
        async with self._marks.busy(work for work, _, _ in todo):
            cuts = iter(await self._offload(partial(_cut_all, todo)) if todo else ())
        answers: list[Prepared | BaseException] = []
        for (work, collection), base, end in zip(items, bases, settled, strict=True):
            if end is not None:
                answers.append(end)
            elif not isinstance(work.event, DocumentUpserted):
                answers.append(changeset.delete(work, collection, base))
            elif isinstance(cut := next(cuts), Exception):
                answers.append(cut)
            else:
                answers.append(changeset.upsert(work, collection, base, *cut))
        return answers


def _query(work: Work) -> Query:
    return Query(work.document_key, work.claim.group, work.claimed_origin)


def _rank_by_origin(work: Work, base: Base) -> None:
    """Rank a replayed dead letter where it first stood, once the ledger has vouched for it."""
    if work.claimed_origin is not None and base.origin_known:
        work.rank = Rank(work.rank.version, work.claimed_origin)


def _cut_all(items: list[tuple[Work, Collection, Base]]) -> list[Cut | Exception]:
    cuts: list[Cut | Exception] = []
    for item in items:
        try:
            cuts.append(_cut(*item))
        except Exception as error:  # noqa: BLE001 - one document's, not its neighbours'
            cuts.append(error)
    return cuts


def _cut(work: Work, collection: Collection, base: Base) -> Cut:
    event = work.event
    assert isinstance(event, DocumentUpserted)
    content_type = None if event.content_type is UNSET else event.content_type
    digest = content_hash(event.text, content_type, collection.chunking)
    if changeset.same_content(base, digest):
        return digest, None
    return digest, split(event.text, content_type, collection.chunking)
