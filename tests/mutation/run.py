"""
Changes the core a little, and sees whether its tests notice: `python -m tests.mutation.run`.

Mutmut mutates one module at a time in a copy of its own (`build/mutation/MODULE`), and each
mutant meets those tests of its module that reach its function, with few examples (the profile
`mutation` of Hypothesis). A run that was stopped goes on where it was, unless the module or
its tests have changed since. What was found is kept in `tests/core/MUTATION.md`: a row a
module, beside what people say of the mutants that live on. A module with a section there
must have none that it does not name.
"""

import argparse
import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
CORE = ROOT / "worker/core"
PAGE = ROOT / "tests/core/MUTATION.md"
BUILD = ROOT / "build/mutation"
COPIED = ("worker", "schemas", "tests/conftest.py", "tests/core", "tests/support")

PLAIN = {"property": "property", "lru_cache": "lru_cache(0)"}
"""Decorators under which mutmut looks away, and what is called in their place."""

HEADINGS = ("module", "mutants", "killed", "timed out", "survived", "score", "mutmut", "day")

_TABLE = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)


class Failed(Exception):
    """Mutmut did not try all mutants."""


class Result(NamedTuple):
    """What became of the mutants of a module; one that did not end counts as noticed."""

    killed: int
    timed_out: int
    survivors: tuple[str, ...]


def modules() -> list[str]:
    """Return the modules of the core."""
    return sorted(path.stem for path in CORE.glob("*.py") if path.stem != "__init__")


def mutate(module: str) -> Result:
    """
    Try the mutants of a module that were not tried yet.

    Raises:
        Failed: some are still not tried.
    """
    folder = BUILD / module
    if not _is_current(folder, module):
        _prepare(folder, module)
    environment = os.environ | {"HYPOTHESIS_PROFILE": "mutation"}
    command = _mutmut("run", "--max-children", "1")
    code = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
    ended = statuses(_answer(folder, "results", "--all", "true"))
    # Where there is nothing to mutate, it fails.
    if (code and ended) or "not checked" in ended.values():
        raise Failed(f"{module}: mutmut ended with {code} before all was tried, see {folder}")
    told = list(ended.values())
    survivors = [name for name, status in ended.items() if status not in ("killed", "timeout")]
    shown = sorted(said(name, _answer(folder, "show", name)) for name in survivors)
    return Result(told.count("killed"), told.count("timeout"), tuple(shown))


def statuses(answer: str) -> dict[str, str]:
    """Return what `mutmut results` says of each mutant."""
    return dict(line.strip().split(": ") for line in answer.splitlines())


def said(mutant: str, diff: str) -> str:
    """Return a mutant in the words of the page: its function, and what became what."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    before, after = (
        " ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+"
    )
    return f"`{_function(mutant)}`: `{before}` -> `{after}`"


def _function(mutant: str) -> str:
    mangled = mutant.rpartition(".")[2].partition("__mutmut_")[0]
    return mangled.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")


def _mutmut(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("mutmut")), *arguments]


def _answer(folder: Path, *arguments: str) -> str:
    command = _mutmut(*arguments)
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True
    ).stdout


# ---- the copy that is mutated ----


def _is_current(folder: Path, module: str) -> bool:
    stamp = folder / "stamp"
    return stamp.exists() and stamp.read_text("ascii") == _stamp(module)


def _stamp(module: str) -> str:
    """Return what names the module, its tests, and how mutants meet them."""
    paths = [
        *(CORE / f"{module}.py", ROOT / f"tests/core/test_{module}.py"),
        *(ROOT / "tests/conftest.py", ROOT / "requirements.lock", Path(__file__)),
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _prepare(folder: Path, module: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name in COPIED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)
    source = folder / f"worker/core/{module}.py"
    source.write_text(undecorated(source.read_text("utf-8")), "utf-8")
    settings = (ROOT / "pyproject.toml").read_text("utf-8") + _settings(module)
    (folder / "pyproject.toml").write_text(settings, "utf-8")
    (folder / "stamp").write_text(_stamp(module), "ascii")


def _settings(module: str) -> str:
    # What times out counts as noticed, so a slow machine must not look like an endless loop.
    return f"""
