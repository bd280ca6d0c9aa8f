"""
What a document needs: read what is stored, decide, and cut what is new.

Owns the look-up of many documents at once (one statement) and the one hop of many documents
to a thread (normalise, cut, hash). Never writes. What it answers is either an outcome that
committed rows cover already, or a change set with the base that it was computed from.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from itertools import islice

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
from worker.pipeline.batcher import Batcher
from worker.ports import Catalog, Clock, Offload, Query, Spawn, Store

Prepared = ChangeSet | Unchanged | Superseded
Item = tuple[Work, Collection]
Cut = tuple[bytes, tuple[Chunk, ...] | None]


class Collections:
    """
    The collections by name, looked up again for a while where one is unknown.

    An unknown name is most often a deploy in the wrong order, so its first record waits for
    `grace_seconds`; later records of that name wait for what is left of them.
    """

    _LOOK_AGAIN_SECONDS = 1.0

    def __init__(self, catalog: Catalog, *, clock: Clock, grace_seconds: float) -> None:
        self._catalog = catalog
        self._clock = clock
        self._grace_seconds = grace_seconds
        self._known: dict[str, Collection] = {}
        self._missed_since: dict[str, float] = {}
        self._looked_at: dict[str, float] = {}
        self._looking = asyncio.Lock()

    async def find(self, name: str) -> Collection:
        """
        Return a collection.

        Raises:
            UnknownCollection: there is none, also after the time of grace.
        """
        while (known := await self._look(name)) is None:
            waited = self._clock() - self._missed_since[name]
            if waited >= self._grace_seconds:
                raise UnknownCollection(name)
            await asyncio.sleep(min(self._LOOK_AGAIN_SECONDS, self._grace_seconds - waited))
        return known

    def _is_due(self, name: str) -> bool:
        looked = self._looked_at.get(name)
        return looked is None or self._clock() - looked >= self._LOOK_AGAIN_SECONDS

    async def _look(self, name: str) -> Collection | None:
        if name in self._known:
            return self._known[name]
        async with self._looking:
            if name not in self._known and self._is_due(name):
                await self._ask(name)
        return self._known.get(name)

    async def _ask(self, name: str) -> None:
        found = await self._catalog.collection(name)
        self._looked_at[name] = self._clock()
        if found is None:
            self._missed_since.setdefault(name, self._clock())
        else:
            self._known[name] = found
            self._missed_since.pop(name, None)


class Prepare:
    """The stage from an event to its change set."""

    def __init__(
        self,
        store: Store,
        collections: Collections,
        options: IngestOptions,
        *,
        offload: Offload,
        spawn: Spawn,
    ) -> None:
        self._store = store
        self._collections = collections
        self._offload = offload
        self._batcher = Batcher[Item, Prepared](
            self._prepare,
            spawn=spawn,
            slots=options.prepare_slots,
            take=lambda items: len(list(islice(items, options.prepare_batch_documents))),
        )

    async def __call__(self, work: Work) -> Prepared:
        """Return how the work ends already, or what is to be written."""
        event = work.event
        assert isinstance(event, DocumentUpserted | DocumentDeleted | Tombstone)
        collection = await self._collections.find(event.collection)
        return await self._batcher.submit((work, collection))

    async def _prepare(self, items: list[Item]) -> list[Prepared | BaseException]:
        bases = await self._store.read([_query(work) for work, _ in items])
        for (work, _), base in zip(items, bases, strict=True):
            _rank_by_origin(work, base)
        prepared = [
            changeset.settled(work, base) for (work, _), base in zip(items, bases, strict=True)
        ]
        return await self._changes(items, bases, prepared)

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
    origin = work.claimed_origin
    if origin is not None and base.origin_known:
        work.rank = Rank(work.rank.version, origin)


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
