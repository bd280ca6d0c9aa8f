"""
Many callers, few calls: natural batching.

Owns the items that wait and the slots that work. While all slots work the next batch grows;
when one is free it takes what is waiting, so at low load nothing waits and at high load
batches are full. A full one is gone on with at once, any other a turn of the loop later, so
that what is submitted in one turn goes together. Where slots are many and calls are dear, a
batch that has room waits for `linger_seconds` at most, as long as `more_to_come` says that it
would grow. A batch never mixes groups; groups take turns. Inside a group tenants take turns,
item by item (`tenant`): whoever has a few does not wait behind another one's backlog.

Never fails one caller for another: a work function answers each item on its own, with an
exception where that is the answer; with `apart`, a batch that fails as a whole for what may be
one item's fault is worked on again, each item alone. A caller that leaves takes its waiting
item with it; one whose item is being worked on leaves at once, or, with `settles`, when the
batch has ended.

Invariant: what waits is at most twice what somebody waits for, and some.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Generic, TypeVar

from worker.errors import PermanentError, WorkerError
from worker.ports import Spawn

In = TypeVar("In")
Out = TypeVar("Out")

Work = Callable[[list[In]], Awaitable[Sequence[Out | BaseException]]]
Take = Callable[[Iterable[In]], int]
"""How many items from the head go into one batch: at least one where there is one."""

_LEFT_BEHIND = 100


class Call(Generic[In, Out]):
    """
    One item, its answer, and the end of the batch that it went with.

    Lets go of its item when that is over: an item may know its call, and the two would keep
    each other until the next garbage collection.
    """

    __slots__ = ("answer", "batch", "item", "left")

    def __init__(self, item: In, answer: asyncio.Future[Out]) -> None:
        self.item = item
        self.answer = answer
        self.batch: asyncio.Future[None] | None = None
        self.left = False

    def reply(self, answer: Out | BaseException) -> None:
        """Answer the caller, once; a work function may do so before its batch has ended."""
        if self.answer.done():
            return
        if isinstance(answer, BaseException):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)


class _Line(Generic[In, Out]):
    """The calls of a group: one of each tenant after the other."""

    def __init__(self) -> None:
        self._calls: OrderedDict[Hashable, deque[Call[In, Out]]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._calls.values()))

    def __iter__(self) -> Iterator[Call[In, Out]]:
        turns = deque(map(iter, self._calls.values()))
        while turns:
            turn = turns.popleft()
            for call in islice(turn, 1):
                yield call
                turns.append(turn)

    def add(self, tenant: Hashable, call: Call[In, Out]) -> None:
        calls = self._calls.get(tenant)
        if calls is None:
            calls = self._calls[tenant] = deque()
        calls.append(call)

    def pop(self) -> Call[In, Out]:
        tenant, calls = self._calls.popitem(last=False)
        call = calls.popleft()
        if calls:
            self._calls[tenant] = calls
        return call

    def drop_left(self) -> None:
        """Forget the calls that nobody waits for."""
        for tenant, calls in list(self._calls.items()):
            wanted = deque(call for call in calls if not call.left)
            if wanted:
                self._calls[tenant] = wanted
            else:
                del self._calls[tenant]


class Batcher(Generic[In, Out]):
    """A queue in front of a function that works on many items at once."""

    def __init__(
        self,
        work: Work[In, Out],
        *,
        spawn: Spawn,
        slots: int,
        take: Take[In],
        group: Callable[[In], Hashable] = lambda _: None,
        tenant: Callable[[In], Hashable] = lambda _: None,
        settles: bool = False,
        apart: bool = False,
        linger_seconds: float = 0.0,
        more_to_come: Callable[[], bool] = lambda: False,
    ) -> None:
        self._work = work
        self._spawn = spawn
        self._slots = slots
        self._take = take
        self._group = group
        self._tenant = tenant
        self._settles = settles
        self._apart = apart
        self._linger_seconds = linger_seconds
        self._more_to_come = more_to_come
        self._lingering: asyncio.Event | None = None
        self._waiting: OrderedDict[Hashable, _Line[In, Out]] = OrderedDict()
        self._pump_is_due = False
        self._left = 0
        self.working = 0

    @property
    def waiting(self) -> int:
        """How many items wait for a slot."""
        return sum(len(calls) for calls in self._waiting.values())

    async def submit(self, item: In) -> Out:
        """Return the answer to one item; raises what the work function answers for it."""
        return await self.wait(self.put(item))

    def put(self, item: In) -> Call[In, Out]:
        """Queue an item; its answer comes to `call.answer`."""
        loop = asyncio.get_running_loop()
        call: Call[In, Out] = Call(item, loop.create_future())
        group = self._group(item)
        line = self._waiting.get(group)
        if line is None:
            line = self._waiting[group] = _Line()
        line.add(self._tenant(item), call)
        self._schedule(loop)
        return call

    async def wait(self, call: Call[In, Out]) -> Out:
        """Wait for the answer to a call of our own."""
        try:
            return await call.answer
        except asyncio.CancelledError:
            self.leave(call)
            await self.left(call)
            raise

    def leave(self, call: Call[In, Out]) -> None:
        """Take note that nobody waits for a call any more; one that waits is dropped."""
        call.left = True
        call.answer.cancel()
        self._left += 1
        if call.batch is None:
            del call.item
        # Not at each: while all slots are busy for long, whoever comes and goes would leave
        # its items here, and a search for each of them would be quadratic.
        if self._left > max(_LEFT_BEHIND, self.waiting // 2):
            self._left = 0
            self._sweep()

    async def left(self, call: Call[In, Out]) -> None:
        """Wait until what was left is over, with `settles`, where it is being worked on."""
        if self._settles and call.batch is not None:
            await _until_done(call.batch)

    def _sweep(self) -> None:
        for group, calls in list(self._waiting.items()):
            calls.drop_left()
            if not calls:
                del self._waiting[group]

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        # One turn of the loop later: what is submitted in this turn goes together.
        if not self._pump_is_due:
            self._pump_is_due = True
            loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_is_due = False
        while self.working < self._slots and (calls := self._next_batch()):
            self.working += 1
            self._spawn(self._run(calls))

    def _next_batch(self, *, full: bool = False) -> list[Call[In, Out]]:
        """Return the next batch; none while it lingers, or, with `full`, while it has room."""
        while self._waiting:
            group, calls = next(iter(self._waiting.items()))
            # Would it hold one more like the first? Then it has room.
            most = self._take(chain(_wanted(calls), islice(_wanted(calls), 1)))
            has_room = len(list(islice(_wanted(calls), most))) < most
            if has_room and (full or self._lingers()):
                return []
            self._lingering = None
            del self._waiting[group]
            batch: list[Call[In, Out]] = []
            while calls and len(batch) < most:
                call = calls.pop()
                if not call.left:
                    batch.append(call)
            if calls and batch:
                self._waiting[group] = calls
            if batch:
                return batch
        return []

    def _lingers(self) -> bool:
        """Tell whether a batch that has room waits to grow; it is looked at when that ends."""
        if self._linger_seconds == 0 or not self._more_to_come():
            return False
        if self._lingering is None:
            self._lingering = lingering = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.call_later(self._linger_seconds, self._end_lingering, lingering, loop)
        return not self._lingering.is_set()

    def _end_lingering(self, lingering: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
        # The timer says when it is over, never the clock: by that one uvloop's timers may be
        # early, by the last bit, and perhaps nobody ever looks again.
        lingering.set()
        self._schedule(loop)

    async def _run(self, calls: list[Call[In, Out]]) -> None:
        """Work in a slot for as long as there is a full batch."""
        try:
            while calls:
                await self._carry(calls)
                # What fills a batch already has nothing to wait a turn of the loop for.
                calls = self._next_batch(full=True)
        finally:
            self.working -= 1
            self._schedule(asyncio.get_running_loop())

    async def _carry(self, calls: list[Call[In, Out]]) -> None:
        ended = asyncio.get_running_loop().create_future()
        # Whoever left since the batch was made up does not wait for its end.
        calls = [call for call in calls if not call.left]
        for call in calls:
            call.batch = ended
        try:
            await self._answer(calls)
        finally:
            for call in calls:
                call.answer.cancel()
                del call.item
            ended.set_result(None)

    async def _answer(self, calls: list[Call[In, Out]]) -> None:
        if not calls:
            return
        try:
            _answer(calls, await self._work([call.item for call in calls]))
        except Exception as error:  # noqa: BLE001 - handed to every caller of the batch
            if self._apart and len(calls) > 1 and _may_be_of_one(error):
                for call in calls:
                    await self._answer([call])
            else:
                _answer(calls, [error] * len(calls))


def _wanted(calls: Iterable[Call[In, Out]]) -> Iterator[In]:
    return (call.item for call in calls if not call.left)


def _may_be_of_one(error: Exception) -> bool:
    """Tell whether an error may be about one item: no outage, nothing of the whole worker."""
    return isinstance(error, PermanentError) or not isinstance(error, WorkerError)


def _answer(calls: list[Call[In, Out]], answers: Sequence[Out | BaseException]) -> None:
    for call, answer in zip(calls, answers, strict=True):
        call.reply(answer)


async def _until_done(future: asyncio.Future[None]) -> None:
    """Wait for a future's end, also when cancelled meanwhile; the caller raises in the end."""
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            continue
