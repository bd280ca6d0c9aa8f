"""
Works in flight: taken from the scheduler, carried to their end, together or alone.

Owns the tasks, and the bound of works in flight. Where one more dead letter would
be a flood, its partition is held instead (`core.flood`), and its works are released. Draining
is one code path for a revoked partition, a fenced claim and a stopping worker: what waits is
released, what is in flight may finish until the deadline and is then cancelled.

Invariant: every work that was added is waiting, in flight or finished, also when a task is
cancelled or fails, so a drain always ends.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection

import structlog

from worker.core.flood import FloodGuard, FloodState
from worker.core.lifecycle import Lives, PartitionLife
from worker.core.model import Claim, DeadLettered, Outcome, Released, Work
from worker.core.scheduler import Scheduler
from worker.errors import FencedError
from worker.pipeline.ingest import Ingest, Stumbled
from worker.pipeline.refusals import Refusals
from worker.pipeline.settle import Settle
from worker.pipeline.together import Together
from worker.ports import Clock, Source
from worker.telemetry import Counters

log = structlog.get_logger(__name__)

_CANCEL_SECONDS = 2.0
_MORE_SHARE, _FEW_SHARE = 8, 32
"""An eighth more of a worker's places is for tenants that have less than a 32nd of them: their
few documents would wait behind those that another one's backlog has in flight."""


