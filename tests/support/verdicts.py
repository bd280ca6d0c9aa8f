"""What was claimed, the figure that was measured, and whether the claim held: as a table."""

from collections.abc import Iterable
from typing import NamedTuple


class Verdict(NamedTuple):
    """One claim and what came of it; `held` None: a figure of which nothing is claimed."""

    claim: str
    measured: str
    held: bool | None

    def called(self, words: tuple[str, str]) -> str:
        """Return the word for it of those for a claim that holds and one that does not."""
        return "" if self.held is None else words[0 if self.held else 1]


def lines(
    verdicts: Iterable[Verdict], words: tuple[str, str] = ("held", "NOT HELD")
) -> list[str]:
    """Return the verdicts in columns; `words` are what a claim that holds or not is called."""
    rows = [
        ("claim", "measured", ""),
        *((one.claim, one.measured, one.called(words)) for one in verdicts),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
