"""
The figures that are to be reached, P1 to P12, from what was seen.

Every figure is a ratio inside one interleaved run, of medians over its rounds; absolute times
are printed with their ranges, and judged only where a figure says so. What was not measured has
no verdict.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from tests.bench.measure import Run
from tests.bench.workloads import Delays, Edits
from tests.support.verdicts import Verdict

MAX_INPUTS = 128
"""Texts of a request, at most: what packing is measured by."""
NAIVE = "naive"
MEMORY_BYTES = 256 * 2**20


class Stored(NamedTuple):
    """Rows a second: the worker's store, and what the bare client takes."""

    ours: float
    bare: float


class Fresh(NamedTuple):
    """Delays at half of what is stored while more is published, beside the provider's."""

    delays: Delays
    provider_ms: float
    taken_per_second: float


@dataclass
class Seen:
    """What was measured, round by round."""

    stages: list[dict[str, float]] = field(default_factory=list)
    """CPU microseconds of a document in each stage alone."""
    first: list[Run] = field(default_factory=list)
    unchanged: list[Run] = field(default_factory=list)
    replayed: list[Run] = field(default_factory=list)
    peers: dict[str, list[Run]] = field(default_factory=dict)
    upserts: list[Stored] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    indexed: list[Stored] = field(default_factory=list)
    telemetry_us: list[float] = field(default_factory=list)
    edits: Edits | None = None
    provider_bound: list[float] = field(default_factory=list)
    quota_bound: list[tuple[float, float]] = field(default_factory=list)
    overloaded: list[tuple[int, float]] = field(default_factory=list)
    skewed: list[tuple[Delays, Delays]] = field(default_factory=list)
    fresh: list[Fresh] = field(default_factory=list)
    scaled: list[tuple[float, float]] = field(default_factory=list)
    """Requests a second of one worker, and of eight."""
    others: list[Verdict] = field(default_factory=list)


def verdicts(seen: Seen) -> list[Verdict]:
    """Return what was reached of what was measured."""
    return [*_cost(seen), *_store(seen), *_replays(seen), *_bounds(seen), *_latency(seen),
            *_against_peers(seen), *_tenants_and_edits(seen), *seen.others]  # fmt: skip


def _cost(seen: Seen) -> Iterator[Verdict]:
    if not seen.first:
        return
    own = median(run.own_us for run in seen.first)
    if seen.stages:
        alone = median(sum(stages.values()) for stages in seen.stages)
        yield Verdict(
            "P1 CPU of a document <= 1.5x its stages alone",
            f"{own / alone:.2f}x ({spread([run.own_us for run in seen.first])} us, "
            f"stages {alone:.0f} us)",
            own <= 1.5 * alone,
        )
    if naive := seen.peers.get(NAIVE):
        theirs = median(run.own_us for run in naive)
        yield Verdict(
            "P1 CPU of a document >= 15x less than a careful loop",
            f"{theirs / own:.1f}x ({theirs:.0f} us)",
            theirs >= 15 * own,
        )
    rate = median(run.rate for run in seen.first)
    yield Verdict(
        "P2 >= 3,000 documents/s, all servers included",
        f"{spread([run.rate for run in seen.first])}/s",
        rate >= 3_000,
    )
    used = sum(map(sum, (run.costs for run in seen.first)))
    wall = sum(run.seconds for run in seen.first)
    yield Verdict("P2 processors in use meanwhile (of 2)", f"{used / wall:.2f}", held=None)


def _store(seen: Seen) -> Iterator[Verdict]:
    for claim, least, stored in (
        ("P3 upserts >= 0.7x COPY of the same rows", 0.7, seen.upserts),
        ("P3 with look-up, fence and documents' rows", None, seen.stored),
        ("P3 under HNSW >= 0.9x a bare INSERT loop", 0.9, seen.indexed),
    ):
        if stored:
            share = median(one.ours / one.bare for one in stored)
            rates = f"{stored[-1].ours:,.0f} against {stored[-1].bare:,.0f} rows/s"
            held = None if least is None else share >= least
            yield Verdict(claim, f"{share:.2f}x ({rates})", held)


def _replays(seen: Seen) -> Iterator[Verdict]:
    for name, runs in (("published again", seen.unchanged), ("read again", seen.replayed)):
        if runs:
            share = median(
                run.own_us / first.own_us for run, first in zip(runs, seen.first, strict=True)
            )
            yield Verdict(
                f"P4 unchanged, {name}: CPU <= 0.6x a new document's, 0 embedded",
                f"{share:.2f}x ({spread([run.own_us for run in runs])} us, "
                f"{median(run.rate for run in runs):,.0f}/s)",
                share <= 0.6,
            )


