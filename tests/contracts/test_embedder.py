"""The contract of the port `Embedder`, on memory and over real HTTP."""

import asyncio
import math
import struct
from collections.abc import AsyncIterator

import pytest

from tests.support.embedders import (
    REFUSED,
    ScriptedSubject,
    Subject,
    http_subject,
    local_model_subject,
    memory_subject,
)
from worker.core.model import Vector
from worker.errors import ProviderUnavailable, RateLimited, RejectedInput, WrongDimensions
from worker.ports import EmbeddingRequest


def request(subject: Subject, *texts: str) -> EmbeddingRequest:
    return EmbeddingRequest(subject.model, subject.dimensions, texts)


def values(subject: Subject, vector: Vector) -> tuple[float, ...]:
    return struct.unpack(f"<{subject.dimensions}f", vector)


class EmbedderContract:
    """What every embedder promises; a subject says how its provider is made to fail."""

    async def test_each_text_gets_the_vector_it_gets_alone(self, subject: Subject) -> None:
        texts = [f"text {number}" for number in range(20)]
        together = await subject.embedder.embed(request(subject, *texts))
        alone = [(await subject.embedder.embed(request(subject, text)))[0] for text in texts]
        assert together == alone
        assert len(set(together)) == len(texts)

    async def test_a_text_that_comes_twice_gets_two_equal_vectors(
        self, subject: Subject
    ) -> None:
        first, other, second = await subject.embedder.embed(
            request(subject, "same", "other", "same")
        )
        assert first == second != other

    async def test_vectors_are_finite_and_have_a_length(self, subject: Subject) -> None:
        for vector in await subject.embedder.embed(request(subject, "one", "two", "three")):
            assert all(math.isfinite(value) for value in values(subject, vector))
            assert math.hypot(*values(subject, vector)) > 0

    @pytest.mark.parametrize(
        "text", ["\0", 'a "quoted"\\ text\n\r\t', "日本語 🦜", "\u2028", " ", "x" * 8_000]
    )
    async def test_odd_texts_are_embedded_as_they_are(
        self, subject: Subject, text: str
    ) -> None:
        (vector,) = await subject.embedder.embed(request(subject, text))
        assert len(values(subject, vector)) == subject.dimensions

    async def test_no_texts_get_no_vectors(self, subject: Subject) -> None:
        assert await subject.embedder.embed(request(subject)) == []

    async def test_a_text_that_is_no_unicode_is_refused(self, subject: Subject) -> None:
        with pytest.raises(RejectedInput):
            await subject.embedder.embed(request(subject, "a lone \ud800 surrogate"))

    async def test_a_model_of_another_size_gives_no_vectors(self, subject: Subject) -> None:
        larger = request(subject, "text")._replace(dimensions=subject.dimensions + 1)
        with pytest.raises(WrongDimensions, match=f"{subject.dimensions} dimensions"):
            await subject.embedder.embed(larger)

    async def test_closing_twice_is_safe(self, subject: Subject) -> None:
        await subject.embedder.embed(request(subject, "text"))
        await subject.embedder.close()
        await subject.embedder.close()


class ScriptedEmbedderContract(EmbedderContract):
    """What it promises besides, where the provider can be made to fail."""

    async def test_a_refused_text_is_said_to_be_refused(self, subject: ScriptedSubject) -> None:
        with pytest.raises(RejectedInput) as caught:
            await subject.embedder.embed(request(subject, "fine", REFUSED))
        assert caught.value.facts.provider_status == 400
        assert subject.paid("fine") == 0
        assert len(await subject.embedder.embed(request(subject, "fine"))) == 1

    async def test_an_outage_is_nobodys_fault_and_passes(
        self, subject: ScriptedSubject
    ) -> None:
        subject.outage_once()
        with pytest.raises(ProviderUnavailable) as caught:
            await subject.embedder.embed(request(subject, "text"))
        assert not isinstance(caught.value, RateLimited)
        assert caught.value.status == 503
        assert len(await subject.embedder.embed(request(subject, "text"))) == 1

    async def test_a_throttle_says_how_long_to_wait(self, subject: ScriptedSubject) -> None:
        subject.throttle_once(2.5)
        with pytest.raises(RateLimited) as caught:
            await subject.embedder.embed(request(subject, "text"))
        assert caught.value.retry_after_seconds == 2.5

    async def test_it_never_tries_again_by_itself(self, subject: ScriptedSubject) -> None:
        subject.outage_once()
        subject.outage_once()
        for _ in range(2):
            with pytest.raises(ProviderUnavailable):
                await subject.embedder.embed(request(subject, "text"))
        assert subject.paid("text") == 0

    async def test_calls_at_once_get_their_own_vectors(self, subject: ScriptedSubject) -> None:
        gate = subject.hold()
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            calls = [
                tasks.create_task(subject.embedder.embed(request(subject, f"text {number}")))
                for number in range(10)
            ]
            await subject.in_flight(10)
            gate.set()
        together = await subject.embedder.embed(
            request(subject, *(f"text {n}" for n in range(10)))
        )
        assert [call.result()[0] for call in calls] == together

    async def test_a_call_that_is_given_up_harms_no_other(
        self, subject: ScriptedSubject
    ) -> None:
        gate = subject.hold()
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            given_up = tasks.create_task(subject.embedder.embed(request(subject, "given up")))
            kept = tasks.create_task(subject.embedder.embed(request(subject, "kept")))
            await subject.in_flight(2)
            given_up.cancel()
            gate.set()
        assert given_up.cancelled()
        assert len(kept.result()) == 1


class TestMemoryEmbedder(ScriptedEmbedderContract):
    @pytest.fixture
    async def subject(self) -> AsyncIterator[ScriptedSubject]:
        async with memory_subject() as subject:
            yield subject


class TestHttpEmbedder(ScriptedEmbedderContract):
    @pytest.fixture
    async def subject(self) -> AsyncIterator[ScriptedSubject]:
        async with http_subject() as subject:
            yield subject


class TestHttpEmbedderOnTheLocalModel(EmbedderContract):
    @pytest.fixture
    async def subject(self) -> AsyncIterator[Subject]:
        async with local_model_subject() as subject:
            yield subject
