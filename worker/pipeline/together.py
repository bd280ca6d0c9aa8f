"""
Works that go their way together, until one meets something of its own.

A coroutine for each document would cost as much as the store: here one coroutine has many, and
what they wait for (their look-up, their chunks, their transaction) carries each from stage to
stage as it comes. Whatever is no plain end (an error, a row that moved, a pass that takes too
long) is left to `Ingest`, alone, from where it stumbled.

Owns the works of its call until each has ended. Never settles: `end` does.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable
from functools import partial
from typing import Any

from worker.core.model import ChangeSet, ChunkId, Claim, Outcome, Released, Vector, Work
from worker.pipeline.batcher import Call
from worker.pipeline.buy import Piece
from worker.pipeline.embed import Embed, Purchase
from worker.pipeline.ingest import Stumbled, outcome_of, refuse_fenced
from worker.pipeline.prepare import Prepare
from worker.pipeline.refusals import Refusals
from worker.pipeline.store import Save
from worker.ports import Verdict

End = Callable[[Work, Outcome | Stumbled], Awaitable[None]]


class Together:
    """The stages, as many works at once go through them."""

    def __init__(
        self,
        prepare: Prepare,
        embed: Embed,
        save: Save,
        refusals: Refusals,
        *,
        timeout_seconds: float,
        is_ending: Callable[[Claim], bool],
    ) -> None:
        self.prepare = prepare
        self.embed = embed
        self.save = save
        self.refusals = refusals
        self.timeout_seconds = timeout_seconds
        self.is_ending = is_ending

    def takes(self, work: Work) -> bool:
        """Tell whether a work may go with others: no scope's, and not known for trouble."""
        return not work.is_alone and not work.passes and self.prepare.knows(work)

    async def __call__(self, works: Collection[Work], end: End) -> None:
        """
        Carry works, and say how each has ended; cancelled, it leaves no write running.

        Keeps no work that has ended: `works` may shrink meanwhile.
        """
        company = _Company(self)
        try:
            company.set_out(works)
            await company.run(end)
        finally:
            await company.leave()


class _Course:
    """Where a work stands: it waits for `call`, or for `awaited` pieces of its `purchase`."""

    __slots__ = ("awaited", "call", "is_writing", "moved_at", "purchase", "work")

    def __init__(self, work: Work, call: Call[Any, Any], now: float) -> None:
        self.work = work
        self.call = call
        self.moved_at = now
        self.purchase: Purchase | None = None
        self.awaited = 0
        self.is_writing = False


