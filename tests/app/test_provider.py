"""The provider as a worker puts it together, over HTTP: its limits follow its answers."""

import asyncio
import time
from dataclasses import replace

import pytest

from tests.support import provider as scripted
from tests.support.embedders import options_for
from tests.support.provider import Provider
from worker.adapters.http_embedder import HttpEmbedder
from worker.app import provider as guarded
from worker.config import Settings
from worker.ports import Embedder, EmbeddingRequest

SIZE = 4
TEN_A_SECOND = {"x-ratelimit-limit-requests": "600"}


@pytest.fixture
async def provider():
    async with Provider(SIZE) as provider:
        yield provider


@pytest.fixture
async def make(provider):
    made: list[HttpEmbedder] = []

    def make(**embedding) -> Embedder:
        settings = replace(Settings(), embedding=options_for(provider.url, **embedding))
        http, whole = guarded.over_http(
            settings, observe=lambda *_: None, clock=time.monotonic, jitter=lambda: 0.5
        )
        made.append(http)
        return whole.embedder

    yield make
    for http in made:
        await http.close()


async def seconds_of(embedder: Embedder, calls: int) -> float:
    """Return how long some calls take after a first one, whose answer says the limits."""
    await embedder.embed(EmbeddingRequest("model", SIZE, ["first"]))
    began = time.monotonic()
    for number in range(calls):
        await embedder.embed(EmbeddingRequest("model", SIZE, [f"text {number}"]))
    return time.monotonic() - began


@pytest.mark.parametrize("configured", [None, 60_000])
async def test_a_limit_that_a_good_answer_tells_slows_the_calls(provider, make, configured):
    provider.headers = TEN_A_SECOND
    # A second's worth is saved: of 15 calls the last 5 wait for a tenth of a second each.
    assert await seconds_of(make(requests_per_minute=configured), 15) > 0.45


async def test_an_answer_that_says_that_nothing_is_left_stops_the_calls_for_a_second_at_most(
    provider, make
):
    left = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "200ms"}
    embedder = make()
    provider.headers = left
    await embedder.embed(EmbeddingRequest("model", SIZE, ["first"]))
    provider.headers = {}
    began = time.monotonic()
    await embedder.embed(EmbeddingRequest("model", SIZE, ["second"]))
    assert time.monotonic() - began > 0.15


@pytest.mark.parametrize("status", [400, 500])
async def test_limits_of_an_error_answer_hold_too(provider, make, status):
    embedder = make()
    provider.next(scripted.status(status, headers=TEN_A_SECOND))
    with pytest.raises(Exception, match=str(status)):
        await embedder.embed(EmbeddingRequest("model", SIZE, ["refused"]))
    assert await seconds_of(embedder, 14) > 0.45


@pytest.mark.parametrize(
    "headers",
    [
        {"x-ratelimit-limit-requests": "0"},
        {"x-ratelimit-limit-requests": "-1"},
        {"x-ratelimit-limit-requests": "1 request"},
        {"x-ratelimit-limit-requests": "nan", "x-ratelimit-remaining-requests": "inf"},
        {"x-ratelimit-limit-requests": "9" * 400},
        {"x-ratelimit-limit-tokens": "1e1", "x-ratelimit-remaining-tokens": "-0"},
        {"x-ratelimit-remaining-requests": "none", "x-ratelimit-reset-requests": "1h"},
        {"x-ratelimit-limit-requests": "60000"},
    ],
)
async def test_headers_that_make_no_sense_or_allow_more_change_nothing(provider, make, headers):
    """At 20 a second 25 calls take a quarter of one: what is configured holds, and no less."""
    provider.headers = headers
    async with asyncio.timeout(20):
        seconds = await seconds_of(make(requests_per_minute=1200), 24)
    assert seconds > 0.2
