"""Natural batching: who goes together, who fails, and what leaving costs."""

import asyncio
from itertools import islice

import pytest

from tests.support.virtual_time import run
from worker.pipeline.batcher import Batcher


class Worked:
    """A batcher of numbers whose batches wait until they are let go."""

    def __init__(self, tasks, *, slots=1, most=100, held=True, **options):
        self.batches = []
        self.gate = asyncio.Event()
        if not held:
            self.gate.set()
        self.batcher = Batcher(
            self._work,
            spawn=tasks.create_task,
            slots=slots,
            take=lambda items: len(list(islice(items, most))),
            **options,
        )

    async def _work(self, items):
        self.batches.append(items)
        await self.gate.wait()
        return [ValueError(item) if item < 0 else item * 2 for item in items]


def test_what_is_submitted_in_one_turn_goes_together():
    async def story():
        async with asyncio.TaskGroup() as group:
            worked = Worked(group, held=False)
            tasks = [group.create_task(worked.batcher.submit(n)) for n in range(5)]
        assert [task.result() for task in tasks] == [0, 2, 4, 6, 8]
        assert worked.batches == [[0, 1, 2, 3, 4]]

    run(story())


def test_the_next_batch_grows_while_all_slots_work():
    async def story():
        async with asyncio.TaskGroup() as group:
            worked = Worked(group)
            first = group.create_task(worked.batcher.submit(1))
            await asyncio.sleep(1)
            rest = [group.create_task(worked.batcher.submit(n)) for n in (2, 3, 4)]
            await asyncio.sleep(1)
            assert worked.batches == [[1]]
            assert worked.batcher.waiting == 3
            worked.gate.set()
            await first
            for task in rest:
                await task
        assert worked.batches == [[1], [2, 3, 4]]

    run(story())


def test_a_batch_is_as_large_as_take_says():
    async def story():
        async with asyncio.TaskGroup() as group:
            worked = Worked(group, most=2, held=False)
            for number in range(5):
                group.create_task(worked.batcher.submit(number))
        assert worked.batches == [[0, 1], [2, 3], [4]]

    run(story())


def test_what_fills_a_batch_goes_on_where_one_has_ended_and_the_rest_a_turn_later():
    async def story():
        loop = asyncio.get_running_loop()
        seen = []

        async def work(items):
            seen.append(items)
            await asyncio.sleep(1)
            loop.call_soon(seen.append, "a turn")
            return items

        async with asyncio.TaskGroup() as group:
            batcher = Batcher(
                work,
                spawn=group.create_task,
                slots=1,
                take=lambda items: len(list(islice(items, 2))),
            )
            for number in range(5):
                group.create_task(batcher.submit(number))
        assert seen == [[0, 1], [2, 3], "a turn", "a turn", [4], "a turn"]

    run(story())


def test_one_item_s_error_is_its_own():
    async def story():
        async with asyncio.TaskGroup() as group:
            worked = Worked(group, held=False)
            good = group.create_task(worked.batcher.submit(4))
            with pytest.raises(ValueError, match="-1"):
                await worked.batcher.submit(-1)
        assert good.result() == 8
        assert sorted(worked.batches[0]) == [-1, 4]

    run(story())


def test_a_work_function_that_fails_fails_its_batch_and_no_other():
    async def story():
        async with asyncio.TaskGroup() as group:

            async def work(items):
                if 1 in items:
                    raise RuntimeError("broken")
                return items

            batcher = Batcher(work, spawn=group.create_task, slots=1, take=lambda items: 1)
            other = group.create_task(batcher.submit(2))
            with pytest.raises(RuntimeError, match="broken"):
                await batcher.submit(1)
        assert other.result() == 2
        assert batcher.working == 0

    run(story())


def test_groups_do_not_mix_and_take_turns():
    async def story():
        async with asyncio.TaskGroup() as group:
            worked = Worked(group, most=2, held=False, group=lambda n: n % 2)
            for number in (0, 2, 4, 6, 1, 3):
                group.create_task(worked.batcher.submit(number))
        assert worked.batches == [[0, 2], [1, 3], [4, 6]]

    run(story())


