"""The contract suite of `Embedder` turns red for embedders that are wrong."""

import inspect
from collections.abc import Callable

import pytest

from tests.contracts.test_embedder import ScriptedEmbedderContract
from tests.support.embedders import DIMENSIONS, MemorySubject
from worker.adapters.memory_embedder import MemoryEmbedder
from worker.core.model import Vector
from worker.errors import TransientError
from worker.ports import Embedder, EmbeddingRequest


class Wrapped:
    def __init__(self, inner: MemoryEmbedder) -> None:
        self._inner = inner

    async def embed(self, request: EmbeddingRequest) -> list[Vector]:
        return await self._inner.embed(request)

    async def close(self) -> None:
        await self._inner.close()


class TakesTheOrderOfTheAnswer(Wrapped):
    async def embed(self, request: EmbeddingRequest) -> list[Vector]:
        return list(reversed(await self._inner.embed(request)))


class CutsVectorsToSize(Wrapped):
    async def embed(self, request: EmbeddingRequest) -> list[Vector]:
        vectors = await self._inner.embed(request._replace(dimensions=DIMENSIONS))
        return [Vector(vector[: 4 * request.dimensions]) for vector in vectors]


class HidesOutages(Wrapped):
    async def embed(self, request: EmbeddingRequest) -> list[Vector]:
        try:
            return await self._inner.embed(request)
        except TransientError:
            return [Vector(bytes(4 * request.dimensions)) for _ in request.texts]


class TriesAgain(Wrapped):
    async def embed(self, request: EmbeddingRequest) -> list[Vector]:
        try:
            return await self._inner.embed(request)
        except TransientError:
            return await self._inner.embed(request)


class LosesDuplicates(Wrapped):
    async def embed(self, request: EmbeddingRequest) -> list[Vector]:
        texts = list(dict.fromkeys(request.texts))
        return await self._inner.embed(request._replace(texts=texts))


async def red_tests(wrap: Callable[[MemoryEmbedder], Embedder] | None) -> list[str]:
    """Run those tests of the suite that need nothing but a subject; return what failed."""
    red = []
    for name, test in inspect.getmembers(ScriptedEmbedderContract, inspect.isfunction):
        if name.startswith("test_") and list(inspect.signature(test).parameters)[1:] == [
            "subject"
        ]:
            subject = MemorySubject()
            if wrap is not None:
                subject.embedder = wrap(subject.memory)
            try:
                await test(ScriptedEmbedderContract(), subject)
            except (AssertionError, ValueError, TransientError, pytest.fail.Exception):
                red.append(name)
    return red


async def test_a_right_embedder_is_green() -> None:
    assert await red_tests(None) == []


@pytest.mark.parametrize(
    ("bug", "test"),
    [
        (TakesTheOrderOfTheAnswer, "test_each_text_gets_the_vector_it_gets_alone"),
        (CutsVectorsToSize, "test_a_model_of_another_size_gives_no_vectors"),
        (HidesOutages, "test_an_outage_is_nobodys_fault_and_passes"),
        (TriesAgain, "test_it_never_tries_again_by_itself"),
        (LosesDuplicates, "test_a_text_that_comes_twice_gets_two_equal_vectors"),
    ],
)
async def test_a_wrong_embedder_is_red(
    bug: Callable[[MemoryEmbedder], Embedder], test: str
) -> None:
    assert test in await red_tests(bug)
