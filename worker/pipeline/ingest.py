"""
The whole life of a document, from its event to its outcome.

Owns nothing but the order of the stages: prepare, embed, store, and again where the row moved
meanwhile or PostgreSQL did not answer. A pass ends when nothing was bought for it for the
time that a document may take: it would have to begin again with what the cache has kept.
Never settles, never commits.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import structlog

from schemas.dead_letter import Reason
from schemas.events import DocumentUpserted, ScopeDeleted
from worker.config import IngestOptions
from worker.core.model import (
    ChangeSet,
    ChunkId,
    Claim,
    DeadLettered,
    Deleted,
    Outcome,
    Rejected,
    Released,
    Stored,
    Vector,
    Work,
)
from worker.errors import (
    FencedError,
    PermanentError,
    RejectedInput,
    StoreUnavailable,
    WorkerError,
)
from worker.pipeline.embed import Embed
from worker.pipeline.marks import Marks
from worker.pipeline.prepare import Prepare
from worker.pipeline.refusals import Refusals
from worker.pipeline.store import Save
from worker.ports import Verdict

log = structlog.get_logger(__name__)

_MAX_PASSES = 5
"""Passes in which others were answered before a document is a dead letter."""
# What a write takes of the processor is over by then; the rest is waiting for the database.
_BUSY_SECONDS = 2.0
_LARGE_BYTES = 4 * 1024 * 1024
_ALONE_AFTER = 3
"""Rounds against a moving row before a document gets a transaction of its own."""


class Stumbled(NamedTuple):
    """What a work has met in company, None: only that it must go alone; answers before that."""

    error: Exception | None
    answers: dict[str, int]

    def again(self) -> None:
        """Meet it again."""
        if self.error is not None:
            raise self.error


class Ingest:
    """What is done for one work; `is_ending` tells that its claim is being drained."""

    def __init__(
        self,
        prepare: Prepare,
        embed: Embed,
        save: Save,
        marks: Marks,
        refusals: Refusals,
        options: IngestOptions,
        *,
        is_ending: Callable[[Claim], bool],
        jitter: Callable[[], float],
    ) -> None:
        self._prepare = prepare
        self._embed = embed
        self._save = save
        self._marks = marks
        self._refusals = refusals
        self._document_timeout_seconds = options.document_timeout_seconds
        self._outlives_defects = options.internal_error == "dead_letter"
        self._is_ending = is_ending
        self._jitter = jitter

    @property
    def patient(self) -> int:
        """How many works only wait: for an unknown collection, or a model left alone."""
        return self._prepare.patient + self._embed.patient

    async def __call__(self, work: Work, stumbled: Stumbled | None = None) -> Outcome | None:
        """
        Take one event from text to stored vectors, or to the reason why not; None: again.

        What it has `stumbled` over in the company of others is as if it were met here.

        Raises:
            FencedError: the claim is not the newest any more.
        """
        if isinstance(work.event, Rejected):
            return DeadLettered(work.event.reason, work.event.detail, "decode")
        stumbled = stumbled or Stumbled(None, dict(self._embed.answers))
        try:
            async with asyncio.timeout(self._document_timeout_seconds) as deadline:
                stumbled.again()
                return await self._write(work, deadline)
        except TimeoutError:
            return self._timed_out(work, stumbled.answers)
        except StoreUnavailable:
            self._prepare.forget(work)  # its collection may have been made anew
            await asyncio.sleep(0.1 + self._jitter())
            return None
        except PermanentError as error:
            return _dead(error)
        except WorkerError:
            raise
        except Exception as error:
            if not self._outlives_defects:
                await self._marks.blame(work)
                raise
            log.exception("internal error", action="internal_error", position=work.position)
            return DeadLettered(Reason.INTERNAL_ERROR, type(error).__name__, "ingest")

    def _timed_out(self, work: Work, before: dict[str, int]) -> DeadLettered | None:
        # While the provider answers nobody for its model, a pass costs the document nothing.
        answers, model = self._embed.answers, self._prepare.model_of(work)
        if model is None:
            was_answered = answers.total() > sum(before.values())
        else:
            was_answered = answers[model] > before.get(model, 0)
        work.passes += was_answered
        if work.passes < _MAX_PASSES:
            return None
        return DeadLettered(
            Reason.DEADLINE_EXCEEDED, f"{work.passes} passes came to no end", "ingest"
        )

    async def _write(self, work: Work, deadline: asyncio.Timeout) -> Outcome:
        """Decide, buy and compare-and-set, until the row stands still."""
        if isinstance(work.event, ScopeDeleted):
            refuse_fenced(await self._save.scope(work))
            return Deleted()
        rounds = 0
        while True:
            change = await self._prepare(work)
            if not isinstance(change, ChangeSet):
                return change
            if self._is_ending(work.claim):
                return Released()
            asks_again = self._refusals.asks_again(work)
            vectors = await self._vectors(work, change, deadline)
            if asks_again:
                await self._refusals.forget(change)
            verdict = await self._store(work, change, vectors, alone=rounds >= _ALONE_AFTER)
            if verdict is Verdict.APPLIED:
                self._embed.stored(change)
                return outcome_of(work, change)
            refuse_fenced(verdict)
            rounds += 1

    async def _vectors(
        self, work: Work, change: ChangeSet, deadline: asyncio.Timeout
    ) -> dict[ChunkId, Vector]:
        def bought() -> None:
            now = asyncio.get_running_loop().time()
            deadline.reschedule(now + self._document_timeout_seconds)

        return await self._embed(work, change, bought) if change.insert else {}

    async def _store(
        self, work: Work, change: ChangeSet, vectors: dict[ChunkId, Vector], *, alone: bool
    ) -> Verdict:
        # A small write kills nobody, and a process that is killed in it has not died of it.
        if not work.is_alone or sum(map(len, vectors.values())) < _LARGE_BYTES:
            return await self._save(work, change, vectors, alone=alone)
        async with self._marks.busy([work], _BUSY_SECONDS):
            return await self._save(work, change, vectors, alone=alone)


def _dead(error: PermanentError) -> DeadLettered:
    refused = error.text if isinstance(error, RejectedInput) else None
    return DeadLettered(error.reason, str(error), "ingest", error.facts, refused)


def outcome_of(work: Work, change: ChangeSet) -> Outcome:
    """Return how a work ends whose change set was written."""
    if isinstance(work.event, DocumentUpserted):
        return Stored(embedded=len(change.insert), kept=change.kept)
    return Deleted()


def refuse_fenced(verdict: Verdict) -> None:
    """
    Go on only under a claim that is the newest.

    Raises:
        FencedError: it is not.
    """
    if verdict is Verdict.FENCED:
        raise FencedError
