"""
The one place where a work ends.

Owns the dead letters under way. Completes an offset only after its effect is durable: a row
that is committed, or a dead letter that has a fenced ledger row, was acknowledged by the
dead-letter topic and is marked (protocol, changes 5 and 18). A dead-letter topic that fails is
an outage: everything waits, nothing is dropped.
"""

from collections.abc import Callable, Iterable
from itertools import islice

import structlog
from msgspec import UNSET

from schemas.events import DocumentDeleted, DocumentUpserted, ScopeDeleted, Tombstone
from worker import failpoints
from worker.core.lifecycle import Lives
from worker.core.model import (
    DeadLettered,
    Order,
    Outcome,
    Rejected,
    Released,
    Stored,
    Superseded,
    Work,
)
from worker.errors import FencedError
from worker.pipeline.backoff import until_done
from worker.pipeline.batcher import Batcher
from worker.ports import DeadLetter, DeadLetters, Ledger, LetterPlace, Recorded, Spawn
from worker.telemetry import Counters, work_fields

log = structlog.get_logger(__name__)

_BATCH_LETTERS = 64


class Settle:
    """The end of a work: its dead letter if it needs one, then its offset."""

    def __init__(
        self,
        ledger: Ledger,
        dead_letters: DeadLetters,
        lives: Lives,
        *,
        counters: Counters,
        wall_clock: Callable[[], float],
        jitter: Callable[[], float],
        spawn: Spawn,
    ) -> None:
        self._ledger = ledger
        self._dead_letters = dead_letters
        self._lives = lives
        self._counters = counters
        self._wall_clock = wall_clock
        self._jitter = jitter
        self._records = Batcher[DeadLetter, Recorded | None](
            ledger.record, spawn=spawn, slots=1, take=_take, apart=True
        )
        self._published = Batcher[tuple[str, LetterPlace], None](
            self._mark_published, spawn=spawn, slots=1, take=_take, group=lambda item: item[0]
        )

    async def __call__(self, work: Work, outcome: Outcome) -> None:
        """
        End a work with its outcome.

        What was parked under it is superseded with it; under a dead letter it has its turn
        again, and under a released work it is released.

        Raises:
            FencedError: the claim is not the newest any more; nothing completes.
        """
        if isinstance(outcome, Released):
            self.released(work)
            return
        if isinstance(outcome, DeadLettered):
            await self._dead_letter(_letter(work, outcome))
            self._end(work, outcome)
            return
        for ended, how in [(work, outcome), *((one, Superseded()) for one in work.parked)]:
            self._end(ended, how)

    def released(self, work: Work) -> None:
        """Count a work that is left to the next owner of its partition."""
        self._counters.outcomes["released", ""] += 1 + len(work.parked)

    def _end(self, work: Work, outcome: Outcome) -> None:
        life = self._lives.under(work.claim)
        if life is None:
            return
        life.end_work(work, outcome)
        reason = ""
        if isinstance(outcome, DeadLettered):
            reason = outcome.reason.value
            log.warning(
                "dead letter",
                action="dead_lettered",
                reason=reason,
                stage=outcome.stage,
                **work_fields(work.position, work.tenant or None, work.traceparent),
            )
        self._counters.outcomes[type(outcome).__name__.lower(), reason] += 1
        self._counters.documents_total += 1
        if isinstance(outcome, Stored):
            self._counters.freshness.record(self._age_seconds(work))

    def _age_seconds(self, work: Work) -> float:
        occurred_at = getattr(work.event, "occurred_at", UNSET)
        since = (
            work.record.timestamp_ms / 1000 if occurred_at is UNSET else occurred_at.timestamp()
        )
        return max(0.0, self._wall_clock() - since)

    async def _dead_letter(self, letter: DeadLetter) -> None:
        recorded = await until_done(lambda: self._records.submit(letter), self._jitter)
        if recorded is None:
            raise FencedError
        if recorded.is_published:
            return  # it was read again after a rewind, or when its partition was held
        await failpoints.reach("in_dead_letter")
        await until_done(lambda: self._dead_letters.publish(letter, recorded), self._jitter)
        await failpoints.reach("after_dead_letter")
        place = LetterPlace(*letter.record.position, letter.claim.incarnation)
        mark = (letter.claim.group, place)
        await until_done(lambda: self._published.submit(mark), self._jitter)

    async def _mark_published(self, marks: list[tuple[str, LetterPlace]]) -> list[None]:
        await self._ledger.mark_published(marks[0][0], [place for _, place in marks])
        return [None] * len(marks)


def _take(items: Iterable[object]) -> int:
    return len(list(islice(items, _BATCH_LETTERS)))


def _letter(work: Work, outcome: DeadLettered) -> DeadLetter:
    event = work.event
    tenant = collection = document_id = None
    match event:
        case DocumentUpserted() | DocumentDeleted() | Tombstone():
            tenant, collection, document_id = event.tenant, event.collection, event.id
        case Rejected():
            tenant = event.tenant or None
            collection, document_id = event.collection, event.id
        case ScopeDeleted():
            tenant = event.tenant
    return DeadLetter(
        record=work.record,
        claim=work.claim,
        reason=outcome.reason,
        stage=outcome.stage,
        detail=outcome.detail,
        facts=outcome.facts,
        origin=_origin(work),
        tenant=tenant,
        collection=collection,
        document_id=document_id,
        version=work.rank.version,
        traceparent=work.traceparent,
        passes=work.passes,
    )


def _origin(work: Work) -> Order:
    """Return where the event first stood: chained replays keep the first origin."""
    return work.claimed_origin or work.rank.order