class Dispatch:
    """The works of a worker between intake and settlement."""

    def __init__(
        self,
        ingest: Ingest,
        together: Together,
        settle: Settle,
        refusals: Refusals,
        lives: Lives,
        scheduler: Scheduler,
        *,
        max_in_flight: int,
        counters: Counters,
        clock: Clock,
        spawn: Callable[..., asyncio.Task[None]],
    ) -> None:
        self._ingest = ingest
        self._together = together
        self._settle = settle
        self._refusals = refusals
        self._lives = lives
        self._counters = counters
        self._clock = clock
        self._spawn = spawn
        self._max_in_flight = max_in_flight
        self.scheduler = scheduler
        self._tasks: dict[Work, asyncio.Task[None]] = {}
        self._pump_is_due = False
        self.room = asyncio.Event()
        self.room.set()

    @property
    def patient(self) -> int:
        """How many of them only wait: for an unknown collection, or a model left alone."""
        return self._ingest.patient

    @property
    def in_flight(self) -> int:
        """How many works are being carried to their end."""
        return len(self._tasks)

    def add(self, work: Work) -> None:
        """Queue a tracked work; `pump` starts it."""
        self.scheduler.add(work)

    def pump(self) -> None:
        """Start what may be started, and say whether there is room for more."""
        self._pump_is_due = False
        together: list[Work] = []
        while (work := self._next(len(together))) is not None:
            if self._together.takes(work):
                together.append(work)
            else:
                self._tasks[work] = self._spawn(self._carry(work))
        # Of one claim each, as those of a claim are given up together.
        companies: defaultdict[Claim, list[Work]] = defaultdict(list)
        for work in together:
            companies[work.claim].append(work)
        for works in companies.values():
            self._tasks.update(dict.fromkeys(works, self._spawn(self._carry_together(works))))
        if self.scheduler.is_full:
            self.room.clear()
        else:
            self.room.set()

    def _next(self, taken: int) -> Work | None:
        """Return what is started next; beyond the bound only of who has few in flight."""
        if self._has_room(taken, self._max_in_flight):
            return self.scheduler.take()
        if self._has_room(taken, self._max_in_flight + self._max_in_flight // _MORE_SHARE):
            return self.scheduler.take(few=max(1, self._max_in_flight // _FEW_SHARE))
        return None

    def _has_room(self, taken: int, most: int) -> bool:
        # Those that only wait hold no place: they would hold up all others.
        count = len(self._tasks) + taken
        return count < most or count - self.patient < most

    def _pump_soon(self) -> None:
        """Pump in the next turn of the loop: what ends in this one makes room for as many."""
        if not self._pump_is_due:
            self._pump_is_due = True
            asyncio.get_running_loop().call_soon(self.pump)

    def release(self, claim: Claim) -> None:
        """Leave what waits under a claim to the next owner of its partition."""
        self._drop(claim)
        self.pump()

    def halt(self, life: PartitionLife, source: Source, problem: str) -> None:
        """Stop a partition until an operator has acted; the others go on."""
        life.halt(problem)
        source.pause(life.partition)
        if life.claim is not None:
            self.release(life.claim)
        log.error(problem, action="partition_halted", partition=life.partition.name)

    async def drain(self, claims: Collection[Claim], deadline_seconds: float) -> None:
        """Let what is in flight under these claims finish, then cancel it. Never raises."""
        # All before any is started in their place.
        for claim in claims:
            self._drop(claim)
        self.pump()
        until = self._clock() + deadline_seconds
        # Who stumbles over something meanwhile has a task of its own from then on.
        while (late := self._under_way(claims)) and (left := until - self._clock()) > 0:
            await asyncio.wait(late, timeout=left)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=_CANCEL_SECONDS)

    def _under_way(self, claims: Collection[Claim]) -> set[asyncio.Task[None]]:
        tasks = {task for work, task in self._tasks.items() if work.claim in claims}
        return {task for task in tasks if not task.done()}

    def _drop(self, claim: Claim) -> None:
        for work in self.scheduler.drop(claim):
            self._settle.released(work)

    async def _carry_together(self, works: list[Work]) -> None:
        """Carry works of one claim; who stumbles goes on alone."""
        left = dict.fromkeys(works)
        del works  # or whoever has ended would stay in memory until the last one has

        async def end(work: Work, how: Outcome | Stumbled) -> None:
            if isinstance(how, Stumbled):
                self._tasks[work] = self._spawn(self._carry(work, how))
                del left[work]
                return
            finish = await self._end(work, how)
            del left[work], self._tasks[work]
            finish(work)
            self._pump_soon()

        try:
            await self._together(left, end)
        except asyncio.CancelledError:
            for work in left:
                self._settle.released(work)
            raise
        finally:
            for work in left:
                del self._tasks[work]
                self.scheduler.done(work)

    async def _carry(self, work: Work, stumbled: Stumbled | None = None) -> None:
        finish: Callable[[Work], None] = self.scheduler.done
        try:
            outcome = await self._ingest(work, stumbled)
            finish = await self._end(work, outcome)
        except FencedError:
            self._fenced(work)
        except asyncio.CancelledError:
            self._settle.released(work)
            raise
        finally:
            del self._tasks[work]
            finish(work)
        # Not when cancelled or failed: a TaskGroup that ends must not get new tasks.
        self.pump()

    async def _end(self, work: Work, outcome: Outcome | None) -> Callable[[Work], None]:
        """Settle a work and return how the scheduler is told."""
        if outcome is None and self._lives.is_ending(work.claim):
            outcome = Released()
        if outcome is None:
            self._counters.requeues += 1
            return self.scheduler.retry
        life = self._lives.under(work.claim)
        # As they are now: claimed anew, the partition has another guard.
        flood = None if life is None else life.flood
        if isinstance(outcome, DeadLettered) and life is not None:
            if self._floods(life):
                outcome = Released()
            else:
                await self._refusals.remember(work.tenant, outcome)
        await self._settle(work, outcome)
        if life is not None and flood is not None and life.flood is flood:
            self._count(life, flood, work, outcome)
        dead = isinstance(outcome, DeadLettered) and not self._lives.is_ending(work.claim)
        return self.scheduler.refuse if dead else self.scheduler.done

    def _floods(self, life: PartitionLife) -> bool:
        """Tell whether a dead letter is one too many; its partition is then held."""
        if life.flood is None or life.flood.admits(self._clock()):
            return False
        self._hold(life, life.flood)
        return True

    def _count(
        self, life: PartitionLife, flood: FloodGuard, work: Work, outcome: Outcome
    ) -> None:
        if not isinstance(outcome, Released | DeadLettered):
            now = self._clock()
            for _ in range(1 + len(work.parked)):
                flood.passed(now)
        if flood.state is FloodState.HELD:
            self._hold(life, flood)

    def _hold(self, life: PartitionLife, flood: FloodGuard) -> None:
        assert life.claim is not None
        life.hold(flood.problem)
        self.release(life.claim)

    def _fenced(self, work: Work) -> None:
        self._settle.released(work)
        if (life := self._lives.under(work.claim)) is not None:
            life.fence(work.claim)
            self._counters.fenced += 1
            self.release(work.claim)
