"""What a benchmark reads out of what workers count, and the load that it makes."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.virtual_time import run
from worker.errors import JobFailed
from worker.ops import bench
from worker.ops.bench import (
    Look,
    Measuring,
    Totals,
    look_at,
    measurement,
    summed,
    within_seconds,
)
from worker.telemetry import Counters
from worker.telemetry.instruments import FRESHNESS_SECONDS


def late(**counts: int) -> tuple[int, ...]:
    """How many documents were within each bound; `s0_1` is 0.1 s, `more` beyond all."""
    by_bound = {name.removeprefix("s").replace("_", "."): n for name, n in counts.items()}
    return (*(by_bound.get(f"{bound:g}", 0) for bound in FRESHNESS_SECONDS),
            by_bound.get("more", 0))  # fmt: skip


def done(settled: int, **more: float) -> Look:
    return Look(totals=Totals(settled=settled, **more))


class Scripted:
    """Workers that have done so much at each look; the last one stays."""

    def __init__(self, *looks: Look):
        self.looks = list(looks)

    def look(self):
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]


def measure(workers, call):
    """Run in virtual time; returns the result and what was told meanwhile."""
    told = []

    async def main():
        clock = asyncio.get_running_loop().time
        return await call(Measuring(workers, clock=clock, watch=told.append))

    return run(main()), told


# ---- what is measured ----


def test_a_workload_lasts_until_so_many_events_more_are_settled():
    start = done(7, cpu_seconds=3.0)
    first = done(107, cpu_seconds=3.2, requests=2, embedded=50)
    last = done(1007, cpu_seconds=4.0, requests=3, embedded=300)._replace(peak_bytes=9)
    workers = Scripted(start, start, first, first, first, last)
    found, told = measure(workers, lambda measuring: measuring.workload("new", 1000))
    assert (found.workload, found.used.settled, found.peak_bytes) == ("new", 1000, 9)
    assert found.rate == pytest.approx(1000 / (4 * bench.LOOK_SECONDS))
    assert found.cpu_us == pytest.approx(1000)
    assert found.requests_for_1000_chunks == pytest.approx(10)
    assert [(one.doing, one.share) for one in told] == [("new", 0.0), *[("new", 0.1)] * 3]


def test_nothing_embedded_has_no_requests_a_chunk():
    found = measurement("again", 1.0, Look(), done(10))
    assert found.requests_for_1000_chunks is None


def test_workers_have_joined_when_all_partitions_are_owned_and_nobody_has_none():
    looks = [Look(partitions=0, idle=2), Look(partitions=8, idle=1), Look(partitions=8)]
    workers = Scripted(*looks)
    _, told = measure(workers, lambda measuring: measuring.joined(8))
    assert [one.share for one in told] == [0.0, 1.0]
    assert workers.looks == looks[-1:]


def test_silence_of_two_minutes_is_an_error_and_slowness_is_none():
    silent = Scripted(done(0), done(1), done(5))
    with pytest.raises(JobFailed, match=r"nothing was done for 120 s \(new\)"):
        measure(silent, lambda measuring: measuring.workload("new", 10))
    each_minute = round(60 / bench.LOOK_SECONDS)
    slow = Scripted(*(done(settled) for settled in range(11) for _ in range(each_minute)))
    found, told = measure(slow, lambda measuring: measuring.workload("new", 10))
    assert found.seconds == pytest.approx(10 * 60, rel=0.01)
    assert any(one.left_seconds and one.left_seconds > 60 for one in told)


@pytest.mark.parametrize(
    ("look", "why"),
    [
        (Look(partitions=4, letters=(("content_filter", 3),)), "letters: content_filter 3"),
        (Look(partitions=3), "a partition has lost its worker"),
        (Look(partitions=4, idle=1), "a partition has lost its worker"),
    ],
)
def test_figures_that_would_mean_nothing_are_an_error(look, why):
    workers = Scripted(Look(partitions=4), look)
    with pytest.raises(JobFailed, match=why):
        measure(workers, lambda measuring: measuring.workload("new", 10))


def test_looks_are_added_up_and_the_largest_memory_counts():
    one = Look(
        partitions=4,
        letters=(("a", 1),),
        peak_bytes=100,
        totals=Totals(settled=10, embedded=20, requests=3, refused=1, cpu_seconds=2.0),
        late=late(s0_1=9),
    )
    two = Look(
        idle=1,
        letters=(("b", 2),),
        peak_bytes=300,
        totals=Totals(settled=1, embedded=2, requests=1, refused=0, cpu_seconds=0.5),
        late=late(s0_1=1, more=2),
    )
    both = summed([one, two])
    assert both == Look(
        partitions=4,
        idle=1,
        letters=(("a", 1), ("b", 2)),
        peak_bytes=300,
        totals=Totals(settled=11, embedded=22, requests=4, refused=1, cpu_seconds=2.5),
        late=late(s0_1=10, more=2),
    )
    assert summed([]) == Look()
    found = measurement("new", 2.0, two, both)
    assert found == ("new", 2.0, one.totals, one.late, 300)


def test_a_look_reads_what_a_worker_counts():
    counters = Counters()
    counters.documents_total = 7
    counters.outcomes["stored", ""] = 4
    counters.outcomes["deadlettered", "undecodable"] = 2
    counters.outcomes["deadlettered", "content_filter"] = 1
    counters.provider_requests_total.update({"2xx": 5, "429": 3})
    counters.chunks_embedded_total = 11
    counters.freshness.record(0.09)
    seen = look_at(counters, partitions=0, cpu_seconds=1.5, peak_bytes=6)
    assert seen._replace(letters=()) == Look(
        idle=1,
        peak_bytes=6,
        totals=Totals(settled=7, embedded=11, requests=8, refused=3, cpu_seconds=1.5),
        late=late(s0_1=1),
    )
    assert sorted(seen.letters) == [("content_filter", 1), ("undecodable", 2)]
    assert look_at(counters, partitions=3, cpu_seconds=0, peak_bytes=0)[:2] == (3, 0)


@pytest.mark.parametrize(
    ("documents", "share", "bound"),
    [
        (late(s0_05=50, s0_1=50), 0.5, 0.05),
        (late(s0_05=49, s0_1=51), 0.5, 0.1),
        (late(s0_05=98, s1=1, s60=1), 0.99, 1.0),
        (late(s0_05=98, s1=1, s60=1), 1.0, 60.0),
        (late(s0_05=1, more=99), 0.5, None),
        (late(), 0.99, None),
    ],
)
def test_lateness_is_the_bound_that_the_share_did_not_exceed(documents, share, bound):
    assert within_seconds(documents, share) == bound


# ---- the load ----


def test_documents_are_the_same_every_time_whatever_their_version():
    first, again = list(bench.documents(500, 20)), list(bench.documents(500, 20, version=2))
    assert [one.text for one in first] == [one.text for one in again]
    assert {one.version for one in first} == {1}
    assert {one.version for one in again} == {2}
    assert len({one.id for one in first}) == len({one.text for one in first}) == 20
    assert all(400 < len(one.text) < 600 for one in first)
    other = list(bench.documents(500, 20, series="late"))
    assert not {one.id for one in first} & {one.id for one in other}
    assert not {one.text for one in first} & {one.text for one in other}


def test_what_is_offered_comes_in_time_and_says_when_it_was_to_be_sent_however_late_it_is():
    began = datetime(2026, 1, 1, tzinfo=UTC)
    came, lost = [], []

    async def main():
        loop = asyncio.get_running_loop()
        start = loop.time()

        def clock() -> float:
            return loop.time() - start + sum(lost)

        documents = bench.documents(100, 9)
        async for event in bench.on_time(documents, 5, 1.0, clock=clock, now=lambda: began):
            came.append((event.id, event.occurred_at - began, clock()))
            if len(came) == 1:
                lost.append(2.5)  # the next two are late, and the others are not

    run(main())
    at = [0.0, 2.5, 2.5, 3.0, 4.0]
    assert came == [(f"d{n:07d}", timedelta(seconds=n), pytest.approx(at[n])) for n in range(5)]
