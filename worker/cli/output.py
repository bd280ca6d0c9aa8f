"""
Where words go: results to stdout, everything else to stderr, secrets nowhere.

With `--json` stdout holds one JSON value and nothing else.
"""

import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec

from worker.cli.masking import redact


def say(text: str, *, secrets: Collection[str] = ()) -> None:
    """Print a message for people, on stderr."""
    sys.stderr.write(redact(text, secrets) + "\n")


def show(text: str) -> None:
    """Print a line of the result."""
    sys.stdout.write(text + "\n")


def show_json(value: Any) -> None:
    """Print the result as JSON."""
    text = msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2)
    show(text.decode())


def show_table(head: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print rows in columns as wide as they need; `empty` is said where there are none."""
    lines = [[_cell(cell) for cell in row] for row in rows]
    if not lines:
        say(empty)
        return
    # Plain columns, not a drawn table: made for grep, awk and narrow terminals alike.
    widths = [
        max(len(line[column]) for line in [list(head), *lines]) for column in range(len(head))
    ]
    for line in [[name.upper() for name in head], *lines]:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        show("  ".join(padded).rstrip())


def _cell(value: object) -> str:
    return "-" if value is None else str(value)