def test_tenants_take_turns_inside_a_batch_and_from_one_to_the_next():
    async def story():
        async with asyncio.TaskGroup() as group:
            worked = Worked(group, most=4, held=False, tenant=lambda item: item // 100)
            for number in (*range(100, 108), 200, 201, 300):
                group.create_task(worked.batcher.submit(number))
        assert worked.batches == [[100, 200, 300, 101], [201, 102, 103, 104], [105, 106, 107]]

    run(story())


def test_a_caller_that_leaves_takes_its_waiting_item_with_it():
    async def story():
        async with asyncio.TaskGroup() as group:
            worked = Worked(group)
            group.create_task(worked.batcher.submit(1))
            await asyncio.sleep(1)
            leaving = group.create_task(worked.batcher.submit(2))
            staying = group.create_task(worked.batcher.submit(3))
            await asyncio.sleep(1)
            leaving.cancel()
            await asyncio.wait({leaving})
            worked.gate.set()
            assert await staying == 6
        assert worked.batches == [[1], [3]]

    run(story())


@pytest.mark.parametrize("settles", [True, False])
def test_a_caller_whose_item_is_worked_on_leaves_at_once_or_when_the_batch_has_ended(settles):
    async def story():
        async with asyncio.TaskGroup() as group:
            worked = Worked(group, settles=settles)
            leaving = group.create_task(worked.batcher.submit(1))
            await asyncio.sleep(1)
            leaving.cancel()
            await asyncio.sleep(1)
            assert leaving.done() is not settles
            worked.gate.set()
            await asyncio.wait({leaving})
            assert leaving.cancelled()

    run(story())


def test_slots_work_side_by_side_and_never_more():
    async def story():
        async with asyncio.TaskGroup() as group:
            worked = Worked(group, slots=3, most=1)
            for number in range(5):
                group.create_task(worked.batcher.submit(number))
            await asyncio.sleep(1)
            assert worked.batches == [[0], [1], [2]]
            worked.gate.set()
        assert len(worked.batches) == 5

    run(story())


def test_a_batch_that_has_room_lingers_while_more_is_to_come():
    async def story():
        loop = asyncio.get_running_loop()
        more = [True]
        async with asyncio.TaskGroup() as group:
            worked = Worked(
                group, most=3, held=False, linger_seconds=1, more_to_come=lambda: more[0]
            )
            began = loop.time()
            first = group.create_task(worked.batcher.submit(1))
            await asyncio.sleep(0.5)
            assert worked.batches == []
            full = [group.create_task(worked.batcher.submit(n)) for n in (2, 3)]
            await asyncio.wait([first, *full])
            assert worked.batches == [[1, 2, 3]]
            assert loop.time() - began == 0.5

            await worked.batcher.submit(4)  # nothing came: no longer than it lingers
            assert worked.batches[1:] == [[4]]
            assert loop.time() - began == 1.5

            more[0] = False
            await worked.batcher.submit(5)
            assert loop.time() - began == 1.5

    run(story())


def test_lingering_ends_with_its_timer_whatever_the_clock_says_then(monkeypatch):
    """uvloop's clock and timers count whole milliseconds, and differ in the last bit."""

    async def story():
        loop = asyncio.get_running_loop()
        at = loop.call_at
        monkeypatch.setattr(
            loop, "call_at", lambda when, *more, **how: at(when - 1e-6, *more, **how)
        )
        async with asyncio.TaskGroup() as group, asyncio.timeout(9):
            worked = Worked(
                group, most=2, held=False, linger_seconds=1, more_to_come=lambda: True
            )
            await worked.batcher.submit(1)

    run(story())


def test_what_is_full_goes_at_once_and_the_rest_lingers():
    async def story():
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            worked = Worked(
                group, slots=9, most=2, held=False, linger_seconds=1, more_to_come=lambda: True
            )
            tasks = [group.create_task(worked.batcher.submit(n)) for n in range(5)]
            began = loop.time()
            await asyncio.wait(tasks[:4])
            assert (worked.batches, loop.time() - began) == ([[0, 1], [2, 3]], 0)
            await tasks[4]
            assert (worked.batches[2:], loop.time() - began) == ([[4]], 1)

    run(story())


def test_whoever_leaves_does_not_end_the_lingering_of_others():
    async def story():
        async with asyncio.TaskGroup() as group:
            worked = Worked(
                group, most=2, held=False, linger_seconds=1, more_to_come=lambda: True
            )
            stays = group.create_task(worked.batcher.submit(1))
            leaves = group.create_task(worked.batcher.submit(2))
            leaves.cancel()
            await stays
        assert worked.batches == [[1]]

    run(story())
