"""
Chunks become vectors, each bought once.

Owns the purchases that wait or are under way, one per chunk content, and the cache of what
was paid for and is not stored yet: a retry, a conflict or a rebalance does not buy again.
Chunks of many documents share a request (packed by count, tokens and bytes); never chunks of
two models, and none waits behind another model's. A purchase that nobody waits for any more is
dropped while it waits or has failed, and finished and kept once it was sent.

Fails a document only for what is its own: a text that was refused together with another
document's is asked for again.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat

from worker.config import EmbeddingOptions, RetryOptions
from worker.core.model import ChangeSet, ChunkId, Collection, Vector, Work
from worker.core.packing import PackLimits, Weight, estimate_tokens, take
from worker.core.vector_cache import VectorCache, VectorKey
from worker.errors import PermanentError
from worker.pipeline.batcher import Batcher
from worker.pipeline.buy import Buy, Piece
from worker.ports import Embedder, Spawn
from worker.telemetry import Counters, Tracing

_LINGER_SECONDS = 0.1
"""What a request that has room waits at most while documents wait for their turn, and others
that are under way will let them in: without a backlog nothing waits."""


@dataclass(slots=True, eq=False)
class Purchase:
    """The vectors of a change set that are at hand, and the chunks that are bought for it."""

    change: ChangeSet
    vectors: dict[VectorKey, Vector] = field(default_factory=dict)
    pieces: dict[VectorKey, Piece] = field(default_factory=dict)

    def shares(self, piece: Piece, error: BaseException) -> bool:
        """Tell whether an error may be another document's: the chunk is asked for again."""
        return isinstance(error, PermanentError) and piece.document != self.change.key

    def by_chunk(self) -> dict[ChunkId, Vector]:
        """Return the vector of each new chunk, once all are at hand."""
        collection = self.change.collection
        return {
            chunk.id: self.vectors[_key(collection, chunk.id)] for chunk in self.change.insert
        }