[tool.mutmut]
source_paths = ["worker", "schemas"]
only_mutate = ["worker/core/{module}.py"]
pytest_add_cli_args_test_selection = ["tests/core/test_{module}.py"]
timeout_constant = 2.0
timeout_multiplier = 6.0
"""


def undecorated(source: str) -> str:
    """
    Return a module that does the same without the decorators under which mutmut looks away.

    They are applied behind their functions. A cache keeps nothing: it would hand a mutant the
    answers of the module as it was.
    """
    lines = source.splitlines()
    for function in _decorated(ast.parse(source)):
        (decorator,) = function.decorator_list
        lines[decorator.lineno - 1] = ""
        applied = f"{PLAIN[decorator.id]}({function.name})"
        indent = " " * function.col_offset
        lines[function.end_lineno - 1] += f"\n{indent}{function.name} = {applied}"
    return "\n".join(lines) + "\n"


def _decorated(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(decorator_list=[ast.Name(id=name)]) if name in PLAIN:
                yield node


# ---- the page ----


def row(module: str, result: Result) -> tuple[str, ...]:
    """Return the row of a module."""
    counts = result.killed, result.timed_out, len(result.survivors)
    day = datetime.now(UTC).date().isoformat()
    return (f"`{module}`", *_figures(*counts), version("mutmut"), day)


def _figures(killed: int, timed_out: int, survived: int) -> tuple[str, ...]:
    mutants = killed + timed_out + survived
    score = f"{(killed + timed_out) / mutants:.1%}" if mutants else ""
    return (*map(str, (mutants, killed, timed_out, survived)), score)


def with_row(page: str, new: tuple[str, ...]) -> str:
    """Return the page with a row in its place, and the sums of all rows."""
    rows = sorted({cells[0]: cells for cells in [*rows_of(page), new]}.values())
    sums = (sum(int(cells[column]) for cells in rows) for column in range(2, 5))
    table = [HEADINGS, ("---",) * len(HEADINGS), *rows, ("all", *_figures(*sums), "", "")]
    lines = "".join(f"| {' | '.join(cells)} |\n" for cells in table)
    return _TABLE.sub(lambda _: lines, page)


def rows_of(page: str) -> list[tuple[str, ...]]:
    """Return the rows of the page, without their sums."""
    table = _TABLE.search(page)
    assert table is not None
    rows = re.findall(r"^\| (`.*) \|$", table[0], re.MULTILINE)
    return [tuple(cells.split(" | ")) for cells in rows]


def unreviewed(module: str, survivors: Sequence[str], page: str) -> list[str]:
    """Return the survivors that the section of their module does not name."""
    section = re.search(rf"^## `{module}`$(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    reviewed = section[1] if section else ""
    return [survivor for survivor in survivors if survivor not in reviewed]


def main(arguments: Sequence[str] | None = None) -> int:
    """Mutate the modules that are asked for; 1 where a survivor lacks its review."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation.run")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="of the core; else all")
    asked = parser.parse_args(arguments).modules
    if unknown := set(asked) - set(modules()):
        parser.error(f"{', '.join(sorted(unknown))}: the core has {', '.join(modules())}")
    try:
        reviewed = [_is_reviewed(module) for module in asked or modules()]
    except Failed as error:
        say(str(error))
        return 1
    return 0 if all(reviewed) else 1


def _is_reviewed(module: str) -> bool:
    """Mutate a module, write its row, print its survivors; False where a review is missing."""
    result = mutate(module)
    cells = row(module, result)
    page = with_row(PAGE.read_text("utf-8"), cells)
    PAGE.write_text(page, "utf-8")
    say(", ".join(f"{heading} {cell}" for heading, cell in zip(HEADINGS, cells, strict=True)))
    new = unreviewed(module, result.survivors, page)
    for survivor in result.survivors:
        say(f"  {'survived' if survivor in new else 'reviewed'}  {survivor}")
    return not new or f"## `{module}`" not in page


def say(line: str) -> None:
    """Print a line at once, behind what mutmut prints."""
    print(line, flush=True)  # noqa: T201 - a command's answer


if __name__ == "__main__":
    sys.exit(main())
