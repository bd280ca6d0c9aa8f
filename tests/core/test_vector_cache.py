import gc
import tracemalloc

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from worker.core.model import Vector
from worker.core.vector_cache import OVERHEAD_BYTES, VectorCache, VectorKey

KEYS = st.builds(
    VectorKey, st.integers(1, 2), st.integers(1, 2), st.sampled_from([b"a", b"b", b"c"])
)
MAX_BYTES = 4 * OVERHEAD_BYTES + 1000


class AnyUse(RuleBasedStateMachine):
    """The cache against a list of entries, the least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = VectorCache(MAX_BYTES)
        self.model: list[tuple[VectorKey, Vector]] = []
        self.hits = self.misses = 0

    def model_bytes(self) -> int:
        return sum(len(vector) + OVERHEAD_BYTES for _, vector in self.model)

    def drop(self, key: VectorKey) -> None:
        self.model = [entry for entry in self.model if entry[0] != key]

    @rule(key=KEYS, size=st.integers(0, MAX_BYTES))
    def put(self, key: VectorKey, size: int) -> None:
        vector = Vector(bytes(size))
        self.cache.put(key, vector)
        self.drop(key)
        if size + OVERHEAD_BYTES <= MAX_BYTES:
            self.model.append((key, vector))
            while self.model_bytes() > MAX_BYTES:
                self.model.pop(0)

    @rule(key=KEYS)
    def get(self, key: VectorKey) -> None:
        found = dict(self.model).get(key)
        assert self.cache.get(key) is found
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
            self.drop(key)
            self.model.append((key, found))

    @rule(key=KEYS)
    def discard(self, key: VectorKey) -> None:
        self.cache.discard(key)
        self.drop(key)

    @invariant()
    def counts_what_it_holds(self) -> None:
        assert self.cache.bytes == self.model_bytes() <= MAX_BYTES
        assert (self.cache.hits, self.cache.misses) == (self.hits, self.misses)


TestAnyUse = AnyUse.TestCase


def test_the_same_text_in_another_generation_is_another_vector():
    cache = VectorCache(10_000)
    cache.put(VectorKey(1, 1, b"a"), Vector(b"old"))
    assert cache.get(VectorKey(1, 2, b"a")) is None
    assert cache.get(VectorKey(2, 1, b"a")) is None
    assert cache.get(VectorKey(1, 1, b"a")) == b"old"


def test_a_cache_of_no_bytes_keeps_nothing():
    cache = VectorCache(0)
    cache.put(VectorKey(1, 1, b"a"), Vector(b""))
    assert cache.get(VectorKey(1, 1, b"a")) is None


def test_a_vector_that_fills_the_cache_is_kept():
    cache = VectorCache(OVERHEAD_BYTES + 8)
    cache.put(VectorKey(1, 1, b"a"), Vector(bytes(8)))
    assert cache.bytes == OVERHEAD_BYTES + 8


def test_the_overhead_is_what_an_entry_really_takes():
    cache = VectorCache(10**9)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(3000):
            key = VectorKey(1, 1, number.to_bytes(16, "big"))
            cache.put(key, Vector(bytes(1024)))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    overhead = (after - before) / 3000 - 1024
    assert OVERHEAD_BYTES / 2 < overhead < OVERHEAD_BYTES
