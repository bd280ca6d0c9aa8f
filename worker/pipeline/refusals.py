"""
What the provider has refused before, so that it is not asked and paid for again.

Owns what is done with the fingerprints of refused chunks: they are looked up before a document
is bought, written before its dead letter is, and forgotten once a document has passed that was
asked for again. Only refusals of a text are remembered, never an outage or a wrong answer, and
only of a record that is a dead letter: not of one that is released, as a provider that refuses
everybody says nothing about a text. It is a saving and no more: a fingerprint that cannot be
written costs another search, and holds up nobody.
"""

import asyncio
from collections.abc import Sequence

import structlog

from worker.core.flood import FloodState
from worker.core.lifecycle import Lives
from worker.core.model import ChangeSet, DeadLettered, Work
from worker.errors import PermanentError, WorkerError
from worker.ports import Poison, PoisonKey, Poisons, Refusal

log = structlog.get_logger(__name__)

_REMEMBER_SECONDS = 5.0


class Refusals:
    """The memory of refused chunks."""

    def __init__(self, poisons: Poisons, lives: Lives) -> None:
        self._poisons = poisons
        self._lives = lives

    def asks_again(self, work: Work) -> bool:
        """Tell whether a work that was ranked is asked for whatever is known of its chunks."""
        if work.rank.order == work.claimed_origin:  # a replay: the ledger has vouched for it
            return True
        life = self._lives.under(work.claim)
        return bool(life and life.flood and life.flood.state is FloodState.PROBING)

    async def known(self, changes: Sequence[ChangeSet]) -> list[PermanentError | None]:
        """
        Return for each change set the end of its document, None where nothing was refused.

        Raises:
            StoreUnavailable: they could not be looked up.
        """
        keys = {key for change in changes for key in _keys(change)}
        found = await self._poisons.known(sorted(keys)) if keys else {}
        return [_end(change, found) for change in changes]

    async def remember(self, tenant: str, dead: DeadLettered) -> None:
        """Write down what was refused; where that fails, it is found out again."""
        if dead.refused is None:
            return
        refusal = Refusal(dead.reason, dead.detail)
        try:
            async with asyncio.timeout(_REMEMBER_SECONDS):
                await self._poisons.remember({PoisonKey(tenant, *dead.refused): refusal})
        except (WorkerError, TimeoutError) as failure:
            log.warning(
                "a refused chunk is not remembered",
                action="poison_forgotten",
                error=str(failure) or type(failure).__name__,
            )

    async def forget(self, change: ChangeSet) -> None:
        """
        Forget the chunks of a document that were bought: the provider takes them now.

        Raises:
            StoreUnavailable: whether they are forgotten is unknown; repeating it is safe.
        """
        if keys := sorted(set(_keys(change))):
            await self._poisons.forget(keys)


def _keys(change: ChangeSet) -> list[PoisonKey]:
    tenant, model = change.key.tenant, change.collection.model
    return [PoisonKey(tenant, model, chunk.id.hash) for chunk in change.insert]


def _end(change: ChangeSet, found: dict[PoisonKey, Poison]) -> PermanentError | None:
    poison = next((found[key] for key in _keys(change) if key in found), None)
    if poison is None:
        return None
    since = poison.seen_at.strftime("%Y-%m-%d %H:%M UTC")
    said = f"a chunk of it is known since {since} to be refused, and is not asked for again"
    return PermanentError(poison.reason, f"{said}; a replay asks. {poison.detail}")
