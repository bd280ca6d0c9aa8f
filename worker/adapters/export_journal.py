"""
How far an unfinished export is, line by line, so that a kill at any moment leaves the truth.

A line is written when what it tells of is on the disk, and is there itself before anything is
built on it. A line that a kill has cut off tells nothing, and neither does what follows it.
"""

from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from worker.adapters.export_files import UNREADABLE, flush
from worker.core.exports import Checkpoint, Subject

_Line = Subject | Checkpoint


class Journal:
    """The journal of one export, in a file that is opened and closed by others."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lines: list[_Line] = []
        self._ends: list[int] = []  # of each line, in bytes
        for line, end in _understood(file):
            self._lines.append(line)
            self._ends.append(end)
        self._cut(len(self._lines))

    @property
    def subject(self) -> Subject | None:
        """What the export is of; None: nothing is written down yet."""
        return next((line for line in self._lines if isinstance(line, Subject)), None)

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The parts that are written down, in the order of their keys."""
        return [line for line in self._lines if isinstance(line, Checkpoint)]

    def begin(self, subject: Subject) -> None:
        """Forget everything, and say what the export is of."""
        self._cut(0)
        self.add(subject)

    def keep(self, parts: int) -> None:
        """Forget all parts but the first so many."""
        self._cut(1 + parts)

    def add(self, line: _Line) -> None:
        """Write a line down; it is on the disk when this returns."""
        self._file.write(msgspec.json.encode(line) + b"\n")
        flush(self._file)
        self._lines.append(line)
        self._ends.append(self._file.tell())

    def _cut(self, lines: int) -> None:
        """Leave only the first so many lines."""
        del self._lines[lines:]
        del self._ends[lines:]
        end = self._ends[-1] if self._ends else 0
        self._file.truncate(end)
        self._file.seek(end)
        # What is written over from here on must not be counted after a crash.
        flush(self._file)


def _understood(file: BinaryIO) -> Iterator[tuple[_Line, int]]:
    """Yield the lines from the first one on that are whole, and where each ends."""
    end = 0
    file.seek(0)
    for number, line in enumerate(file):
        end += len(line)
        try:
            if not line.endswith(b"\n"):
                return
            if number == 0:
                yield msgspec.json.decode(line, type=Subject), end
            else:
                yield msgspec.json.decode(line, type=Checkpoint), end
        except UNREADABLE:
            return
