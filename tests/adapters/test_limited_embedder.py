"""Limits before a breaker: who would be refused takes nothing from who would not."""

import asyncio

import pytest

from tests.support.virtual_time import run
from worker.adapters.limited_embedder import LimitedEmbedder
from worker.adapters.memory_embedder import MemoryEmbedder
from worker.core.limits import AdaptiveLimit, RateLimits
from worker.errors import BreakerOpen, RateLimited
from worker.ports import EmbeddingRequest


def limited(memory, rates, **options) -> LimitedEmbedder:
    loop = asyncio.get_running_loop()
    return LimitedEmbedder(memory, AdaptiveLimit(4), rates, clock=loop.time, **options)


async def seconds_of(embedder, model="model", texts=("text",)) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await embedder.embed(EmbeddingRequest(model, 4, list(texts)))
    return loop.time() - began


def test_a_model_that_is_left_alone_takes_no_quota_from_the_others():
    def refuse(model):
        if model == "ill":
            raise BreakerOpen(retry_after_seconds=1)

    async def story():
        embedder = limited(MemoryEmbedder(), RateLimits(60, None), refuse=refuse)
        for _ in range(1000):
            with pytest.raises(BreakerOpen):
                await seconds_of(embedder, "ill")
        assert await seconds_of(embedder, "good") == 0

    run(story())


@pytest.mark.parametrize(("hint", "pause"), [(0, 0), (20, 20), (120, 120), (121, 0), (3600, 0)])
def test_a_hint_pauses_all_but_one_that_parks_its_model_alone(hint, pause):
    async def story():
        async def throttle(request):
            memory.script = None
            raise RateLimited(status=429, retry_after_seconds=hint)

        memory = MemoryEmbedder(script=throttle)
        embedder = limited(memory, RateLimits(None, None), max_pause_seconds=120)
        with pytest.raises(RateLimited):
            await seconds_of(embedder, "one")
        assert await seconds_of(embedder, "two") == pytest.approx(pause)

    run(story())


def test_what_stands_before_a_quota_is_counted():
    async def story():
        embedder = limited(MemoryEmbedder(), RateLimits(60, None))
        for _ in range(5):
            await seconds_of(embedder)
        assert embedder.held_back_seconds == pytest.approx(4, abs=0.1)

    run(story())


@pytest.mark.parametrize("is_throttled", [False, True])
def test_what_waits_for_room_is_held_back_only_where_the_provider_made_it_narrow(is_throttled):
    async def story():
        loop = asyncio.get_running_loop()

        async def slow(request):
            answered = loop.create_future()
            loop.call_later(10, answered.set_result, None)
            await answered

        async def throttle(request):
            raise RateLimited(status=429, retry_after_seconds=0)

        memory = MemoryEmbedder(script=throttle)
        embedder = limited(memory, RateLimits(None, None))
        if is_throttled:
            with pytest.raises(RateLimited):
                await seconds_of(embedder)
        memory.script = slow
        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(seconds_of(embedder))
        assert embedder.held_back_seconds == pytest.approx(10 if is_throttled else 0)

    run(story())
