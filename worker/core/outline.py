"""
The headings and the fenced code of a Markdown text: where they stand.

Owns what CommonMark 0.31 says of ATX headings (4.2), setext headings (4.3) and fences (4.5),
read in one pass over the lines that can be one. A setext title is one line between blank ones:
a paragraph that somebody underlined for a thematic break is no title. Front matter is skipped.
Never parses inline markup, lists or HTML.

Invariants: headings and fences stand in the order of the text; no heading is inside a fence;
the time is linear in the text, whatever it holds.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

# A title is stored with every chunk below it, so a line of a megabyte must not become one.
_MAX_TITLE_CHARACTERS = 120

# Searched in a line feed and the text, whose lines end with line feeds (`core.chunking` sees to
# it): a pattern that begins with a literal and looks ahead is six times as fast as one with ^.
_MARK = re.compile(
    r"\n {0,3}(?=[`~#=-])(?:(?P<fence>`{3,}(?=[^`\n]*$)|~{3,})"
    r"|(?P<hashes>#{1,6})(?![^ \t\n])(?P<title>[^\n]*)"
    r"|(?P<underline>=+|-+)[ \t]*$)",
    re.MULTILINE,
)
_CLOSING_FENCE = re.compile(r"\n {0,3}(?P<fence>`{3,}|~{3,})[ \t]*$", re.MULTILINE)
_FRONT_MATTER = re.compile(r"\n---[ \t]*\n(?=\S)(?:[^\n]*\n)*?---[ \t]*$", re.MULTILINE)
_SETEXT_TITLE = re.compile(r" {0,3}(?!(?:[-+*]|\d{1,9}[.)])\s|[>|\s])")


class Heading(NamedTuple):
    """A heading: where its line starts, its level from 1 to 6, its title."""

    start: int
    level: int
    title: str


@dataclass(frozen=True, slots=True)
class Outline:
    r"""
    Headings and fences of one text.

        >>> outline = read("# Guide\n\n## Install\n\n```\n# no heading\n```\n")
        >>> [heading.title for heading in outline.headings]
        ['Guide', 'Install']
        >>> list(outline.paths([0, 25]))
        ['Guide', 'Guide > Install']
        >>> outline.fence_around(25), outline.fence_around(10)
        ((21, 41), None)
    """

    headings: tuple[Heading, ...] = ()
    fences: tuple[tuple[int, int], ...] = ()

    def fence_around(self, position: int) -> tuple[int, int] | None:
        """Return the fenced code that a cut at this position would be inside of."""
        index = bisect_right(self.fences, position, key=_start) - 1
        if index < 0 or not self.fences[index][0] < position < self.fences[index][1]:
            return None
        return self.fences[index]

    def between(self, first: int, last: int) -> tuple[Heading, ...]:
        """Return the headings that start after `first` and not after `last`."""
        low = bisect_right(self.headings, first, key=_start)
        return self.headings[low : bisect_right(self.headings, last, lo=low, key=_start)]

    def paths(self, positions: Iterable[int]) -> Iterator[str | None]:
        """Yield the titles above each of these growing positions, None where there are none."""
        above: list[Heading] = []
        read_so_far = 0
        for position in positions:
            end = bisect_right(self.headings, position, lo=read_so_far, key=_start)
            for heading in self.headings[read_so_far:end]:
                while above and above[-1].level >= heading.level:
                    above.pop()
                above.append(heading)
            read_so_far = end
            yield " > ".join(heading.title for heading in above if heading.title) or None


def read(text: str) -> Outline:
    """Return the outline of a text whose lines end with line feeds."""
    # A line begins in the text where the feed before it stands in `lines`.
    lines = "\n" + text
    headings: list[Heading] = []
    fences: list[tuple[int, int]] = []
    front_matter = _FRONT_MATTER.match(lines)
    position = front_matter.end() if front_matter else 0
    while mark := _MARK.search(lines, position):
        if mark["fence"]:
            position = _end_of_fence(lines, mark)
            fences.append((mark.start(), position - 1))
            continue
        heading = _atx(mark) if mark["hashes"] else _setext(lines, position, mark)
        if heading is not None:
            headings.append(heading)
        position = mark.end()
    return Outline(tuple(headings), tuple(fences))


def _start(item: Heading | tuple[int, int]) -> int:
    return item[0]


def _end_of_fence(lines: str, opening: re.Match[str]) -> int:
    """Return where the code ends: after a fence at least as long, or where the text does."""
    for closing in _CLOSING_FENCE.finditer(lines, opening.end()):
        if closing["fence"].startswith(opening["fence"]):
            return closing.end()
    return len(lines)


def _atx(mark: re.Match[str]) -> Heading:
    title = mark["title"].strip()
    without_closing = title.rstrip("#")
    if without_closing != title and not without_closing[-1:].strip():
        title = without_closing.rstrip()
    return Heading(mark.start(), len(mark["hashes"]), title[:_MAX_TITLE_CHARACTERS])


def _setext(lines: str, floor: int, mark: re.Match[str]) -> Heading | None:
    """Return the heading that this line underlines; `floor` is where the last mark ended."""
    end = mark.start()
    if end == floor:
        return None
    start = lines.rfind("\n", floor, end)
    above = "" if start == floor else lines[lines.rfind("\n", floor, start) + 1 : start]
    title = lines[start + 1 : end].strip()
    if above.strip() or not title or not _SETEXT_TITLE.match(lines, start + 1):
        return None
    return Heading(
        start, 1 if mark["underline"][0] == "=" else 2, title[:_MAX_TITLE_CHARACTERS]
    )
