"""
The report of a benchmark: a page with the table, the machine, the method, and two plots.

Plots are SVG, drawn by matplotlib; their text is real text. All figures stand in a JSON file
beside them.
"""

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from os import cpu_count
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.bench.figures import Seen, spread
from tests.bench.measure import Run
from tests.support.verdicts import Verdict

OURS = "embedfleet"
_LIBRARIES = ("aiokafka", "aiohttp", "asyncpg", "uvloop", "msgspec", "numpy")
_COLOURS = {True: "#1f77b4", False: "#b0b0b0"}

mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": OURS, "font.family": "sans-serif"}


def write(
    folder: Path,
    seen: Seen,
    found: Sequence[Verdict],
    versions: Mapping[str, str],
    seconds: float,
) -> Path:
    """Write the report into a folder; return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    compared = {OURS: seen.first, **seen.peers} if seen.first else {}
    if compared:
        _bars(folder / "rate.svg", "documents/s", {n: _rate(r) for n, r in compared.items()})
        _bars(
            folder / "cpu.svg",
            "CPU of a document, microseconds (logarithmic)",
            {name: _own(runs) for name, runs in compared.items()},
            logarithmic=True,
        )
    (folder / "figures.json").write_text(json.dumps(asdict(seen), indent=1, default=str) + "\n")
    page = folder / "REPORT.md"
    page.write_text("\n".join(_page(seen, found, versions, seconds, compared)) + "\n")
    return page


def _page(
    seen: Seen,
    found: Sequence[Verdict],
    versions: Mapping[str, str],
    seconds: float,
    compared: Mapping[str, Sequence[Run]],
) -> list[str]:
    method = (
        f"{datetime.now(UTC):%Y-%m-%d}, {_machine()}; a run of {seconds / 60:.0f} minutes, "
        "all on this one machine: workers, Kafka, PostgreSQL, provider and measuring. Absolute "
        "times vary with the machine; ratios are of medians inside this one run. After every "
        "run each row, text and vector is compared with what was published."
    )
    lines = ["# Benchmark", "", method, "", _row(("", "measured", "")), _row(["---"] * 3)]
    lines += [
        _row((v.claim, v.measured, v.called(("reached", "**not reached**")))) for v in found
    ]
    if compared:
        lines += _comparison(compared)
    if seen.stages:
        lines += _stages(seen)
    lines += ["", "## Versions", ""]
    lines += [f"- {name} {what}" for name, what in _versions(versions).items()]
    return lines


def _comparison(compared: Mapping[str, Sequence[Run]]) -> list[str]:
    head = ("", "documents/s", "own CPU, us", "PostgreSQL CPU, us", "requests for 1,000 chunks")
    how = (
        "Median and range of the rounds; CPU of a document. A quarter of the events are "
        "updates of popular documents. Wrong: documents that are missing or stale in the end."
    )
    return [
        *("", "## W1: 4 KB documents, 2 chunks of 1,536 dimensions, no index", "", how, ""),
        _row((*head, "peak memory, MiB", "wrong")),
        _row(["---"] * 7),
        *(_row((name, *_cells(runs))) for name, runs in compared.items()),
        "",
        "![documents a second](rate.svg)",
        "![CPU of a document](cpu.svg)",
    ]


def _cells(runs: Sequence[Run]) -> list[str]:
    requests = median(run.provider["requests"] / run.provider["inputs"] for run in runs)
    return [
        spread([run.rate for run in runs]),
        spread([run.own_us for run in runs]),
        spread([run.costs.postgres / run.events * 1e6 for run in runs]),
        f"{1000 * requests:.1f}",
        f"{max(run.peak_bytes for run in runs) / 2**20:.0f}",
        f"{median(run.wrong['missing'] + run.wrong['stale'] for run in runs):.0f}",
    ]


def _stages(seen: Seen) -> list[str]:
    names = list(seen.stages[0])
    costs = {name: median(stages[name] for stages in seen.stages) for name in names}
    return [
        *("", "## The stages of a document of W1, each alone", ""),
        _row((*names, "sum")),
        _row(["---"] * (len(names) + 1)),
        _row([f"{cost:.1f} us" for cost in (*costs.values(), sum(costs.values()))]),
    ]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rate(runs: Sequence[Run]) -> list[float]:
    return [run.rate for run in runs]


def _own(runs: Sequence[Run]) -> list[float]:
    return [run.own_us for run in runs]


def _bars(
    path: Path, title: str, values: Mapping[str, Sequence[float]], *, logarithmic: bool = False
) -> None:
    """Draw the medians as bars, the rounds as points on them."""
    figure = Figure(figsize=(7, 0.5 + 0.42 * len(values)), layout="constrained")
    axes: Any = figure.subplots()
    for place, (name, rounds) in enumerate(values.items()):
        axes.barh(place, median(rounds), color=_COLOURS[name == OURS])
        axes.plot(rounds, [place] * len(rounds), "k.", markersize=4)
        axes.annotate(f" {median(rounds):,.0f}", (max(rounds), place), va="center", fontsize=9)
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    if logarithmic:
        axes.set_xscale("log")
    figure.savefig(path, metadata={"Date": None})


def _machine() -> str:
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    size = f"{int(memory[1]) / 2**20:.0f} GiB" if memory else "unknown memory"
    return f"{cpu_count()} cores ({found[1] if found else platform.machine()}), {size}"


def _versions(servers: Mapping[str, str]) -> dict[str, str]:
    libraries = {name: version(name) for name in _LIBRARIES}
    return {"Python": platform.python_version(), **servers, **libraries}
