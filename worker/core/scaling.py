"""
How many workers a fleet needs: one rule over what one worker sees of all of it.

Owns no state and reads no clock. The answer is about the fleet, so all workers give about the
same one, and an autoscaler may ask any of them.
"""

from math import ceil
from typing import Literal, NamedTuple

Reason = Literal["lag", "quota_bound", "idle", "breaker_open", "partition_bound"]

BUSY_SHARE = 0.5
"""A fleet can be made smaller while less than this share of its places would be in use."""
STEP = 10
"""A step down spares one, and one more of each ten: Kubernetes overlooks changes of a tenth."""


class Load(NamedTuple):
    """
    A fleet over a while.

    `arriving` and `settled` are records a second, `lag` records that are not settled.
    `busy_share` is how much of what the asked worker may do at once it does; `is_open` and
    `is_quota_bound` are its own too: the provider is one for all.
    """

    workers: int
    partitions: int
    lag: int
    arriving: float
    settled: float
    busy_share: float
    is_open: bool = False
    is_quota_bound: bool = False


class Advice(NamedTuple):
    """How many workers there should be, and why."""

    replicas: int
    reason: Reason


def advise(load: Load, drain_seconds: float) -> Advice:
    """
    Return how many workers settle what waits within `drain_seconds`, beside what arrives.

    Never fewer than one, and no fleet grows beyond its partitions. One that a breaker or the
    provider's quota holds back stays as it is: more workers would only be refused more often.
    One that keeps up (it settles what arrives, and at that rate what waits in time) is made
    smaller step by step, as its rate says nothing about what it could do.

        >>> behind = Load(2, 12, lag=9_000, arriving=10.0, settled=20.0, busy_share=1.0)
        >>> advise(behind, drain_seconds=300)
        Advice(replicas=4, reason='lag')
        >>> advise(behind._replace(is_quota_bound=True), drain_seconds=300)
        Advice(replicas=2, reason='quota_bound')
    """
    workers = max(1, load.workers)
    if load.is_open:
        return Advice(workers, "breaker_open")
    if load.lag <= load.settled * drain_seconds and load.arriving <= load.settled:
        return _spared(load, workers)
    if load.is_quota_bound:
        return Advice(workers, "quota_bound")
    if load.settled <= 0:
        return _within(load, workers)  # nothing is known of what a worker does
    needed = load.arriving + load.lag / drain_seconds
    # Bounded before it is rounded: the less was settled, the nearer it is to infinity.
    wanted = ceil(min(load.partitions + 1, workers * needed / load.settled))
    return _within(load, max(workers, wanted))


def _spared(load: Load, workers: int) -> Advice:
    if load.lag == 0 and load.arriving == 0:
        return Advice(1, "idle")
    fewer = workers - workers // STEP - 1
    if fewer > 0 and load.busy_share * workers / fewer < BUSY_SHARE:
        return Advice(min(fewer, max(1, load.partitions)), "idle")
    return _within(load, workers)


def _within(load: Load, wanted: int) -> Advice:
    if wanted > load.partitions:
        return Advice(max(1, load.partitions), "partition_bound")
    return Advice(wanted, "lag")
