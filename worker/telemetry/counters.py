"""
What a worker counts: plain numbers, added to where things happen, read when exported.

What an adapter or a core object counts by itself (tokens, cache hits) is not counted again
here: `Telemetry.observe` is told where to read it.

An addition costs 0.05 us where an OpenTelemetry counter costs 6, so these may be touched once
per record. Every attribute has the name of its row in `INSTRUMENTS`. Nothing here locks: one
event loop writes, and a reader of another thread sees each number whole.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from schemas.dead_letter import Reason
from worker.telemetry.instruments import FRESHNESS_SECONDS, LOOP_LAG_SECONDS


class Buckets:
    """
    A histogram of plain integers: how many values fell below each bound.

        >>> freshness = Buckets((0.1, 1.0))
        >>> freshness.record(0.05); freshness.record(0.1); freshness.record(7)
        >>> freshness.counts
        [2, 0, 1]
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(float(bound) for bound in bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def record(self, value: float) -> None:
        """Count one value; a bound belongs to the bucket below it, as in Prometheus."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Counters:
    """
    All counters of one worker.

        >>> counters = Counters()
        >>> counters.outcomes["stored", ""] += 1
        >>> counters.retries += 1
    """

    def __init__(self) -> None:
        # From 0 on, or nobody who looks at its increase would see the first letter of a reason.
        self.outcomes: Counter[tuple[str, str]] = Counter(
            {("deadlettered", reason.value): 0 for reason in Reason}
        )
        self.provider_requests_total: Counter[str] = Counter()
        self.freshness = Buckets(FRESHNESS_SECONDS)
        self.event_loop_lag = Buckets(LOOP_LAG_SECONDS)
        self.documents_total = 0
        self.chunks_embedded_total = 0
        self.chunks_kept_total = 0
        self.pgvector_write_throughput = 0
        self.retries = 0
        self.requeues = 0
        self.commits = 0
        self.fenced = 0
        self.rebalances = 0
        self.claims = 0
        self.nul_replaced = 0
        self.poll_errors = 0
