"""
Partitions that are held because too many of their records would be dead letters.

Owns what the database says about them, so that operators see it, may say that a partition
should go on, and the next owner keeps to it. A held partition is claimed anew when its probe is
due or an operator has said so: what was released when it was held is then read again.
"""

from collections.abc import AsyncIterator

import structlog

from worker.config import DeadLetterOptions
from worker.core.flood import FloodGuard, Flow
from worker.core.lifecycle import Lives, PartitionLife, Phase
from worker.core.model import Claim
from worker.ports import Clock, Holds

log = structlog.get_logger(__name__)


class Floods:
    """The guards of a worker's partitions, and the holds that they have led to."""

    def __init__(
        self, holds: Holds, lives: Lives, options: DeadLetterOptions, *, clock: Clock
    ) -> None:
        self._holds = holds
        self._lives = lives
        self._options = options
        self._clock = clock
        self._held_at: dict[PartitionLife, float] = {}
        self._probing: set[PartitionLife] = set()

    async def guard(self, life: PartitionLife, claim: Claim) -> FloodGuard:
        """Return the guard of a partition that begins: it probes where it is held."""
        hold = await self._holds.found(claim.group, claim.partition)
        if hold is not None and hold.is_resumed:
            await self._holds.lift(claim)
            hold = None
        if hold is not None:
            self._probing.add(life)
        return FloodGuard(self._options, is_held=hold is not None)

    async def due(self) -> AsyncIterator[PartitionLife]:
        """
        Write what has changed, and yield the held lives that are to be claimed anew.

        Raises:
            TransientError: the database does not answer; called again, it goes on.
        """
        for life in self._lives.in_phase(Phase.HELD):
            if await self._is_due(life):
                del self._held_at[life]
                yield life
        for life in self._lives.in_phase(Phase.RUNNING):
            if life in self._probing and life.flood and life.flood.flow is Flow.FREE:
                await self._over(life)
        self._forget()

    async def _is_due(self, life: PartitionLife) -> bool:
        claim = life.claim
        assert claim is not None
        if life not in self._held_at:
            await self._holds.hold(claim, life.problem or "")
            self._held_at[life] = self._clock()
            problem = f"{life.problem}: the partition is held"
            log.error(problem, action="partition_held", partition=_name(life))
        hold = await self._holds.found(claim.group, claim.partition)
        waited = self._clock() - self._held_at[life]
        return waited >= self._options.probe_seconds or (hold is not None and hold.is_resumed)

    async def _over(self, life: PartitionLife) -> None:
        assert life.claim is not None
        await self._holds.lift(life.claim)
        self._probing.discard(life)
        over = "the flood of dead letters is over"
        log.warning(over, action="partition_resumed", partition=_name(life))

    def _forget(self) -> None:
        """Let go of the lives that have ended."""
        lives = set(self._lives)
        self._probing &= lives
        self._held_at = {life: at for life, at in self._held_at.items() if life in lives}


def _name(life: PartitionLife) -> str:
    return f"{life.partition.topic}/{life.partition.number}"
