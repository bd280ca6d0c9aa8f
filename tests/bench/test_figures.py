"""A figure is reached, or not, by what was measured; what is only told is neither."""

from dataclasses import replace

import pytest

from tests.bench.figures import Fresh, Seen, Stored, verdicts
from tests.bench.measure import Costs, Run
from tests.bench.workloads import Delays, Edits
from tests.support.verdicts import Verdict, lines

RIGHT = {"missing": 0, "stale": 0}
RUN = Run(
    events=1_000,
    seconds=0.25,
    costs=Costs(own=0.1, postgres=0.05, kafka=0.02, provider=0.03),
    peak_bytes=2**28,
    provider={"requests": 10, "inputs": 1_280},
    wrong=RIGHT,
)
EDITS = Edits(
    median=1,
    p95=4,
    most=6,
    documents=9,
    expected=12,
    embedded=12,
    moved=100,
    moved_hot=100,
    inserted=12,
    unbroken_p95=9,
)


def held(seen: Seen, figure: str) -> list[bool | None]:
    return [one.held for one in verdicts(seen) if one.claim.startswith(figure)]


def test_what_was_not_measured_has_no_verdict():
    assert verdicts(Seen()) == []


@pytest.mark.parametrize(
    ("seen", "figure", "expected"),
    [
        (Seen(first=[RUN], stages=[{"a": 40.0, "b": 27.0}]), "P1", [True]),
        (Seen(first=[RUN], stages=[{"a": 40.0, "b": 26.0}]), "P1", [False]),
        (Seen(first=[RUN]), "P2", [True, None]),
        (Seen(first=[replace(RUN, seconds=0.5)]), "P2", [False, None]),
        (Seen(upserts=[Stored(7, 10)], stored=[Stored(1, 10)]), "P3", [True, None]),
        (Seen(upserts=[Stored(6, 10)], indexed=[Stored(8, 10)]), "P3", [False, False]),
        (Seen(first=[RUN], unchanged=[replace(RUN, events=1_700)]), "P4", [True]),
        (Seen(first=[RUN], replayed=[replace(RUN, events=1_600)]), "P4", [False]),
        (Seen(first=[RUN], overloaded=[(2**28 + 1, 1.0)]), "P5", [True, False]),
        (Seen(telemetry_us=[5.0]), "P6", [True]),
        (Seen(provider_bound=[0.97], quota_bound=[(0.98, 0.021)]), "P7", [True, False]),
        (Seen(first=[RUN]), "P8", [True]),
        (Seen(first=[replace(RUN, provider={"requests": 11, "inputs": 1_280})]), "P8", [False]),
        (
            Seen(fresh=[Fresh(Delays(50, 131), 30.0, 2_000)], scaled=[(1.0, 7.6)]),
            "P9",
            [False, True],
        ),
        (Seen(edits=EDITS), "P11", [True, True]),
        (Seen(edits=replace(EDITS, p95=5, moved_hot=99)), "P11", [False, False]),
        (Seen(skewed=[(Delays(1, 10), Delays(1, 20))]), "P12", [True]),
    ],
)
def test_a_figure_is_reached_at_its_bound_and_not_beyond(seen, figure, expected):
    assert held(seen, figure) == expected


def test_peers_are_compared_with_the_best_of_them_and_the_table_must_be_right():
    slow = replace(RUN, seconds=2.5, wrong={"missing": 0, "stale": 3})
    dear = replace(RUN, costs=RUN.costs._replace(own=1.5))
    one = Seen(first=[RUN], peers={"slow": [slow]})
    assert held(one, "P10") == [True, False, True]
    both = Seen(first=[replace(RUN, wrong={"missing": 1, "stale": 0})], peers={"dear": [dear]})
    assert held(both, "P10") == [False, True, False]


def test_medians_of_the_rounds_are_judged():
    rounds = [replace(RUN, seconds=seconds) for seconds in (0.1, 0.5, 9.0)]
    assert held(Seen(first=rounds), "P2")[0] is False


def test_what_is_only_told_is_called_neither():
    found = [
        Verdict(name, "1", held) for name, held in (("a", True), ("b", False), ("c", None))
    ]
    told = [line.split() for line in lines(found, ("reached", "NOT"))[1:]]
    assert told == [["a", "1", "reached"], ["b", "1", "NOT"], ["c", "1"]]
