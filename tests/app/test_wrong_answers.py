"""
Wrong answers with status 200, over HTTP: never a wrong row, and an outage is nobody's fault.

A whole worker on memory ports, with the provider's guards and the real client, before a
scripted server; each kind of wrong answer meets one text among many, and then everybody.
"""

import asyncio
import tracemalloc
import zlib
from contextlib import asynccontextmanager
from dataclasses import replace
from math import log2

import numpy as np
import pytest

from schemas.dead_letter import Reason
from tests.support import provider as scripted
from tests.support.embedders import options_for
from tests.support.provider import Provider, vector_of
from tests.support.universe import COLLECTION, SETTINGS, Universe, upsert
from worker.adapters.http_embedder import HttpEmbedder
from worker.config import BreakerOptions, RetryOptions
from worker.core.model import ChunkingOptions

SIZE = COLLECTION.dimensions
BOMB_BYTES = 50_000_000
LINES = replace(COLLECTION, name="lines", chunking=ChunkingOptions("fixed", size=10))


def all_at_index(number):
    return scripted.changed(lambda items: [{**item, "index": number} for item in items])


BOMB = zlib.compress(bytes(BOMB_BYTES))


async def bomb(_):
    return scripted.web.Response(body=BOMB, headers={"Content-Encoding": "deflate"})


ALWAYS_WRONG = {
    "fewer vectors": scripted.changed(lambda items: items[1:]),
    "more vectors": scripted.changed(lambda items: [*items, items[0]]),
    "an index out of range": all_at_index(16),
    "no index": scripted.changed(
        lambda items: [{"embedding": item["embedding"]} for item in items]
    ),
    "another dimension": scripted.embedding([1.0] * (SIZE + 1)),
    "not a number": scripted.vector(float("nan"), *[1.0] * (SIZE - 1)),
    "infinity": scripted.vector(float("inf"), *[1.0] * (SIZE - 1)),
    "a zero vector": scripted.vector(*[0.0] * SIZE),
    "no base64": scripted.embedding("no base64!"),
    "no JSON": scripted.body(b"<html>busy</html>", "text/html"),
    "no answer at all": scripted.body(b"{}"),
    "a truncated body": scripted.truncated(),
    "an aborted body": scripted.aborted(),
    "an endless body": scripted.endless(),
    "an endless slow body": scripted.endless(b" ", 0.02),
    "a compressed bomb": bomb,
}


@asynccontextmanager
async def living(provider: Provider):
    """A worker in a universe of its own, on the real loop."""
    embedding = options_for(
        provider.url, timeout_seconds=0.1, max_answer_bytes=64 * 1024, max_inputs=16
    )
    settings = replace(
        SETTINGS,
        kafka=replace(SETTINGS.kafka, commit_interval_seconds=0.02),
        embedding=replace(embedding, concurrency=4),
        retry=RetryOptions(base_seconds=0.005, cap_seconds=0.02),
        breaker=BreakerOptions(min_open_seconds=0.01, max_open_seconds=0.02),
    )
    universe = Universe(partitions=1, settings=settings)
    await universe.create_collection()
    universe.embedder = HttpEmbedder(settings.embedding)
    universe.vector_of = lambda *text: vector_of(*text).astype("<f4").tobytes()
    try:
        async with asyncio.timeout(30):
            yield universe
            universe.audit.check()
    finally:
        for member in list(universe.members):
            await universe.kill(member)
        await universe.embedder.close()


@pytest.fixture
async def provider():
    async with Provider(SIZE) as provider:
        yield provider


def assert_every_vector_is_right(universe) -> None:
    for row in universe.database.state.documents.values():
        for chunk, vector in row.chunks.values():
            right = vector_of(chunk.content, COLLECTION.model, SIZE)
            assert np.array_equal(np.frombuffer(vector, "<f4"), right)


@pytest.mark.parametrize(
    ("kind", "place"),
    [*((kind, 9) for kind in ALWAYS_WRONG), *(("no JSON", place) for place in range(16))],
)
async def test_of_a_request_one_text_is_answered_badly_and_its_document_alone_is_dead(
    provider, kind, place
):
    provider.for_text(f"text {place}", ALWAYS_WRONG[kind])
    async with living(provider) as universe:
        for number in range(16):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"))
        universe.start(guarded=True)
        await universe.settled()
        (letter,) = universe.letters.letters
        assert letter.document_id == f"d{place}"
        assert letter.reason is Reason.PROVIDER_BAD_OUTPUT
        assert len(universe.database.state.documents) == 15
        assert_every_vector_is_right(universe)
        # One retry, two calls for each halving, and the attempts of the text that is alone.
        assert provider.requests <= 2 + 2 * log2(16) + 5


@pytest.mark.parametrize("kind", ALWAYS_WRONG)
async def test_while_everybody_is_answered_badly_nobody_is_dead_and_then_all_are_stored(
    provider, kind
):
    down = True
    provider.script = lambda _: ALWAYS_WRONG[kind] if down else None
    async with living(provider) as universe:
        for number in range(64):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"))
        universe.start(guarded=True)
        await provider.answered(25)
        assert universe.database.state.documents == {}
        down = False
        await universe.settled()
        assert universe.letters.letters == []
        assert len(universe.database.state.documents) == 64
        assert_every_vector_is_right(universe)


async def test_good_texts_beside_a_bad_one_are_paid_for_once(provider):
    """Also the neighbours of a text that is answered badly: parts that pass are kept."""
    provider.for_text("text 5", ALWAYS_WRONG["no JSON"])
    async with living(provider) as universe:
        for number in range(16):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"))
        universe.start(guarded=True)
        await universe.settled()
        assert set(provider.embedded.values()) == {1}
        assert len(provider.embedded) == 15


async def test_an_answer_that_is_wrong_only_together_costs_no_document(provider):
    """A server that numbers all vectors 0: alone, each text is answered rightly."""
    provider.script = lambda _: all_at_index(0)
    async with living(provider) as universe:
        for number in range(16):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"))
        universe.start(guarded=True)
        await universe.settled()
        assert universe.letters.letters == []
        assert len(universe.database.state.documents) == 16
        assert_every_vector_is_right(universe)


async def test_vectors_in_another_order_are_right_by_their_index(provider):
    provider.script = lambda _: scripted.changed(lambda items: items[::-1])
    async with living(provider) as universe:
        for number in range(16):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"))
        universe.start(guarded=True)
        await universe.settled()
        assert universe.letters.letters == []
        assert_every_vector_is_right(universe)


async def test_a_document_of_many_chunks_is_dead_for_one_of_them(provider):
    provider.for_text("0000000007", ALWAYS_WRONG["not a number"])
    async with living(provider) as universe:
        await universe.create_collection(LINES)
        text = "".join(f"{number:010}" for number in range(12))
        universe.publish(upsert("long", 1, text, collection="lines"))
        universe.publish(upsert("a", 1, "short"))
        universe.start(guarded=True)
        await universe.settled()
        (letter,) = universe.letters.letters
        assert (letter.document_id, letter.reason) == ("long", Reason.PROVIDER_BAD_OUTPUT)
        assert universe.text("a") == "short"


async def test_a_bomb_takes_no_memory(provider):
    provider.for_text("bomb", bomb)
    async with living(provider) as universe:
        universe.publish(upsert("bomb", 1, "bomb"))
        for number in range(15):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"))
        universe.start(guarded=True)
        tracemalloc.start()
        await universe.settled()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < BOMB_BYTES / 5
        assert len(universe.letters.letters) == 1