def _bounds(seen: Seen) -> Iterator[Verdict]:
    if seen.first:
        peak = max(run.peak_bytes for run in seen.first)
        yield _memory("P5 memory of a worker at full load", peak)
    if seen.overloaded:
        peak = max(bytes_ for bytes_, _ in seen.overloaded)
        yield _memory("P5 memory under ten times too much", peak)
    if seen.telemetry_us:
        cost = median(seen.telemetry_us)
        yield Verdict(
            "P6 telemetry <= 5 us a document, a tenth of the traces sampled",
            f"{cost:.1f} us",
            cost <= 5,
        )
    if seen.provider_bound:
        share = median(seen.provider_bound)
        yield Verdict("P7 provider-bound: >= 0.97 of it", f"{share:.3f}", share >= 0.97)
    if seen.quota_bound:
        share = median(share for share, _ in seen.quota_bound)
        refused = median(refused for _, refused in seen.quota_bound)
        yield Verdict(
            "P7 quota-bound: >= 0.97 of it, 429s <= 2 %",
            f"{share:.3f}, {refused:.1%}",
            share >= 0.97 and refused <= 0.02,
        )
    if seen.first:
        packed = median(
            run.provider["requests"] * MAX_INPUTS / run.provider["inputs"] for run in seen.first
        )
        yield Verdict(
            "P8 requests <= 1.05x what packing allows",
            f"{packed:.3f}x ({packed * 1000 / MAX_INPUTS:.1f} for 1,000 chunks)",
            packed <= 1.05,
        )


def _memory(claim: str, peak: int) -> Verdict:
    return Verdict(f"{claim} <= 256 MiB", f"{peak / 2**20:.0f} MiB", peak <= MEMORY_BYTES)


def _latency(seen: Seen) -> Iterator[Verdict]:
    if seen.fresh:
        over = median(one.delays.p99 - one.provider_ms for one in seen.fresh)
        middle = median(one.delays.p50 for one in seen.fresh)
        taken = median(one.taken_per_second for one in seen.fresh)
        yield Verdict(
            "P9 half load: p99 <= the provider's + 100 ms",
            f"+ {over:.0f} ms (p50 {middle:.0f} ms; half of {taken:,.0f}/s, what is stored "
            "while more is published here)",
            over <= 100,
        )
    if seen.scaled:
        share = median(eight / one / 8 for one, eight in seen.scaled)
        yield Verdict("P9 1 to 8 workers >= 0.95 linear", f"{share:.3f}", share >= 0.95)


def _against_peers(seen: Seen) -> Iterator[Verdict]:
    if not (seen.peers and seen.first):
        return
    rate = median(run.rate for run in seen.first)
    own = median(run.own_us for run in seen.first)
    rates = {name: median(run.rate for run in runs) for name, runs in seen.peers.items()}
    costs = {name: median(run.own_us for run in runs) for name, runs in seen.peers.items()}
    fastest, cheapest = max(rates, key=rates.__getitem__), min(costs, key=costs.__getitem__)
    yield Verdict(
        "P10 documents/s >= 10x the best peer's",
        f"{rate / rates[fastest]:.1f}x ({fastest}: {rates[fastest]:.0f}/s)",
        rate >= 10 * rates[fastest],
    )
    yield Verdict(
        "P10 CPU of a document <= 1/15 of the best peer's",
        f"1/{costs[cheapest] / own:.1f} ({cheapest}: {costs[cheapest]:,.0f} us)",
        costs[cheapest] >= 15 * own,
    )
    wrong = {
        name: median(run.wrong["missing"] + run.wrong["stale"] for run in runs)
        for name, runs in seen.peers.items()
    }
    told = ", ".join(f"{name} {count:.0f}" for name, count in wrong.items() if count)
    yield Verdict(
        "P10 0 stale, 0 missing",
        f"0 (peers: {told or 'none'})",
        all(run.is_right for run in seen.first),
    )


def _tenants_and_edits(seen: Seen) -> Iterator[Verdict]:
    if edits := seen.edits:
        yield Verdict(
            "P11 an edited sentence embeds 1 chunk at the median, <= 4 at p95",
            f"{edits.median}, {edits.p95} (at most {edits.most}; in one long paragraph "
            f"{edits.unbroken_p95} at p95)",
            edits.median == 1 and edits.p95 <= 4,
        )
        yield Verdict(
            "P11 nothing else is embedded or rewritten; what moves is HOT",
            f"{edits.embedded} of {edits.expected} embedded, {edits.inserted} inserted, "
            f"{edits.moved_hot} of {edits.moved} updates HOT",
            edits.embedded == edits.expected == edits.inserted
            and edits.moved_hot == edits.moved,
        )
    if seen.skewed:
        share = median(beside.p99 / alone.p99 for alone, beside in seen.skewed)
        alone, beside = seen.skewed[-1]
        yield Verdict(
            "P12 beside a tenant of 100x: p99 <= 2x of it alone",
            f"{share:.2f}x ({beside.p99:.0f} against {alone.p99:.0f} ms)",
            share <= 2,
        )


def spread(values: Sequence[float]) -> str:
    """Return the median and the range."""
    if len(values) == 1:
        return f"{values[0]:,.0f}"
    return f"{median(values):,.0f} [{min(values):,.0f}-{max(values):,.0f}]"