class Embed:
    """The stage from the new chunks of a change set to their vectors."""

    def __init__(
        self,
        embedder: Embedder,
        options: EmbeddingOptions,
        retries: RetryOptions,
        *,
        limits: PackLimits | None,
        counters: Counters,
        jitter: Callable[[], float],
        tracing: Tracing,
        spawn: Spawn,
        sets_aside: Callable[[str], bool],
        lets_in: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self._buy = Buy(
            embedder,
            retries,
            concurrency=options.concurrency,
            counters=counters,
            jitter=jitter,
            tracing=tracing,
            forget=self._forget,
        )
        self.cache = VectorCache(options.cache_bytes)
        self._buying: dict[VectorKey, Piece] = {}
        self._spawn = spawn
        self._concurrency = options.concurrency
        self._sets_aside = sets_aside
        self._lets_in = lets_in
        self._waiting_for: Counter[str] = Counter()
        self._limits = limits or PackLimits(
            max_inputs=options.max_inputs,
            max_tokens=options.max_request_tokens,
            max_bytes=options.max_request_bytes,
        )
        # One a model: a request keeps its slot between two attempts, and one model may ask
        # for a long patience.
        self._batchers: dict[tuple[str, int], Batcher[Piece, Vector]] = {}

    @property
    def answers(self) -> Counter[str]:
        """How many good answers the provider has given, by model."""
        return self._buy.answers

    @property
    def patient(self) -> int:
        """How many documents wait for a model that is left alone while others are not."""
        return sum(
            count for model, count in self._waiting_for.items() if self._sets_aside(model)
        )

    @property
    def requests_in_flight(self) -> int:
        """How many requests are under way, or between two attempts."""
        return sum(batcher.working for batcher in self._batchers.values())

    @property
    def waiting(self) -> int:
        """How many chunks wait for a request."""
        return sum(batcher.waiting for batcher in self._batchers.values())

    async def __call__(
        self, work: Work, change: ChangeSet, bought: Callable[[], None] = lambda: None
    ) -> dict[ChunkId, Vector]:
        """
        Return a vector for each chunk that the change set inserts.

        Calls `bought` whenever one has come that was waited for.

        Raises:
            PermanentError: a chunk of this document cannot be embedded.
        """
        purchase = self.begin(work, change)
        try:
            for key, joined in list(purchase.pieces.items()):
                piece = joined
                while (vector := await self._wait(piece, purchase, bought)) is None:
                    self._leave(piece)
                    piece = purchase.pieces[key] = self._join(key, piece.text, work, change)
                purchase.vectors[key] = vector
        finally:
            self.end(purchase)
        return purchase.by_chunk()

    def begin(self, work: Work, change: ChangeSet) -> Purchase:
        """Order what is not at hand; until `end`, the document waits for it."""
        purchase = Purchase(change)
        self._waiting_for[change.collection.model] += 1
        for chunk in change.insert:
            key = _key(change.collection, chunk.id)
            if key in purchase.vectors or key in purchase.pieces:
                continue
            known = self.cache.get(key)
            if known is None:
                purchase.pieces[key] = self._join(key, chunk.content, work, change)
            else:
                purchase.vectors[key] = known
        return purchase

    def end(self, purchase: Purchase) -> None:
        """Take note that the document waits for none of it any more."""
        self._waiting_for[purchase.change.collection.model] -= 1
        for piece in purchase.pieces.values():
            self._leave(piece)

    def stored(self, change: ChangeSet) -> None:
        """Forget the vectors of a change set: they are in the table now."""
        for chunk in change.insert:
            self.cache.discard(_key(change.collection, chunk.id))

    def _join(self, key: VectorKey, text: str, work: Work, change: ChangeSet) -> Piece:
        """Wait for a chunk that is being bought, or order it."""
        piece = self._buying.get(key)
        if piece is None:
            weight = Weight(1, estimate_tokens(text), len(text.encode()))
            piece = Piece(key, text, change.collection, change.key, work.traceparent, weight)
            piece.call = self._batcher(change.collection).put(piece)
            piece.call.answer.add_done_callback(_retrieve)
            self._buying[key] = piece
        piece.waiters += 1
        return piece

    def _batcher(self, collection: Collection) -> Batcher[Piece, Vector]:
        model = collection.model, collection.dimensions
        if model not in self._batchers:
            self._batchers[model] = Batcher[Piece, Vector](
                self._bought,
                spawn=self._spawn,
                slots=self._concurrency,
                take=lambda pieces: take((piece.weight for piece in pieces), self._limits),
                tenant=lambda piece: piece.document.tenant,
                linger_seconds=_LINGER_SECONDS,
                more_to_come=self._more_to_come,
            )
        return self._batchers[model]

    def _more_to_come(self) -> bool:
        """Tell whether works that end, here or elsewhere, will let other documents in."""
        return self._lets_in(0 if self.requests_in_flight else self._waiting_for.total())

    async def _wait(
        self, piece: Piece, purchase: Purchase, bought: Callable[[], None]
    ) -> Vector | None:
        """Return a vector, None where it was refused together with another document's."""
        assert piece.call is not None
        answer = piece.call.answer
        if answer.done() and not answer.cancelled() and answer.exception() is None:
            return answer.result()
        try:
            vector = await asyncio.shield(answer)
        except PermanentError as error:
            if not purchase.shares(piece, error):
                raise
            return None
        bought()
        return vector

    def _leave(self, piece: Piece) -> None:
        piece.waiters -= 1
        call = piece.call
        if piece.waiters == 0 and call is not None and call.batch is None:
            self._batcher(piece.collection).leave(call)
            self._forget([piece])

    def _forget(self, pieces: Sequence[Piece]) -> None:
        """Let whoever asks for these chunks from now on order them anew."""
        for piece in pieces:
            if self._buying.get(piece.key) is piece:
                del self._buying[piece.key]

    async def _bought(self, pieces: list[Piece]) -> list[Vector | BaseException]:
        """Buy some chunks; who waits for one has it as soon as it comes."""
        answers: dict[Piece, Vector | BaseException] = {}
        try:
            async for part, found in self._buy(pieces):
                ends: Iterable[Vector | Exception] = (
                    repeat(found) if isinstance(found, Exception) else found
                )
                answers.update(zip(part, ends, strict=False))
                for piece in part:
                    self._hand_out(piece, answers[piece])
        finally:
            self._forget(pieces)
        return [answers[piece] for piece in pieces]

    def _hand_out(self, piece: Piece, answer: Vector | BaseException) -> None:
        self._forget([piece])
        if not isinstance(answer, BaseException):
            self.cache.put(piece.key, answer)
        if piece.call is not None:
            piece.call.reply(answer)


def _key(collection: Collection, chunk: ChunkId) -> VectorKey:
    return VectorKey(collection.id, collection.generation, chunk.hash)


def _retrieve(answer: asyncio.Future[Vector]) -> None:
    """Look at an answer that nobody may be waiting for any more."""
    if not answer.cancelled():
        answer.exception()
