"""How many workers a fleet needs, by tables and properties."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.scaling import BUSY_SHARE, STEP, Advice, Load, advise

DRAIN_SECONDS = 300.0
BEHIND = Load(
    workers=2, partitions=12, lag=60_000, arriving=50.0, settled=100.0, busy_share=1.0
)
KEEPS_UP = Load(workers=4, partitions=12, lag=90, arriving=10.0, settled=10.0, busy_share=0.9)
LOADS = st.builds(
    Load,
    workers=st.integers(0, 40),
    partitions=st.integers(0, 40),
    lag=st.integers(0, 1_000_000),
    arriving=st.floats(0, 10_000),
    settled=st.floats(0, 10_000),
    busy_share=st.floats(0, 1),
    is_open=st.booleans(),
    is_quota_bound=st.booleans(),
)


@dataclass(frozen=True)
class Case:
    """A load, what is advised, and the name of the case."""

    name: str
    load: Load
    advice: Advice


CASES = [
    # (50 + 60,000 / 300) records a second, of which a worker settles 50.
    Case("a backlog", BEHIND, Advice(5, "lag")),
    Case("a little more than two settle", BEHIND._replace(lag=30_300), Advice(4, "lag")),
    Case("exactly what four settle", BEHIND._replace(lag=45_000), Advice(4, "lag")),
    Case(
        "more arrives than is settled",
        KEEPS_UP._replace(arriving=15.0, lag=0),
        Advice(6, "lag"),
    ),
    Case("more than partitions", BEHIND._replace(partitions=4), Advice(4, "partition_bound")),
    Case("as many as partitions", BEHIND._replace(partitions=5), Advice(5, "lag")),
    Case(
        "the provider is left alone", BEHIND._replace(is_open=True), Advice(2, "breaker_open")
    ),
    Case(
        "its quota is used up",
        BEHIND._replace(is_quota_bound=True),
        Advice(2, "quota_bound"),
    ),
    Case(
        "left alone, with a quota that is used up",
        BEHIND._replace(is_open=True, is_quota_bound=True),
        Advice(2, "breaker_open"),
    ),
    Case("nothing was settled yet", BEHIND._replace(settled=0.0), Advice(2, "lag")),
    Case("it keeps up", KEEPS_UP, Advice(4, "lag")),
    Case(
        "it keeps up within its quota", KEEPS_UP._replace(is_quota_bound=True), Advice(4, "lag")
    ),
    Case("three are enough", KEEPS_UP._replace(busy_share=0.37), Advice(3, "idle")),
    Case("three are just not enough", KEEPS_UP._replace(busy_share=0.375), Advice(4, "lag")),
    Case(
        "one of two is enough", KEEPS_UP._replace(workers=2, busy_share=0.1), Advice(1, "idle")
    ),
    Case(
        "a fleet of ten is made smaller by two",
        KEEPS_UP._replace(workers=10, busy_share=0.1),
        Advice(8, "idle"),
    ),
    Case(
        "eight are just not enough",
        KEEPS_UP._replace(workers=10, busy_share=0.4),
        Advice(10, "lag"),
    ),
    Case("a little is settled", BEHIND._replace(settled=0.5), Advice(12, "partition_bound")),
    Case("one is always there", KEEPS_UP._replace(workers=1, busy_share=0.0), Advice(1, "lag")),
    Case("a worker too many", KEEPS_UP._replace(partitions=3), Advice(3, "partition_bound")),
    Case("none too many", KEEPS_UP._replace(partitions=4), Advice(4, "lag")),
    Case(
        "more than the one partition",
        KEEPS_UP._replace(workers=2, partitions=1),
        Advice(1, "partition_bound"),
    ),
    Case(
        "idle beside one partition",
        KEEPS_UP._replace(partitions=1, busy_share=0.1),
        Advice(1, "idle"),
    ),
    Case("two too many", KEEPS_UP._replace(partitions=2, busy_share=0.1), Advice(2, "idle")),
    Case(
        "nothing to do",
        Load(workers=4, partitions=12, lag=0, arriving=0.0, settled=0.0, busy_share=0.0),
        Advice(1, "idle"),
    ),
    Case(
        "something arrived, and is settled",
        Load(workers=4, partitions=12, lag=0, arriving=1.0, settled=1.0, busy_share=0.9),
        Advice(4, "lag"),
    ),
    Case(
        "nobody is there yet",
        BEHIND._replace(workers=0, settled=0.0),
        Advice(1, "lag"),
    ),
    Case("no partitions yet", BEHIND._replace(partitions=0), Advice(1, "partition_bound")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_advised(case: Case) -> None:
    assert advise(case.load, DRAIN_SECONDS) == case.advice


@given(LOADS, st.floats(1, 3600))
def test_a_fleet_that_grows_stays_within_its_partitions(load: Load, drain: float) -> None:
    replicas, reason = advise(load, drain)
    assert replicas >= 1
    if replicas > max(1, load.workers):
        assert reason in {"lag", "partition_bound"}
        assert replicas <= load.partitions


@given(LOADS, st.floats(1, 3600))
def test_a_fleet_that_the_provider_holds_back_never_grows(load: Load, drain: float) -> None:
    held = load._replace(is_quota_bound=True)
    assert advise(held, drain).replicas <= max(1, load.workers)
    assert advise(load._replace(is_open=True), drain).replicas == max(1, load.workers)


@given(LOADS, st.floats(1, 3600))
def test_a_fleet_is_made_smaller_step_by_step_unless_nothing_is_to_be_done(
    load: Load, drain: float
) -> None:
    load = load._replace(workers=max(1, load.workers), partitions=40, is_open=False)
    replicas, _ = advise(load, drain)
    if (load.lag or load.arriving) and replicas < load.workers:
        assert replicas == load.workers - load.workers // STEP - 1
        assert load.busy_share * load.workers / replicas < BUSY_SHARE


@given(LOADS, st.floats(1, 3600))
def test_a_step_down_is_one_that_an_autoscaler_takes(load: Load, drain: float) -> None:
    """Kubernetes does nothing where the advice is within a tenth of what is there."""
    load = load._replace(workers=max(1, load.workers), partitions=40)
    replicas, _ = advise(load, drain)
    if replicas < load.workers:
        assert replicas / load.workers < 1 - 0.1


@given(LOADS, st.integers(1, 100_000), st.floats(1, 3600))
def test_more_lag_never_asks_for_fewer_workers(load: Load, more: int, drain: float) -> None:
    load = load._replace(settled=max(load.settled, 0.1))
    assert advise(load._replace(lag=load.lag + more), drain).replicas >= min(
        advise(load, drain).replicas, max(1, load.partitions)
    )
