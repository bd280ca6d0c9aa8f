"""
The model and its cases belong together, and TLC's answers are understood.

All cases run by `make model`; here are those that take a second or two.
"""

import re

import pytest

from tests.model import check
from tests.model.all_cases import BUILT, CASES, KNOWN, WITHOUT
from tests.model.cases import ALL, CALM, HOLDS, LIVENESS, MECHANISMS, Case
from tests.model.check import Failed, understood

FAST = [
    "parked is settled at once",
    "tracked after the poll",
    "held goes on as it was",
]


def module(name):
    text = (check.HERE / f"{name}.tla").read_text("utf-8")
    return check._COMMENT.sub("", text)


def constants():
    """The constants that the modules declare."""
    texts = "\n".join(module(path.stem) for path in check.HERE.glob("*.tla"))
    blocks = re.findall(r"^CONSTANTS?\b(.*?)(?=^\S|\n\n)", texts, re.DOTALL | re.MULTILINE)
    return {name for block in blocks for name in re.findall(r"\w+", block)}


def operators():
    return set(re.findall(r"^(\w+) ==", module(check.MODULE), re.MULTILINE))


def test_every_case_gives_each_constant_of_the_module_a_value():
    assert constants() == MECHANISMS.keys() | CALM.keys() | {"Scenario"}
    for case in CASES:
        assert case.constants.keys() == constants(), case.name


def test_a_case_removes_mechanisms_and_sets_the_world_only():
    for case in CASES:
        assert case.without.keys() <= MECHANISMS.keys(), case.name
        assert case.world.keys() <= CALM.keys(), case.name
        assert all(MECHANISMS[name] != value for name, value in case.without.items())


def test_every_mechanism_is_removed_by_some_case_and_almost_all_are_missed():
    removed = {name for case in CASES for name in case.without}
    assert removed == MECHANISMS.keys()
    missed = {name for case in WITHOUT if case.finds != HOLDS for name in case.without}
    # Whoever has halted, or finds no progress to raise, claims anew after the word.
    assert removed - missed == {"WordFences"}


def test_every_scenario_is_a_log_of_the_module_and_is_used_as_it_is_built():
    logs = set(re.findall(r'Scenario = "([^"]+)"', module("Logs")))
    assert {case.scenario for case in CASES} == logs


def test_what_is_checked_is_defined_and_everything_is_broken_by_some_case():
    assert {check for case in CASES for check in case.checks} <= operators()
    assert {case.finds for case in WITHOUT} >= {*ALL, *LIVENESS, "Rewound"}


def test_the_cases_have_names_of_their_own():
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(case.finds == HOLDS and not case.without for case in BUILT)
    assert all(case.finds != HOLDS and not case.without for case in KNOWN)


def test_the_results_are_those_of_these_cases():
    assert [row[:-2] for row in check.written()] == [
        (*check.definition(case), case.finds) for case in CASES
    ]


@pytest.mark.parametrize("name", FAST)
def test_tlc_finds_what_is_expected(name):
    (case,) = (case for case in CASES if case.name == name)
    answer = check.run(case)
    assert answer.found == case.finds
    assert answer.states > 0


def test_a_module_that_is_broken_is_no_answer():
    case = Case("broken", "no such log")
    with pytest.raises(Failed, match="no answer"):
        check.run(case)


# ---- what TLC prints ----


def message(code, text, severity=0):
    return f"@!@!@STARTMSG {code}:{severity} @!@!@\n{text}\n@!@!@ENDMSG {code} @!@!@\n"


STATS = message(
    2199, "6,789 states generated, 1,234 distinct states found, 0 states left on queue."
)


@pytest.mark.parametrize(
    ("output", "checks", "found"),
    [
        (message(2193, "Model checking completed. No error has been found."), ALL, HOLDS),
        (message(2110, "Invariant S3 is violated.", 1), ALL, "S3"),
        (message(2107, "Invariant S6 is violated by the initial state:", 1), ALL, "S6"),
        (message(2112, "Action property S1 is violated.", 1), ALL, "S1"),
        (message(2116, "Temporal properties were violated.", 1), ("L1",), "L1"),
        (message(2114, "Deadlock reached.", 1), ALL, "deadlock"),
    ],
)
def test_an_answer_is_read_from_the_codes(output, checks, found):
    answer = understood(output + STATS, checks, 1.0)
    assert (answer.found, answer.states) == (found, 1234)


def test_an_answer_keeps_the_steps_that_lead_there():
    states = message(2217, "1: <Initial predicate>\n/\\ a = 1\n/\\ b = <<>>") + message(
        2217, "2: <Claim line 7, col 3 of module Fleet>\n/\\ a = 1\n/\\ b = << 1,\n  2 >>"
    )
    answer = understood(message(2110, "Invariant S4 is violated.", 1) + states, ALL, 0.0)
    assert list(check.steps(answer.trace)) == [
        "1: <Initial predicate>",
        "2: <Claim\n    b = << 1, 2 >>",
    ]


@pytest.mark.parametrize("output", ["", message(2217, "1: <Initial predicate>"), "Killed"])
def test_no_answer_is_never_taken_for_a_good_one(output):
    with pytest.raises(Failed):
        understood(output, ALL, 1.0)


def test_the_command_ends_badly_where_anything_is_not_as_expected(monkeypatch, capsys):
    case = Case("good", "one")
    monkeypatch.setattr(check, "CASES", [case])
    answers = iter([check.Answer(HOLDS, 1, 0.1), check.Answer("S3", 1, 0.1)])
    monkeypatch.setattr(check, "run", lambda case, **_: next(answers))
    assert check.main([]) == 0
    assert check.main([]) == 1
    assert "UNEXPECTED" in capsys.readouterr().out
    assert check.main(["--only", "no such case"]) == 1


def test_a_case_without_an_answer_is_not_as_expected(monkeypatch, capsys):
    def fail(case, **_):
        raise Failed(f"{case.name}: no answer within 1 s")

    monkeypatch.setattr(check, "run", fail)
    monkeypatch.setattr(check, "CASES", [Case("slow", "one")])
    assert check.main([]) == 1
    assert "slow: no answer" in capsys.readouterr().out
