"""
The port `Embedder` in memory: vectors that only the text, the model and the size decide.

Owns the count of every text it was paid for, and lets a script decide about each request:
return (it is answered), raise (it fails), or wait (it is slow). Facts are awaited, so that no
caller has to sleep. Never gives a vector of another size than it was asked for.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable

import numpy as np

from worker.core.model import Vector
from worker.errors import RejectedInput, WrongDimensions
from worker.ports import EmbeddingRequest

Script = Callable[[EmbeddingRequest], Awaitable[None]]
"""Decides about one request: returns, raises, or waits."""


def vector_of(text: str, model: str, dimensions: int) -> Vector:
    """Return the unit vector that stands for a text: the same in every process."""
    seed = hashlib.shake_256(f"{model}\0{text}".encode())
    # Odd numbers: never zero, so that every vector has a length.
    values = np.frombuffer(seed.digest(2 * dimensions), "<i2").astype("<f4") * 2 + 1
    return Vector((values / np.sqrt(np.dot(values, values))).astype("<f4").tobytes())


class MemoryEmbedder:
    """
    An embedding provider inside the process.

        >>> embedder = MemoryEmbedder()
        >>> request = EmbeddingRequest("model", 3, ["one", "two"])
        >>> [len(vector) for vector in asyncio.run(embedder.embed(request))]
        [12, 12]
        >>> embedder.embedded["one"]
        1
    """

    def __init__(self, dimensions: int | None = None, script: Script | None = None) -> None:
        """Serve every size asked for, or only `dimensions`, as a model of one size does."""
        self._dimensions = dimensions
        self.script = script
        self.embedded: Counter[str] = Counter()
        self.requests = 0
        self.running = 0
        self.answers = 0
        self.closed = False
        self._waiting: list[tuple[Callable[[], bool], asyncio.Event]] = []

    async def embed(self, request: EmbeddingRequest) -> list[Vector]:
        """Return one vector a text, in order, once the script lets it."""
        self.requests += 1
        self.running += 1
        self._changed()
        try:
            if self.script is not None:
                await self.script(request)
            vectors = self._vectors(request)
            self.answers += 1
            return vectors
        finally:
            self.running -= 1
            self._changed()

    async def close(self) -> None:
        """Take note that nobody needs it any more."""
        self.closed = True

    async def in_flight(self, count: int) -> None:
        """Wait until at least so many requests are being worked on at once."""
        await self._until(lambda: self.running >= count)

    async def answered(self, count: int) -> None:
        """Wait until so many requests have been answered in all."""
        await self._until(lambda: self.answers >= count)

    def _vectors(self, request: EmbeddingRequest) -> list[Vector]:
        if self._dimensions not in {None, request.dimensions}:
            raise WrongDimensions(
                f"the provider answers vectors of {self._dimensions} dimensions, "
                f"the collection has {request.dimensions}"
            )
        try:
            vectors = [
                vector_of(text, request.model, request.dimensions) for text in request.texts
            ]
        except UnicodeEncodeError as error:
            raise RejectedInput("a text holds a lone surrogate") from error
        self.embedded.update(request.texts)
        return vectors

    async def _until(self, fact: Callable[[], bool]) -> None:
        if not fact():
            event = asyncio.Event()
            self._waiting.append((fact, event))
            await event.wait()

    def _changed(self) -> None:
        for fact, event in self._waiting:
            if fact():
                event.set()
        self._waiting = [waiting for waiting in self._waiting if not waiting[1].is_set()]
