"""
What failures of the provider cost, measured on the worker's own provider stack over HTTP.

`make bench-failures` runs it. Nothing is simulated but the provider: the real embedding stage,
limits, breaker and HTTP client call a server on loopback that has a quota, fails, or refuses
texts.
Prints each claim with its figure; the exit code says whether all were reached.
"""

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from math import log2
from typing import NamedTuple

from tests.support import provider as scripted
from tests.support import works
from tests.support.provider import Call, Reply
from tests.support.verdicts import Verdict, lines
from worker.app.provider import over_http
from worker.config import EmbeddingOptions, RetryOptions, Settings, TelemetryOptions
from worker.core.model import ChangeSet, Chunk, ChunkId, DocumentKey
from worker.embedded.scripted_provider import Quota
from worker.errors import PermanentError
from worker.ops.offered_load import offered
from worker.pipeline.embed import Embed
from worker.telemetry import Counters, Tracing, configure_logging

SEED = 20_261_123
DIMENSIONS = 8
COLLECTION = replace(works.collection(), dimensions=DIMENSIONS)
IN_FLIGHT = 512
"""As many documents as a worker works on at once."""

QUOTA_PER_SECOND = 200
STORM_REQUESTS = 6_000
STEADY_AFTER_SECONDS = 15
STORM_LATENCY_SECONDS = 0.05

OFFERED_PER_SECOND = 40
ERROR_SECONDS = 10
ERROR_LATENCY_SECONDS = 0.02
ERROR_SHARE = 0.5

BATCH = 64
MOST_POISONS = 8
PLACEMENTS = 10


class Stack(NamedTuple):
    """The worker's stage and the provider at the other end of the wire."""

    embed: Embed
    provider: scripted.Provider
    tasks: asyncio.TaskGroup

    async def buy(self, text: str) -> bool:
        """Let a document of one chunk be embedded; False where it is a dead letter."""
        chunk = Chunk(ChunkId(text.encode(), 0), 0, text, 0, len(text))
        work = works.upsert(text, text=text)
        change = ChangeSet(
            key=DocumentKey("tenant", COLLECTION.name, text),
            collection=COLLECTION,
            base=None,
            rank=work.rank,
            barrier=None,
            deleted=False,
            insert=(chunk,),
        )
        try:
            await self.embed(work, change)
        except PermanentError:
            return False
        return True


@asynccontextmanager
async def stack(*, max_inputs: int = 1) -> AsyncIterator[Stack]:
    """Put the stage together as a worker does, in front of a provider of its own."""
    chance = random.Random(SEED)
    async with scripted.Provider(DIMENSIONS) as provider, asyncio.TaskGroup() as tasks:
        options = EmbeddingOptions(
            url=provider.url, api_key_variable=None, max_inputs=max_inputs, dialect="generic"
        )
        http, guarded = over_http(
            Settings(embedding=options),
            observe=lambda *_: None,
            clock=time.monotonic,
            jitter=chance.random,
        )
        embed = Embed(
            guarded.embedder,
            options,
            RetryOptions(),
            limits=http.limits,
            counters=Counters(),
            jitter=chance.random,
            tracing=Tracing(),
            spawn=tasks.create_task,
            sets_aside=guarded.breaker.sets_aside,
        )
        try:
            yield Stack(embed, provider, tasks)
        finally:
            await http.close()


@dataclass
class Metered:
    """Answers what is beyond a quota with 429, and keeps when each request came, and which."""

    quota: Quota
    answered: list[tuple[float, bool]] = field(default_factory=list)

    def __call__(self, _call: Call) -> Reply | None:
        is_within = self.quota.refuse_seconds(tokens=0) == 0
        self.answered.append((time.monotonic(), is_within))
        return None if is_within else scripted.status(429, retry_after="1")


