"""
Vectors that are paid for and not stored yet.

Owns what a rebalance, a changed row or a retry would else buy again, by collection generation
and chunk hash: an equal text of one model is an equal vector. Bounded by bytes; the least
recently used go first, and one that is gone is bought again. Never the only place of anything.

Invariants: `bytes` is never above the bound; a vector that is handed out is the one last put
under its key.
"""

from collections import OrderedDict
from typing import NamedTuple

from worker.core.model import Vector

# What an entry takes besides the vector's own bytes: key, hash, numbers, dictionary slot and
# list node. Measured with tracemalloc (tests/core/test_vector_cache.py).
OVERHEAD_BYTES = 320


class VectorKey(NamedTuple):
    """The generation of a collection, and the hash of the text that was embedded."""

    collection_id: int
    generation: int
    hash: bytes


class VectorCache:
    """
    The most recently used vectors, up to a number of bytes.

        >>> cache = VectorCache(max_bytes=900)
        >>> first, second = VectorKey(1, 1, b"first"), VectorKey(1, 1, b"second")
        >>> cache.put(first, Vector(bytes(200)))
        >>> cache.put(second, Vector(bytes(300)))
        >>> cache.get(first) is None, cache.bytes
        (True, 620)
        >>> cache.discard(second)
        >>> cache.bytes, cache.hits, cache.misses
        (0, 0, 1)
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._vectors: OrderedDict[VectorKey, Vector] = OrderedDict()
        self._bytes = 0
        self._hits = 0
        self._misses = 0

    def get(self, key: VectorKey) -> Vector | None:
        """Return a vector and keep it longer, None where it has to be bought."""
        vector = self._vectors.get(key)
        if vector is None:
            self._misses += 1
            return None
        self._hits += 1
        self._vectors.move_to_end(key)
        return vector

    def put(self, key: VectorKey, vector: Vector) -> None:
        """Keep a vector; one that is larger than the whole cache is not kept."""
        self.discard(key)
        size = len(vector) + OVERHEAD_BYTES
        if size > self._max_bytes:
            return
        while self._bytes + size > self._max_bytes:
            _, dropped = self._vectors.popitem(last=False)
            self._bytes -= len(dropped) + OVERHEAD_BYTES
        self._vectors[key] = vector
        self._bytes += size

    def discard(self, key: VectorKey) -> None:
        """Let go of a vector that is stored now, or never was here."""
        vector = self._vectors.pop(key, None)
        if vector is not None:
            self._bytes -= len(vector) + OVERHEAD_BYTES

    @property
    def bytes(self) -> int:
        """What the entries take, their overhead included."""
        return self._bytes

    @property
    def hits(self) -> int:
        """How many vectors were found here."""
        return self._hits

    @property
    def misses(self) -> int:
        """How many were not."""
        return self._misses
