"""What mutmut is given means the same, and what it says is understood."""

import ast

import pytest

from tests.mutation import run
from tests.mutation.run import Result

SECTION = """# Mutants

<!-- results -->
<!-- /results -->

## `offsets`

- `track`: `a` -> `b`: the same.

## `scheduler`
"""


def members(source):
    names: dict[str, object] = {}
    exec(compile(source, "module", "exec"), names)
    return names


def test_a_property_is_still_one_and_can_be_mutated():
    source = (
        "class Queue:\n"
        "    @property\n"
        "    def length(self):\n"
        "        return (\n"
        "            7\n"
        "        )\n"
        "    def add(self):\n"
        "        pass\n"
    )
    plain = run.undecorated(source)
    assert members(plain)["Queue"]().length == 7
    assert not [
        node for node in ast.walk(ast.parse(plain)) if getattr(node, "decorator_list", [])
    ]


def test_a_cache_keeps_nothing_and_other_decorators_stay():
    source = (
        "from functools import lru_cache\n"
        "@lru_cache\n"
        "def times(n):\n"
        "    return [n]\n"
        "class A:\n"
        "    @classmethod\n"
        "    def name(cls):\n"
        "        return cls.__name__\n"
    )
    plain = members(run.undecorated(source))
    assert plain["times"](1) is not plain["times"](1)
    plain["times"].cache_clear()
    assert plain["A"].name() == "A"


@pytest.mark.parametrize("module", run.modules())
def test_no_function_of_the_core_is_hidden_from_mutmut(module):
    source = run.undecorated((run.CORE / f"{module}.py").read_text("utf-8"))
    hidden = [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(one) != "classmethod" for one in node.decorator_list)
    ]
    assert hidden == []


@pytest.mark.parametrize(
    ("mutant", "function"),
    [
        ("worker.core.scheduler.x__run__mutmut_3", "_run"),
        ("worker.core.scheduler.xǁSchedulerǁtake__mutmut_12", "Scheduler.take"),
        ("worker.core.scheduler.xǁ_Tenantǁ__init____mutmut_1", "_Tenant.__init__"),
    ],
)
def test_a_mutant_is_named_by_its_function_and_its_change(mutant, function):
    head = f"# {mutant}: survived\n--- a.py\n+++ a.py\n@@ -1,3 +1,3 @@\n"
    diff = f"{head} if a:\n-    b = 1\n+    b = 2\n"
    assert run.said(mutant, diff) == f"`{function}`: `b = 1` -> `b = 2`"


def test_the_status_of_each_mutant_is_read():
    answer = "    core.x_a__mutmut_1: killed\n    core.x_a__mutmut_2: no tests\n"
    assert run.statuses(answer) == {
        "core.x_a__mutmut_1": "killed",
        "core.x_a__mutmut_2": "no tests",
    }


def test_a_module_has_one_row_and_all_are_summed():
    page = SECTION
    for module, result in (
        ("scheduler", Result(8, 1, ("x",))),
        ("offsets", Result(1, 0, ("x", "y"))),
        ("offsets", Result(9, 0, ("x",))),
    ):
        page = run.with_row(page, run.row(module, result))
    cells = [row[:6] for row in run.rows_of(page)]
    assert cells == [
        ("`offsets`", "10", "9", "0", "1", "90.0%"),
        ("`scheduler`", "10", "8", "1", "1", "90.0%"),
    ]
    assert "| all | 20 | 17 | 1 | 2 | 90.0% |" in page
    assert page.endswith(SECTION.partition("<!-- /results -->")[2])


def test_a_survivor_is_reviewed_in_the_section_of_its_module():
    survivors = ["`track`: `a` -> `b`", "`track`: `a` -> `c`"]
    assert run.unreviewed("offsets", survivors, SECTION) == survivors[1:]
    assert run.unreviewed("scheduler", survivors, SECTION) == survivors
    assert run.unreviewed("breaker", survivors, SECTION) == survivors


@pytest.mark.parametrize(("lives_on", "code"), [("b", 0), ("c", 1)])
def test_the_command_fails_where_a_survivor_lacks_its_review(
    tmp_path, monkeypatch, capsys, lives_on, code
):
    page = tmp_path / "MUTATION.md"
    page.write_text(SECTION, "utf-8")
    survivor = f"`track`: `a` -> `{lives_on}`"
    monkeypatch.setattr(run, "PAGE", page)
    monkeypatch.setattr(run, "mutate", lambda module: Result(9, 0, (survivor,)))
    assert run.main(["offsets"]) == code
    assert f"{('reviewed', 'survived')[code]}  {survivor}" in capsys.readouterr().out
    assert "| `offsets` | 10 | 9 | 0 | 1 | 90.0% |" in page.read_text("utf-8")


def test_what_was_not_tried_is_no_result(tmp_path, monkeypatch, capsys):
    def mutate(module):
        raise run.Failed(f"{module}: stopped")

    page = tmp_path / "MUTATION.md"
    page.write_text(SECTION, "utf-8")
    monkeypatch.setattr(run, "PAGE", page)
    monkeypatch.setattr(run, "mutate", mutate)
    assert run.main([]) == 1
    assert "stopped" in capsys.readouterr().out
    assert page.read_text("utf-8") == SECTION


def test_a_module_that_the_core_does_not_have_is_refused(capsys):
    with pytest.raises(SystemExit):
        run.main(["offset"])
    assert "offset: the core has bisection, breaker" in capsys.readouterr().err


def test_the_page_has_a_row_for_every_module_and_reaches_the_score():
    page = run.PAGE.read_text("utf-8")
    assert [cells[0] for cells in run.rows_of(page)] == [f"`{name}`" for name in run.modules()]
    total = next(line for line in page.splitlines() if line.startswith("| all "))
    assert float(total.split(" | ")[5].removesuffix("%")) >= 85
