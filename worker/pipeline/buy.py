"""
One request for some chunks, until each of them is bought or blamed.

Owns the tries of a request: the waits between them, the budget of retries, and the search for
the texts that are to blame where a request is refused, or fails although others are answered. A
refusal and a wrong answer are about texts, a failure names nobody and is searched by document.
What is answered is handed out at once, so a text in question holds up none of its neighbours.

Never blames a text while the provider answers nobody for the model: then everything waits.
"""

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from schemas.dead_letter import Reason
from worker import failpoints
from worker.config import RetryOptions
from worker.core import retry
from worker.core.bisection import Bisection
from worker.core.model import Collection, DocumentKey, Vector
from worker.core.packing import Weight
from worker.core.suspicion import Judgement, Suspicion
from worker.core.vector_cache import VectorKey
from worker.errors import (
    BadOutput,
    BreakerOpen,
    Forbidden,
    PermanentError,
    ProviderUnavailable,
    RateLimited,
    RefusedText,
    RejectedInput,
)
from worker.pipeline.batcher import Call
from worker.ports import Embedder, EmbeddingRequest
from worker.telemetry import Counters, Tracing

_STAND_BACK_SECONDS = 1.0
"""Who was forbidden lets others go first: only their answers tell whose fault it is."""


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


Found = tuple[Sequence[Piece], list[Vector] | Exception]
"""Some chunks with their vectors, or with what became of all of them."""


class _Unwanted(ProviderUnavailable):
    """Nobody waits for it any more."""


class Buy:
    """
    The requests to the provider, several at once.

    `answers` counts its good answers by model. `forget` is told of chunks that are given up
    because nobody waits for them: whoever asks from then on orders them anew.
    """

    def __init__(
        self,
        embedder: Embedder,
        retries: RetryOptions,
        *,
        concurrency: int,
        counters: Counters,
        jitter: Callable[[], float],
        tracing: Tracing,
        forget: Callable[[Sequence[Piece]], None],
    ) -> None:
        self._embedder = embedder
        self._retries = retries
        self._counters = counters
        self._jitter = jitter
        self._tracing = tracing
        self._forget = forget
        self._budget = retry.RetryBudget()
        self._sending = asyncio.Semaphore(concurrency)
        self.answers: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()

    async def __call__(self, pieces: Sequence[Piece]) -> AsyncIterator[Found]:
        """Ask for chunks of one model; yield each of them once, with its vector or its end."""
        suspicion = Suspicion(self._retries.max_attempts, texts=len(pieces))
        answer = await self._ask(pieces, suspicion)
        while answer is None:
            await asyncio.sleep(self._patience_seconds())
            answer = await self._ask(pieces, suspicion)
        async for found in self._settled(pieces, answer):
            yield found

    async def _settled(
        self, pieces: Sequence[Piece], answer: list[Vector] | Exception
    ) -> AsyncIterator[Found]:
        if isinstance(answer, list | _Unwanted):
            yield pieces, answer
            return
        suspects = _suspects(pieces, answer)
        if len(suspects) == 1:
            yield pieces, _blamed(pieces, answer)
            return
        async for found in self._search(suspects):
            yield found

    async def _search(self, suspects: list[Sequence[Piece]]) -> AsyncIterator[Found]:
        """Ask for parts of a request, to find which of the suspects are to blame."""
        search = Bisection(len(suspects))
        waiting: deque[tuple[range, Sequence[Piece], Suspicion]] = deque()
        while True:
            for part in search.take():
                members = list(chain.from_iterable(suspects[part.start : part.stop]))
                waiting.append((part, members, self._suspicion_of(members)))
            if not waiting:
                return
            part, asked, suspicion = waiting.popleft()
            answer = await self._ask(asked, suspicion)
            if answer is None:  # behind those that nobody has asked for yet
                waiting.append((part, asked, suspicion))
                if all(one.waits_for_others for _, _, one in waiting):
                    await asyncio.sleep(self._patience_seconds())
            elif isinstance(answer, Exception) and len(part) > 1 and not _is_over(answer):
                search.refused(part)
            else:
                search.accepted(part)
                async for found in self._settled(asked, answer):
                    yield found

    def _suspicion_of(self, members: Sequence[Piece]) -> Suspicion:
        since = self.answers[members[0].collection.model]
        return Suspicion(
            self._retries.max_attempts,
            texts=len(members),
            documents=len({piece.document for piece in members}),
            since=since,
        )

    async def _ask(
        self, pieces: Sequence[Piece], suspicion: Suspicion
    ) -> list[Vector] | Exception | None:
        """
        Ask until an answer comes, or an error that may be the texts' fault.

        Returns None where only answers to others can tell.
        """
        model = pieces[0].collection.model
        while any(piece.waiters for piece in pieces):
            try:
                vectors = await self._embed(_request_of(pieces))
            except RejectedInput as error:
                return error
            except ProviderUnavailable as error:
                self._failures[model] += not isinstance(error, BreakerOpen | RateLimited)
                judgement = suspicion.failed(error, self.answers[model], self._failures[model])
                if judgement is Judgement.CONVICT:
                    return error
                if judgement is Judgement.HEAR_OTHERS:
                    return None
                await asyncio.sleep(self._wait_seconds(error, suspicion))
            else:
                self._count(model, vectors)
                return vectors
        self._forget(pieces)
        return _Unwanted()

    def _count(self, model: str, vectors: list[Vector]) -> None:
        self.answers[model] += 1
        self._budget.deposit()
        self._counters.chunks_embedded_total += len(vectors)

    def _wait_seconds(self, error: ProviderUnavailable, suspicion: Suspicion) -> float:
        """Return when to try again."""
        back = _STAND_BACK_SECONDS * (1 + self._jitter()) if suspicion.forbidden else 0.0
        if isinstance(error, BreakerOpen):  # nobody was asked
            return back + (error.retry_after_seconds or self._retries.base_seconds)
        self._counters.retries += 1
        is_throttled = isinstance(error, RateLimited)
        attempt = suspicion.throttled if is_throttled else suspicion.tries
        wait_seconds = retry.decide(error, attempt, self._retries, self._jitter())
        if wait_seconds is None:
            return self._patience_seconds()
        if not self._budget.withdraw(retry.retry_cost(error)):
            return max(wait_seconds, self._patience_seconds())
        return max(wait_seconds, back)

    def _patience_seconds(self) -> float:
        return self._jitter() * self._retries.cap_seconds

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


