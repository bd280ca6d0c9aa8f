"""
The shape of the code is what the style says: where modules stand, what the core may use.

What import contracts can say stands in `pyproject.toml`; the rest is read from the syntax.
Each rule is also shown a small source that breaks it, since a check that finds nothing in
code that is right has not shown that it finds anything.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES = 400

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

Rule = Callable[[ast.Module], Iterator[str]]


def sources(*folders: str) -> list[Path]:
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert paths
    return sorted(paths)


def broken(rule: Rule, paths: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}: {found}"
        for path in paths
        for found in rule(ast.parse(path.read_text("utf-8")))
    ]


def test_imports_go_one_way():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


# ---- the core is pure ----

WAITS = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)
IMPURE_MODULES = {
    *("asyncio", "threading", "concurrent", "multiprocessing", "subprocess", "socket"),
    *("time", "random", "secrets", "logging", "structlog", "os", "io", "pathlib", "sys"),
}
IMPURE_CALLS = {"now", "utcnow", "today", "uuid1", "uuid4", "open", "print", "input", "urandom"}


def impurities(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, WAITS):
            yield f"line {node.lineno} waits"
        names = imported(node) | ({called(node)} & IMPURE_CALLS)
        for name in names & (IMPURE_MODULES | IMPURE_CALLS):
            yield f"line {node.lineno} uses {name}"


def imported(node: ast.AST) -> set[str]:
    match node:
        case ast.Import(names=names):
            return {alias.name.partition(".")[0] for alias in names}
        case ast.ImportFrom(module=str(module)):
            return {module.partition(".")[0]}
    return set()


def called(node: ast.AST) -> str | None:
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name
    return None


def test_the_core_never_waits_and_knows_no_clock_no_chance_and_no_world():
    assert broken(impurities, sources("worker/core")) == []


@pytest.mark.parametrize(
    "source",
    [
        "async def f(): pass",
        "import time",
        "from time import monotonic",
        "import os.path",
        "from random import random",
        "import datetime\nat = datetime.datetime.now()",
        "from uuid import uuid4\nname = uuid4()",
        "def f():\n    import logging",
    ],
)
def test_an_impure_core_would_be_seen(source):
    assert list(impurities(ast.parse(source)))


# ---- names ----

BANNED_WORDS = {
    *("Manager", "Handler", "Processor", "Service", "Helper", "Helpers", "Util", "Utils"),
    *("Base", "Abstract", "Impl"),
}
NAMES_THAT_MEAN_IT = {"Base"}
"""The row a change set is computed from: a value of `worker.core.model`."""


def names_that_say_nothing(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name not in NAMES_THAT_MEAN_IT:
            words = re.findall(r"[A-Z][a-z0-9]*", node.name)
            if words and {words[0], words[-1]} & BANNED_WORDS:
                yield f"class {node.name}"
        if isinstance(node, FUNCTIONS) and re.match(r"_*get_", node.name):
            yield f"function {node.name}"


def test_names_say_what_a_thing_is():
    assert broken(names_that_say_nothing, sources("worker", "schemas")) == []


def test_only_the_model_has_a_class_named_base():
    def bases(tree: ast.Module) -> Iterator[str]:
        classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
        return (node.name for node in classes if node.name == "Base")

    assert broken(bases, sources("worker", "schemas")) == ["worker/core/model.py: Base"]


@pytest.mark.parametrize(
    "source",
    [
        "class WorkManager: pass",
        "class AbstractStore: pass",
        "class BaseStore: pass",
        "class _StoreBase: pass",
        "class StoreImpl: pass",
        "def get_work(): pass",
        "class A:\n    async def _get_work(self): pass",
    ],
)
def test_a_name_that_says_nothing_would_be_seen(source):
    assert list(names_that_say_nothing(ast.parse(source)))


# ---- sizes and places ----


def test_no_module_is_longer_than_a_person_reads_in_one_go():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources("worker", "schemas")
        if (lines := len(path.read_text("utf-8").splitlines())) > MOST_LINES
    }
    assert long == {}


def test_every_module_of_the_core_has_its_tests_and_no_test_is_of_nothing():
    modules = {path.stem for path in sources("worker/core")} - {"__init__"}
    tests = {path.stem for path in sources("tests/core")} - {"conftest"}
    assert tests == {f"test_{module}" for module in modules}


# ---- tests wait for facts ----

VIRTUAL = "tests/pipeline"
"""Where time is a number: `asyncio.sleep` moves it on, and nobody waits."""

MAY_SLEEP = {
    "tests/support/provider.py": "its answers take as long as the test that asks for it says",
    "tests/support/kafka.py": "a broker has no event for a topic that has got its leaders",
    "tests/support/kafka_cluster.py": "brokers tell who leads only when they are asked",
    "tests/support/fleet.py": "other processes are known by their commits only",
    "tests/support/worker_process.py": "another process is known by its log only",
}


def sleeps(tree: ast.Module) -> Iterator[str]:
    yield from sleeps_of_a_thread(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Call(args=[ast.Constant(value=0)]):
                continue  # lets the others have their turn, and takes no time
            case ast.Call(func=ast.Attribute(value=ast.Name(id="asyncio"), attr="sleep")):
                yield f"line {node.lineno} sleeps"
            case ast.ImportFrom(module="asyncio", names=names) if has_sleep(names):
                yield f"line {node.lineno} sleeps"


def sleeps_of_a_thread(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="time"), attr="sleep"):
                yield f"line {node.lineno} sleeps"
            case ast.ImportFrom(module="time", names=names) if has_sleep(names):
                yield f"line {node.lineno} sleeps"


def has_sleep(names: list[ast.alias]) -> bool:
    return any(alias.name == "sleep" for alias in names)


def waits_in_real_time(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield f"{node.name} runs on the loop of pytest"


PROGRAMS = ("tests/bench", "tests/containers", "tests/manifests")
"""What measures time, or looks at others' servers, lets it pass; its tests do not."""


def test_no_test_sleeps():
    real = [
        path
        for path in sources("tests")
        if (name := path.relative_to(ROOT).as_posix()) not in MAY_SLEEP
        and not name.startswith(VIRTUAL)
        and (not name.startswith(PROGRAMS) or path.name.startswith("test_"))
    ]
    assert broken(sleeps, real) == []


def test_what_sleeps_in_virtual_time_runs_in_it():
    assert broken(sleeps_of_a_thread, sources(VIRTUAL)) == []
    assert broken(waits_in_real_time, sources(VIRTUAL)) == []


def test_what_may_sleep_is_support_and_does():
    for name in MAY_SLEEP:
        assert name.startswith("tests/support/")
        assert list(sleeps(ast.parse((ROOT / name).read_text("utf-8"))))


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.sleep(1)",
        "from time import sleep",
        "import asyncio\nasync def f():\n    await asyncio.sleep(0.1)",
        "from asyncio import sleep",
    ],
)
def test_a_sleep_would_be_seen(source):
    assert list(sleeps(ast.parse(source)))


def test_a_real_loop_in_virtual_time_would_be_seen():
    assert list(waits_in_real_time(ast.parse("async def test_it(): pass")))
