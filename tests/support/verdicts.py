"""What was claimed, the figure that was measured, and whether the claim held: as a table."""

from collections.abc import Iterable
from typing import NamedTuple


class Verdict(NamedTuple):
    """One claim and what came of it."""

    claim: str
    measured: str
    held: bool


def lines(
    verdicts: Iterable[Verdict], words: tuple[str, str] = ("held", "NOT HELD")
) -> list[str]:
    """Return the verdicts in columns; `words` are what a claim that holds or not is called."""
    rows = [
        ("claim", "measured", ""),
        *((one.claim, one.measured, words[0 if one.held else 1]) for one in verdicts),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
