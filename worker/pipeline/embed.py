"""
Chunks become vectors, each bought once.

Owns the purchases that wait or are under way, one per chunk content, and the cache of what
was paid for and is not stored yet: a retry, a conflict or a rebalance does not buy again.
Chunks of many documents share a request (packed by count, tokens and bytes); never chunks of
two models, and none waits behind another model's. A purchase that nobody waits for any more is
dropped while it waits or has failed, and finished and kept once it was sent.

Fails a document only for what is its own: a refused request is sent again document by
document, and so is one whose attempts are used up while the provider answers others. A text
that was refused together with another document's is asked for again. While the provider
answers nobody, everything waits.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from schemas.dead_letter import Reason
from worker import failpoints
from worker.config import EmbeddingOptions, RetryOptions
from worker.core import retry
from worker.core.bisection import Bisection
from worker.core.model import ChangeSet, ChunkId, Collection, DocumentKey, Vector, Work
from worker.core.packing import PackLimits, Weight, estimate_tokens, take
from worker.core.vector_cache import VectorCache, VectorKey
from worker.errors import (
    BadOutput,
    BreakerOpen,
    PermanentError,
    ProviderUnavailable,
    RateLimited,
    RejectedInput,
)
from worker.pipeline.batcher import Batcher, Call
from worker.ports import Clock, Embedder, EmbeddingRequest, Spawn
from worker.telemetry import Counters, Tracing


@dataclass(slots=True, eq=False)
class Piece:
    """One chunk to buy: its text, and who asked first."""

    key: VectorKey
    text: str
    collection: Collection
    document: DocumentKey
    traceparent: str | None
    weight: Weight
    waiters: int = 0
    call: "Call[Piece, Vector] | None" = field(default=None, repr=False)


class _Tries:
    """
    The failed tries of one request; throttled ones count apart, they have no limit.

    `since` is the first of those that count: an answer to others before it says nothing about
    a provider that has gone since.
    """

    def __init__(self, since: float) -> None:
        self.since = since
        self._failed = 0
        self._throttled = 0

    def forgive(self, now: float) -> None:
        """Begin to count anew."""
        self.since = now
        self._failed = 0

    def count(self, error: ProviderUnavailable, now: float) -> int:
        """Count a failed try and return which one of its kind it is."""
        if self._failed + self._throttled == 0:
            self.since = now
        if isinstance(error, RateLimited):
            self._throttled += 1
            return self._throttled
        self._failed += 1
        return self._failed


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
        clock: Clock,
        jitter: Callable[[], float],
        tracing: Tracing,
        spawn: Spawn,
    ) -> None:
        self._embedder = embedder
        self._retries = retries
        self._counters = counters
        self._clock = clock
        self._jitter = jitter
        self._tracing = tracing
        self._answered_at = float("-inf")
        self.answers = 0
        self._budget = retry.RetryBudget()
        self.cache = VectorCache(options.cache_bytes)
        self._buying: dict[VectorKey, Piece] = {}
        self._spawn = spawn
        self._concurrency = options.concurrency
        self._sending = asyncio.Semaphore(options.concurrency)
        self._limits = limits or PackLimits(
            max_inputs=options.max_inputs,
            max_tokens=options.max_request_tokens,
            max_bytes=options.max_request_bytes,
        )
        # One a model: a request keeps its slot between two attempts, and one model may ask
        # for a long patience.
        self._batchers: dict[tuple[str, int], Batcher[Piece, Vector]] = {}

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
        vectors: dict[VectorKey, Vector] = {}
        pieces: dict[VectorKey, Piece] = {}
        try:
            for chunk in change.insert:
                key = _key(change.collection, chunk.id)
                if key in vectors or key in pieces:
                    continue
                known = self.cache.get(key)
                if known is None:
                    pieces[key] = self._join(key, chunk.content, work, change)
                else:
                    vectors[key] = known
            for key, joined in list(pieces.items()):
                piece = joined
                while (vector := await self._wait(piece, change, bought)) is None:
                    self._leave(piece)
                    piece = pieces[key] = self._join(key, piece.text, work, change)
                vectors[key] = vector
        finally:
            for piece in pieces.values():
                self._leave(piece)
        return {chunk.id: vectors[_key(change.collection, chunk.id)] for chunk in change.insert}

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
                self._buy,
                spawn=self._spawn,
                slots=self._concurrency,
                take=lambda pieces: take((piece.weight for piece in pieces), self._limits),
            )
        return self._batchers[model]

    async def _wait(
        self, piece: Piece, change: ChangeSet, bought: Callable[[], None]
    ) -> Vector | None:
        """Return a vector, None where it was refused together with another document's."""
        assert piece.call is not None
        answer = piece.call.answer
        if answer.done() and not answer.cancelled() and answer.exception() is None:
            return answer.result()
        try:
            vector = await asyncio.shield(answer)
        except PermanentError:
            if piece.document == change.key:
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

    async def _buy(self, pieces: list[Piece]) -> list[Vector | BaseException]:
        try:
            answers = await self._request(pieces)
        finally:
            self._forget(pieces)
        for piece, answer in zip(pieces, answers, strict=True):
            if not isinstance(answer, BaseException):
                self.cache.put(piece.key, answer)
        return answers

    async def _request(self, pieces: list[Piece]) -> list[Vector | BaseException]:
        """Buy some chunks with one request, as often as it takes."""
        tries = _Tries(self._clock())
        while True:
            try:
                vectors = await self._embed(_request_of(pieces))
            except RejectedInput as error:
                return await self._bisect(pieces, error)
            except ProviderUnavailable as error:
                wait_seconds = self._patience_seconds(error, tries)
                if wait_seconds is None:
                    return await self._apart(pieces, _exhausted(error))
                await asyncio.sleep(wait_seconds)
                if not any(piece.waiters for piece in pieces):
                    self._forget(pieces)
                    return [error] * len(pieces)
            else:
                return self._bought(vectors)

    def _bought(self, vectors: list[Vector]) -> list[Vector | BaseException]:
        self._answered_at = self._clock()
        self.answers += 1
        self._budget.deposit()
        self._counters.chunks_embedded_total += len(vectors)
        return list(vectors)

    def _patience_seconds(self, error: ProviderUnavailable, tries: _Tries) -> float | None:
        """Return when to try again; None where others are answered and this one never is."""
        if isinstance(error, BreakerOpen):  # nobody was asked: nothing is charged
            return error.retry_after_seconds or self._retries.base_seconds
        again = retry.decide(
            error, tries.count(error, self._clock()), self._retries, self._jitter()
        )
        patience = self._jitter() * self._retries.cap_seconds
        self._counters.retries += 1
        if again is not None:
            may_retry = self._budget.withdraw(retry.retry_cost(error))
            return again.wait_seconds if may_retry else max(again.wait_seconds, patience)
        if self._answered_at > tries.since:
            return None
        tries.forgive(self._clock())  # it answers nobody: everything waits
        return patience

    async def _embed(self, request: EmbeddingRequest) -> list[Vector]:
        attributes: dict[str, str | int] = {
            "gen_ai.request.model": request.model,
            "inputs": len(request.texts),
        }
        async with self._sending:
            with self._tracing.batch_span("embeddings", request.traceparents, attributes):
                vectors = await self._embedder.embed(request)
        await failpoints.reach("after_answer")
        return vectors

    async def _bisect(
        self, pieces: list[Piece], error: RejectedInput
    ) -> list[Vector | BaseException]:
        """Find out which texts of a refused request are to blame; the others are bought."""
        answers: list[Vector | BaseException] = [error] * len(pieces)
        search = Bisection(len(pieces))
        while not search.is_done:
            for part in search.take():
                found = await self._part(pieces[part.start : part.stop])
                if found is None:
                    search.refused(part)
                else:
                    search.accepted(part)
                    answers[part.start : part.stop] = found
        return answers

    async def _part(self, pieces: list[Piece]) -> list[Vector | BaseException] | None:
        """Send a part of a refused request; None where it is refused as well."""
        try:
            vectors = await self._embed(_request_of(pieces))
        except RejectedInput:
            return None
        except ProviderUnavailable:
            return await self._request(pieces)
        return self._bought(vectors)

    async def _apart(
        self, pieces: list[Piece], error: PermanentError
    ) -> list[Vector | BaseException]:
        """Send a refused request again document by document, to find whose fault it is."""
        documents = [list(group) for _, group in groupby(pieces, key=lambda p: p.document)]
        if len(documents) == 1:
            return [error] * len(pieces)
        answers: list[Vector | BaseException] = []
        for document in documents:
            answers += await self._request(document)
        return answers


def _key(collection: Collection, chunk: ChunkId) -> VectorKey:
    return VectorKey(collection.id, collection.generation, chunk.hash)


def _request_of(pieces: Sequence[Piece]) -> EmbeddingRequest:
    first = pieces[0].collection
    return EmbeddingRequest(
        model=first.model,
        dimensions=first.dimensions,
        texts=[piece.text for piece in pieces],
        traceparents=[piece.traceparent for piece in pieces if piece.traceparent],
    )


def _exhausted(error: ProviderUnavailable) -> PermanentError:
    is_answer = isinstance(error, BadOutput)
    reason = Reason.PROVIDER_BAD_OUTPUT if is_answer else Reason.RETRIES_EXHAUSTED
    return PermanentError(reason, str(error), facts=error.facts)


def _retrieve(answer: asyncio.Future[Vector]) -> None:
    """Look at an answer that nobody may be waiting for any more."""
    if not answer.cancelled():
        answer.exception()
