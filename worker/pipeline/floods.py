"""
Partitions that are held because too many of their records would be dead letters.

Owns what the database says about them, so that operators see it, may say that a partition
should go on, and the next owner keeps to it. A held partition is claimed anew when its probe is
due or an operator has said so: what was released when it was held is then read again.
"""

from collections.abc import AsyncIterator, Callable

import structlog

from worker.config import DeadLetterOptions
from worker.core.flood import FloodGuard, FloodState
from worker.core.lifecycle import Lives, PartitionLife, Phase
from worker.core.model import Claim, Partition
from worker.errors import FencedError
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

    async def guard(self, claim: Claim) -> FloodGuard:
        """Return the guard of a partition that begins: it probes where it is held."""
        hold = await self._holds.found(claim.group, claim.partition)
        if hold is not None and hold.is_resumed:
            await self._lift(claim, "an operator lets the partition go on")
            hold = None
        return FloodGuard(self._options, is_held=hold is not None)

    async def due(self, lag: Callable[[Partition], int | None]) -> AsyncIterator[PartitionLife]:
        """
        Write what has changed, and yield the held lives that are to be claimed anew.

        Raises:
            TransientError: the database does not answer; called again, it goes on.
        """
        for life in self._lives:
            claim, guard = life.claim, life.flood
            if claim is None or guard is None:
                continue
            try:
                if life.phase is Phase.HELD and await self._is_due(claim, guard):
                    yield life
                elif life.runs(claim) and guard.is_told:
                    await self._watch(life, claim, guard, lag)
            except FencedError:
                life.fence(claim)  # where it is still ours, it is claimed anew

    async def _is_due(self, claim: Claim, guard: FloodGuard) -> bool:
        if guard.held_at is None:
            await self._holds.hold(claim, guard.problem)
            guard.held_at = self._clock()
            guard.is_told = True
            said = (
                f"{guard.problem}: held, a probe follows in {self._options.probe_seconds} s; "
                f"see `embedfleet dlq list`, `partitions resume {claim.partition.name}`"
            )
            log.error(said, action="partition_held", partition=claim.partition.name)
        waited = self._clock() - guard.held_at
        return waited >= self._options.probe_seconds or await self._is_resumed(claim)

    async def _watch(
        self,
        life: PartitionLife,
        claim: Claim,
        guard: FloodGuard,
        lag: Callable[[Partition], int | None],
    ) -> None:
        """Look after a partition that probes."""
        if lag(life.partition) == 0 and life.in_flight == 0:
            guard.idle()
        if guard.state is FloodState.HELD:
            life.hold(guard.problem)
        elif guard.state is FloodState.FREE:
            await self._lift(claim, "the flood of dead letters is over")
            guard.is_told = False
        elif await self._is_resumed(claim):
            await self._lift(claim, "an operator lets the partition go on")
            life.flood = FloodGuard(self._options)

    async def _is_resumed(self, claim: Claim) -> bool:
        hold = await self._holds.found(claim.group, claim.partition)
        return hold is not None and hold.is_resumed

    async def _lift(self, claim: Claim, why: str) -> None:
        await self._holds.lift(claim)
        log.warning(why, action="partition_resumed", partition=claim.partition.name)
