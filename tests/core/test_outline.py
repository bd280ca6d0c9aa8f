import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core import outline

HEADINGS = {
    "ATX": ("# A\n## B", [(0, 1, "A"), (4, 2, "B")]),
    "up to three spaces before": ("   ### A", [(0, 3, "A")]),
    "four spaces are code": ("    # A", []),
    "seven hashes are text": ("####### A", []),
    "a hashtag is text": ("#A", []),
    "a closing sequence": ("# A ##  ", [(0, 1, "A")]),
    "a letter closes nothing": ("# A X", [(0, 1, "A X")]),
    "no closing sequence": ("# C#", [(0, 1, "C#")]),
    "an empty heading": ("#\n# ##\ntext", [(0, 1, ""), (2, 1, "")]),
    "setext, level 1": ("text\n\nA\n===\n", [(6, 1, "A")]),
    "setext, level 2": ("A\n-", [(0, 2, "A")]),
    "setext with emphasis": ("**A**\n---", [(0, 2, "**A**")]),
    "setext below a heading": ("# A\nB\n---", [(0, 1, "A"), (4, 2, "B")]),
    "a thematic break": ("text\n\n---\nmore", []),
    "a break below a heading": ("# A\n---", [(0, 1, "A")]),
    "a break below a paragraph": ("two\nlines\n---", []),
    "a break below short lines": ("x\nA\n---", []),
    "a break below a list": ("- a\n---", []),
    "a break below a numbered list": ("1. a\n---", []),
    "a break below a quotation": ("> a\n---", []),
    "fenced code": ("```\n# A\n```\n# B", [(12, 1, "B")]),
    "tildes with a language": ("~~~ sh\n# A\n~~~\n# B", [(15, 1, "B")]),
    "a fence ends with one as long": ("````\n```\n# A\n````\n# B", [(18, 1, "B")]),
    "a fence ends with its own kind": ("```\n~~~\n# A\n```\n# B", [(16, 1, "B")]),
    "an open fence reaches to the end": ("```\n# A\n```x\n# B", []),
    "inline code is no fence": ("``` a ```\n# A", [(10, 1, "A")]),
    "front matter": ("---\ntitle: x\n# no\n---\n# A", [(22, 1, "A")]),
    "a first break is no front matter": ("---\n\n# A\n\n---\n", [(5, 1, "A")]),
    "spaces before line ends": ("A \n=== \n \n# B \n", [(0, 1, "A"), (10, 1, "B")]),
}


@pytest.mark.parametrize(("text", "headings"), HEADINGS.values(), ids=HEADINGS)
def test_headings_are_those_of_commonmark(text: str, headings: list[tuple[int, int, str]]):
    assert list(outline.read(text).headings) == headings


def test_a_path_holds_the_titles_above_a_position():
    text = "intro\n# A\n## B\n#### C\n## D\n# E\n#\n"
    at = [0, *(text.index(title) for title in "ABCDE"), len(text)]
    assert list(outline.read(text).paths(at)) == [
        None,
        "A",
        "A > B",
        "A > B > C",
        "A > D",
        "E",
        None,
    ]


def test_a_title_is_bounded():
    (heading,) = outline.read("# " + "x" * 1_000_000).headings
    assert heading.title == "x" * 120


def test_a_cut_is_inside_of_code_between_its_borders():
    found = outline.read("a\n```\ncode\n```\nb")
    around = [found.fence_around(at) for at in (1, 2, 3, 13, 14, 15)]
    assert around == [None, None, (2, 14), (2, 14), None, None]


def test_headings_between_two_positions_start_after_the_first():
    found = outline.read("# A\n# B\n# C\n# D")
    assert [heading.title for heading in found.between(0, 8)] == ["B", "C"]


LINES = st.sampled_from(
    ["# A", "## B ##", "#", "===", "---", "- x", "text", "", " ", "```", "~~~~", "    # code"]
)


@given(st.lists(LINES).map("\n".join))
def test_headings_stand_in_order_outside_of_fences(text: str):
    found = outline.read(text)
    starts = [heading.start for heading in found.headings]
    assert starts == sorted(set(starts))
    assert all(start == 0 or text[start - 1] == "\n" for start in starts)
    assert not any(found.fence_around(start) for start in starts)
    ends = [position for fence in found.fences for position in fence]
    assert ends == sorted(ends)
    assert all(end <= len(text) for end in ends)


@given(st.text(alphabet="#`~=- \n\tab"))
def test_any_text_has_an_outline(text: str):
    found = outline.read(text)
    assert len(list(found.paths(range(len(text))))) == len(text)
