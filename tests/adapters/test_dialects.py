"""Each dialect against a server that imitates its API: requests, answers, limits, errors."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from schemas.dead_letter import Reason
from tests.support.dialects import ERRORS, KEY, SHAPES, Failure, Imitation
from tests.support.embedders import options_for
from worker.adapters.http_embedder import HttpEmbedder
from worker.adapters.memory_embedder import MemoryEmbedder
from worker.core.model import ChunkingOptions, Collection
from worker.core.packing import Weight, take
from worker.errors import KeyRefused, ProviderMisconfigured, ProviderUnavailable, RejectedInput
from worker.ops.search import Query, search
from worker.ports import EmbeddingRequest

NAMES = list(SHAPES)
SIDES = {"voyage": ("for retrieval: ", "to retrieve: "), "jina": ("passage: ", "query: ")}


@asynccontextmanager
async def serving(
    name: str, key: str = KEY, **changes: object
) -> AsyncIterator[tuple[Imitation, HttpEmbedder]]:
    async with Imitation(name) as server:
        settings = {"dialect": name, "api_key_variable": "KEY", "max_inputs": 2048}
        options = options_for(server.url, **settings | changes)
        embedder = HttpEmbedder(options, environ={"KEY": key})
        try:
            yield server, embedder
        finally:
            await embedder.close()


def request(*texts: str, dimensions: int = 4, **changes: object) -> EmbeddingRequest:
    return EmbeddingRequest("m", dimensions, texts)._replace(**changes)


@pytest.mark.parametrize("name", NAMES)
async def test_documents_and_queries_are_embedded_as_what_they_are(name: str):
    document, query = SIDES.get(name, ("", ""))
    async with serving(name) as (server, embedder):
        found = await embedder.embed(request("one", "two"))
        assert found == [server.expected("one", document), server.expected("two", document)]
        found = await embedder.embed(request("one", input_type="query"))
        assert found == [server.expected("one", query)]
        assert embedder.tokens == 3
        assert embedder.requests == 2


@pytest.mark.parametrize("name", NAMES)
async def test_dimensions_are_asked_for_in_the_field_of_the_api(name: str):
    side = SIDES.get(name, ("",))[0]
    async with serving(name, send_dimensions=True) as (server, embedder):
        found = await embedder.embed(request("one", dimensions=16))
        assert found == [server.expected("one", side, 16)]


@pytest.mark.parametrize("name", NAMES)
async def test_base64_is_asked_for_in_the_field_of_the_api(name: str):
    async with serving(name) as (server, embedder):
        await embedder.embed(request("one"))
        assert server.bodies[0][server.shape.encoding] == "base64"


@pytest.mark.parametrize("name", NAMES)
async def test_a_wrong_key_is_a_matter_of_configuration(name: str):
    async with serving(name, key="the-wrong-key") as (_, embedder):
        with pytest.raises(KeyRefused) as caught:
            await embedder.embed(request("one"))
        assert caught.value.status == 401
        assert "the-wr" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
async def test_a_text_that_is_too_long_is_refused_and_never_cut(name: str):
    async with serving(name) as (server, embedder):
        words = server.shape.max_input_tokens + 1
        with pytest.raises(RejectedInput) as caught:
            await embedder.embed(request("word " * words))
        # An unknown server says it in unknown words.
        said = Reason.REJECTED_INPUT if name == "generic" else Reason.INPUT_TOO_LONG
        assert caught.value.reason is said


@pytest.mark.parametrize("name", ["voyage", "jina"])
async def test_the_imitation_cuts_where_it_is_let(name: str):
    """Else the test above would not show that truncation is switched off."""
    async with serving(name, dialect="openai") as (server, embedder):
        server.shape = replace(SHAPES[name], unknown_field=None)
        words = server.shape.max_input_tokens + 1
        assert len(await embedder.embed(request("word " * words))) == 1


LIMITED = [name for name, shape in SHAPES.items() if shape.max_inputs]


@pytest.mark.parametrize("name", LIMITED)
async def test_a_request_packed_by_the_limits_is_taken(name: str):
    texts = [f"text {number}" for number in range(3000)]
    async with serving(name) as (server, embedder):
        count = take([Weight(1, 2, 9)] * len(texts), embedder.limits)
        assert count == server.shape.max_inputs
        assert len(await embedder.embed(request(*texts[:count]))) == count


@pytest.mark.parametrize("name", LIMITED)
async def test_one_input_too_many_is_refused_as_content_so_that_parts_of_it_pass(name: str):
    async with serving(name) as (server, embedder):
        texts = ["text"] * (server.shape.max_inputs + 1)
        with pytest.raises(RejectedInput):
            await embedder.embed(request(*texts))


@pytest.mark.parametrize("name", ["openai", "mistral", "voyage"])
async def test_the_limits_leave_room_for_an_estimate_of_tokens(name: str):
    async with serving(name, max_request_tokens=1_000_000) as (server, embedder):
        assert embedder.limits.max_tokens == server.shape.max_tokens * 9 // 10
        texts = ["word " * 500] * (server.shape.max_tokens // 500 + 1)
        with pytest.raises(RejectedInput):
            await embedder.embed(request(*texts))


@pytest.mark.parametrize("name", [name for name in NAMES if SHAPES[name].unknown_field])
async def test_a_field_that_the_api_does_not_know_is_a_matter_of_configuration(name: str):
    """A strict API asked in another dialect: its refusal is nobody's text."""
    other = "jina" if name != "jina" else "mistral"
    async with serving(name, dialect=other, send_dimensions=True) as (server, embedder):
        with pytest.raises(ProviderMisconfigured):
            await embedder.embed(request("one"))
        assert server.bodies


@pytest.mark.parametrize(
    ("name", "failure"),
    [(name, failure) for name, failures in ERRORS.items() for failure in failures],
)
async def test_the_errors_of_the_api_mean_what_they_say(name: str, failure: Failure):
    async with serving(name) as (server, embedder):
        server.next.append(failure.refusal)
        with pytest.raises(failure.error) as caught:
            await embedder.embed(request("one"))
        assert type(caught.value) is failure.error
        assert caught.value.facts.provider_status == failure.refusal.status
        if isinstance(caught.value, RejectedInput):
            assert caught.value.reason is failure.reason
        if isinstance(caught.value, ProviderUnavailable):
            assert caught.value.retry_after_seconds == failure.retry_after_seconds
        assert await embedder.embed(request("one"))


async def test_search_asks_as_who_searches():
    asked = []

    async def note(request: EmbeddingRequest) -> None:
        asked.append(request.input_type)

    class Nowhere:
        async def nearest(self, *_: object) -> list[object]:
            return []

        async def collection(self, name: str) -> Collection:
            return Collection(1, name, "m", 4, "vector", "cosine", ChunkingOptions())

    embedder = MemoryEmbedder(script=note)
    assert await search(Nowhere(), embedder, Nowhere(), Query("words", "docs", "t", 1)) == []
    assert asked == ["query"]


def test_every_dialect_has_its_errors():
    assert list(ERRORS) == NAMES