async def storm() -> list[Verdict]:
    """Drain far more requests than the quota lets through."""
    async with stack() as one:
        one.provider.latency_seconds = STORM_LATENCY_SECONDS
        metered = Metered(Quota(requests_per_minute=60 * QUOTA_PER_SECOND))
        one.provider.script = metered
        began = time.monotonic()
        await _all(one, [f"storm {number}" for number in range(STORM_REQUESTS)])
        seconds = time.monotonic() - began
    # What the bucket holds at the start is free.
    ideal = (STORM_REQUESTS - QUOTA_PER_SECOND) / QUOTA_PER_SECOND
    later = [
        is_within for at, is_within in metered.answered if at > began + STEADY_AFTER_SECONDS
    ]
    share = later.count(False) / len(later)
    return [
        Verdict(
            "429 storm: drain time <= 1.1x what the quota bounds",
            f"{seconds:.1f} s / {ideal:.1f} s = {seconds / ideal:.2f}x",
            seconds <= 1.1 * ideal,
        ),
        Verdict(
            "429 storm: share of 429 in steady state <= 2 %",
            f"{share:.1%} of {len(later)} requests",
            share <= 0.02,
        ),
    ]


async def _all(one: Stack, texts: Sequence[str]) -> None:
    """Buy all texts, as many at once as a worker does."""
    left = iter(texts)

    async def carry() -> None:
        for text in left:
            await one.buy(text)

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(carry())


async def half_fails() -> list[Verdict]:
    """
    Offer a steady load while half of the requests fail, then let the provider recover.

    What nobody could do without is one request a document, as the provider recovers; sent is
    what it took until all were embedded.
    """
    chance = random.Random(SEED)
    async with stack() as one:
        one.provider.latency_seconds = ERROR_LATENCY_SECONDS

        def fail_half(_call: Call) -> Reply | None:
            return scripted.status(503) if chance.random() < ERROR_SHARE else None

        one.provider.script = fail_half
        needed = OFFERED_PER_SECOND * ERROR_SECONDS
        async with asyncio.TaskGroup() as group:
            buying = [
                group.create_task(one.buy(f"half {number}"))
                async for number in offered(needed, OFFERED_PER_SECOND, time.monotonic)
            ]
            early = one.provider.requests
            one.provider.script = None
        sent = one.provider.requests
        given_up = [task.result() for task in buying].count(False)
    return [
        Verdict(
            "50 % errors, then none: requests sent / one a document <= 1.2",
            f"{sent} / {needed} = {sent / needed:.2f} ({early} while half failed; "
            f"{given_up} given up)",
            sent <= 1.2 * needed,
        ),
    ]


async def bisection() -> list[Verdict]:
    """Refuse k texts in requests of 64, in many placements."""
    return [await refused(poisons) for poisons in range(1, MOST_POISONS + 1)]


async def refused(poisons: int) -> Verdict:
    """Refuse so many texts: exactly their documents must be dead letters, at no more calls."""
    chance = random.Random(poisons)
    placements = [[place] for place in range(BATCH)] if poisons == 1 else None
    most = 0
    async with stack(max_inputs=BATCH) as one:
        one.provider.script = _refuse_poison
        for places in placements or _placements(chance, poisons):
            before = one.provider.requests
            texts = [
                f"{'poison' if place in places else 'text'} {places} {place}"
                for place in range(BATCH)
            ]
            async with asyncio.TaskGroup() as group:
                ends = [group.create_task(one.buy(text)) for text in texts]
            dead = [place for place, end in enumerate(ends) if not end.result()]
            assert dead == sorted(places), (dead, places)
            most = max(most, one.provider.requests - before - 1)
    bound = 2 * poisons * log2(BATCH / poisons) + 2 * poisons
    return Verdict(
        f"{poisons} poison in {BATCH}: extra requests <= 2k log2(n/k) + 2k",
        f"{most} at most, the bound is {bound:.1f}",
        most <= bound,
    )


def _placements(chance: random.Random, poisons: int) -> list[list[int]]:
    return [chance.sample(range(BATCH), poisons) for _ in range(PLACEMENTS)]


def _refuse_poison(call: Call) -> Reply | None:
    is_refused = any(text.startswith("poison") for text in call.texts)
    return scripted.status(400, code="content_filter") if is_refused else None


async def main() -> int:
    """Measure everything and print the table."""
    configure_logging(TelemetryOptions(log_level="error"))
    verdicts = [*await storm(), *await half_fails(), *await bisection()]
    for line in lines(verdicts, ("reached", "NOT REACHED")):
        sys.stdout.write(line + "\n")
    return 0 if all(verdict.held for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
