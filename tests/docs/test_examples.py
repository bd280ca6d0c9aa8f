"""The examples in docstrings are true."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

MODULES = [
    ".".join(path.with_suffix("").parts)
    for folder in ("schemas", "worker")
    for path in sorted(Path(folder).rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(name):
    failed, attempted = doctest.testmod(import_module(name))
    assert (failed, attempted > 0) == (0, True)
