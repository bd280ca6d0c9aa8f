"""
What the contract of `Embedder` is run on: an embedder, and how its provider is made to behave.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Protocol

from aiohttp import web

from tests.support import provider as scripted
from tests.support.provider import Provider
from worker.adapters.http_embedder import HttpEmbedder
from worker.adapters.memory_embedder import MemoryEmbedder
from worker.config import EmbeddingOptions
from worker.embedded import wordllama_model
from worker.embedded.embedding_server import EmbeddingApi
from worker.errors import ProviderUnavailable, RateLimited, RejectedInput
from worker.ports import Embedder, EmbeddingRequest

MODEL = "contract-model"
DIMENSIONS = 8
REFUSED = "the provider refuses this text"


class Subject(Protocol):
    """One embedder of a provider that knows one model."""

    embedder: Embedder
    model: str
    dimensions: int


class ScriptedSubject(Subject, Protocol):
    """... that can be made to fail, and counts."""

    def outage_once(self) -> None: ...

    def throttle_once(self, retry_after_seconds: float) -> None: ...

    def hold(self) -> asyncio.Event: ...

    async def in_flight(self, count: int) -> None: ...

    def paid(self, text: str) -> int: ...


class MemorySubject:
    model = MODEL
    dimensions = DIMENSIONS

    def __init__(self) -> None:
        self.memory = MemoryEmbedder(DIMENSIONS, self._decide)
        self.embedder: Embedder = self.memory
        self._next: list[Exception] = []
        self._gate: asyncio.Event | None = None

    def outage_once(self) -> None:
        self._next.append(ProviderUnavailable("scripted", status=503))

    def throttle_once(self, retry_after_seconds: float) -> None:
        self._next.append(RateLimited(status=429, retry_after_seconds=retry_after_seconds))

    def hold(self) -> asyncio.Event:
        self._gate = asyncio.Event()
        return self._gate

    async def in_flight(self, count: int) -> None:
        await self.memory.in_flight(count)

    def paid(self, text: str) -> int:
        return self.memory.embedded[text]

    async def _decide(self, request: EmbeddingRequest) -> None:
        if self._gate is not None:
            await self._gate.wait()
        if self._next:
            raise self._next.pop(0)
        if REFUSED in request.texts:
            raise RejectedInput(status=400)


class HttpSubject:
    model = MODEL
    dimensions = DIMENSIONS

    def __init__(self, provider: Provider, embedder: HttpEmbedder) -> None:
        self.embedder: Embedder = embedder
        self._provider = provider
        self._gate: asyncio.Event | None = None
        provider.for_text(REFUSED, scripted.status(400, code="content_filter"))
        provider.script = self._decide

    def outage_once(self) -> None:
        self._provider.next(scripted.status(503))

    def throttle_once(self, retry_after_seconds: float) -> None:
        self._provider.next(scripted.status(429, retry_after=f"{retry_after_seconds:g}"))

    def hold(self) -> asyncio.Event:
        self._gate = asyncio.Event()
        return self._gate

    async def in_flight(self, count: int) -> None:
        await self._provider.in_flight(count)

    def paid(self, text: str) -> int:
        return self._provider.embedded[text]

    def _decide(self, _: scripted.Call) -> scripted.Reply | None:
        return scripted.held(self._gate) if self._gate is not None else None


class LocalModelSubject:
    """The embedding server of the demo, with its real model."""

    model = wordllama_model.NAME
    dimensions = wordllama_model.DIMENSIONS[-1]

    def __init__(self, embedder: HttpEmbedder) -> None:
        self.embedder: Embedder = embedder


def options_for(url: str, **changes: object) -> EmbeddingOptions:
    return EmbeddingOptions(
        **({"url": url, "api_key_variable": None, "timeout_seconds": 10} | changes)
    )


@cache
def local_model() -> wordllama_model.WordLlamaModel:
    return wordllama_model.WordLlamaModel()


@asynccontextmanager
async def local_model_subject() -> AsyncIterator[LocalModelSubject]:
    application = EmbeddingApi(local_model()).application()
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    embedder = HttpEmbedder(options_for(f"http://127.0.0.1:{runner.addresses[0][1]}/v1"))
    yield LocalModelSubject(embedder)
    await embedder.close()
    await runner.cleanup()


@asynccontextmanager
async def memory_subject() -> AsyncIterator[MemorySubject]:
    subject = MemorySubject()
    yield subject
    await subject.embedder.close()


@asynccontextmanager
async def http_subject() -> AsyncIterator[HttpSubject]:
    async with Provider(DIMENSIONS) as provider:
        embedder = HttpEmbedder(options_for(provider.url))
        yield HttpSubject(provider, embedder)
        await embedder.close()