def _is_over(answer: Exception) -> bool:
    return isinstance(answer, _Unwanted)


def _suspects(pieces: Sequence[Piece], error: Exception) -> list[Sequence[Piece]]:
    """Return whom an error may be about: single texts, or documents where it names nothing."""
    if isinstance(error, RejectedInput | BadOutput | Forbidden):
        return [[piece] for piece in pieces]
    # Not `groupby`: where tenants take turns, so do the chunks of their documents.
    by_document: defaultdict[DocumentKey, list[Piece]] = defaultdict(list)
    for piece in pieces:
        by_document[piece.document].append(piece)
    return list(by_document.values())


def _request_of(pieces: Sequence[Piece]) -> EmbeddingRequest:
    first = pieces[0].collection
    return EmbeddingRequest(
        model=first.model,
        dimensions=first.dimensions,
        texts=[piece.text for piece in pieces],
        traceparents=[piece.traceparent for piece in pieces if piece.traceparent],
    )


def _blamed(pieces: Sequence[Piece], error: Exception) -> PermanentError:
    """Return the end of a text, or of a document, that was found to be at fault."""
    blame = _blame(error)
    if not isinstance(blame, RejectedInput):
        return blame
    (piece,) = pieces
    return blame.of(RefusedText(piece.collection.model, piece.key.hash))


def _blame(error: Exception) -> PermanentError:
    match error:
        case PermanentError():
            return error
        case Forbidden(status=status, request_id=request_id):
            words = (
                f"the provider, or a firewall before it, answers {status} to this text alone"
            )
            return RejectedInput(words, status=status, request_id=request_id)
        case BadOutput(facts=facts):
            return PermanentError(Reason.PROVIDER_BAD_OUTPUT, str(error), facts=facts)
        case ProviderUnavailable(facts=facts):
            return PermanentError(Reason.RETRIES_EXHAUSTED, str(error), facts=facts)
        case _:
            raise AssertionError(error)