class _Company:
    """Some works on their way."""

    def __init__(self, stages: Together) -> None:
        self._stages = stages
        self._loop = asyncio.get_running_loop()
        self._answers = dict(stages.embed.answers)
        self._courses: dict[Work, _Course] = {}
        self._ended: deque[tuple[Work, Outcome | Stumbled]] = deque()
        self._woken = asyncio.Event()
        self._timer = self._loop.call_later(stages.timeout_seconds, self._look)

    def set_out(self, works: Iterable[Work]) -> None:
        """Queue works for their look-up."""
        now = self._loop.time()
        for work in works:
            call = self._stages.prepare.put(work)
            if call is None:  # its collection was forgotten meanwhile
                self._ended.append((work, self._stumbled(None)))
                self._woken.set()
                continue
            course = self._courses[work] = _Course(work, call, now)
            call.answer.add_done_callback(partial(self._step, course, self._prepared))

    async def run(self, end: End) -> None:
        """Say how each work ends."""
        while self._courses or self._ended:
            await self._woken.wait()
            self._woken.clear()
            while self._ended:
                await end(*self._ended.popleft())

    async def leave(self) -> None:
        """Let go of all works; of those that are being written, when that is over."""
        self._timer.cancel()
        left = list(self._courses.values())
        self._courses.clear()
        for course in left:
            self._let_go(course)
        for course in left:
            if course.is_writing:
                await self._stages.save.left(course.call)

    def _let_go(self, course: _Course) -> None:
        if course.purchase is not None:
            self._stages.embed.end(course.purchase)
        elif course.is_writing:
            self._stages.save.leave(course.call)
        else:
            self._stages.prepare.leave(course.call)

    def _step(
        self,
        course: _Course,
        take: Callable[[_Course, Any], None],
        answer: asyncio.Future[Any],
        *,
        piece: Piece | None = None,
    ) -> None:
        """Go on with what has come (of a `piece`), where the work still waits for it."""
        if course.work not in self._courses:
            if not answer.cancelled():
                answer.exception()  # nobody else looks at it
            return
        try:
            take(course, answer.result())
        except asyncio.CancelledError:
            self._end(course, self._stumbled(None))
        except Exception as error:  # noqa: BLE001 - of one work: it meets it again, alone
            purchase = course.purchase
            is_shared = piece is not None and purchase and purchase.shares(piece, error)
            self._end(course, self._stumbled(None if is_shared else error))

    def _prepared(self, course: _Course, prepared: Any) -> None:
        if not isinstance(prepared, ChangeSet):
            self._end(course, prepared)
        elif self._stages.is_ending(course.work.claim):
            self._end(course, Released())
        elif self._stages.refusals.asks_again(course.work):
            self._end(course, self._stumbled(None))
        elif prepared.insert:
            self._buy(course, prepared)
        else:
            self._write(course, prepared, {})

    def _buy(self, course: _Course, change: ChangeSet) -> None:
        purchase = course.purchase = self._stages.embed.begin(course.work, change)
        course.awaited = len(purchase.pieces)
        for piece in purchase.pieces.values():
            assert piece.call is not None
            came = partial(self._came, purchase, piece)
            piece.call.answer.add_done_callback(partial(self._step, course, came, piece=piece))
        self._write_if_whole(course, purchase)

    def _came(self, purchase: Purchase, piece: Piece, course: _Course, vector: Vector) -> None:
        purchase.vectors[piece.key] = vector
        course.awaited -= 1
        course.moved_at = self._loop.time()
        self._write_if_whole(course, purchase)

    def _write_if_whole(self, course: _Course, purchase: Purchase) -> None:
        if course.awaited:
            return
        course.purchase = None
        self._stages.embed.end(purchase)
        self._write(course, purchase.change, purchase.by_chunk())

    def _write(
        self, course: _Course, change: ChangeSet, vectors: dict[ChunkId, Vector]
    ) -> None:
        course.call = self._stages.save.put(course.work, change, vectors)
        course.is_writing = True
        written = partial(self._written, change)
        course.call.answer.add_done_callback(partial(self._step, course, written))

    def _written(self, change: ChangeSet, course: _Course, verdict: Verdict) -> None:
        refuse_fenced(verdict)
        if verdict is Verdict.APPLIED:
            self._stages.embed.stored(change)
            self._end(course, outcome_of(course.work, change))
        else:
            self._end(course, self._stumbled(None))

    def _end(self, course: _Course, how: Outcome | Stumbled) -> None:
        del self._courses[course.work]
        if course.purchase is not None:
            self._stages.embed.end(course.purchase)
            course.purchase = None
        self._ended.append((course.work, how))
        self._woken.set()

    def _stumbled(self, error: Exception | None) -> Stumbled:
        return Stumbled(error, self._answers)

    def _look(self) -> None:
        """End the passes that take too long; a write ends by itself."""
        now, patience = self._loop.time(), self._stages.timeout_seconds
        for course in list(self._courses.values()):
            if not course.is_writing and now >= course.moved_at + patience:
                if course.purchase is None:
                    self._stages.prepare.leave(course.call)
                self._end(course, self._stumbled(TimeoutError()))
        waiting = [one.moved_at for one in self._courses.values() if not one.is_writing]
        self._timer = self._loop.call_at(min(waiting, default=now) + patience, self._look)
