"""
One-shot job: write what readers of a collection see into files.

All rows of an export are those of one moment, also of one that was ended and went on. A
snapshot cannot outlive its connection, so who goes on takes a new one, compares the parts that
are written down with it, keeps the first of them as far as they are still the same, and reads
the rest. A digest of its documents says what a part was; no chunk is read for that.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from worker.core.exports import Checkpoint, Digest, Key, Moment, Part, Rows
from worker.core.progress import Progress, Watch


class Snapshot(Protocol):
    """The rows at one moment, as `worker.adapters.pg_export.ExportSnapshot` has them."""

    moment: Moment

    async def estimate(self) -> int | None:
        """Return about how many rows there are, None where nobody knows."""

    async def digest(self, part: Part) -> Digest:
        """Return what names the documents of a part."""

    async def read(
        self,
        after: Key | None,
        take: Callable[[Rows], object],
        reached: Callable[[Key | None], Awaitable[None]],
    ) -> None:
        """Hand out the rows behind a document, in order, and tell which one is reached."""


class Folder(Protocol):
    """An export being written, as `worker.adapters.export_folder.ExportFolder` does it."""

    rows: int

    @property
    def parts(self) -> Sequence[Checkpoint]:
        """The parts that are written down."""

    @property
    def is_part_due(self) -> bool:
        """Whether what was written since then is enough for a part."""

    def keep(self, parts: int) -> None:
        """Leave only the first so many parts."""

    def append(self, rows: Rows) -> None:
        """Write rows."""

    def write_down(self, part: Part, digest: Digest) -> None:
        """Say that all rows of a part are written."""


class Done(NamedTuple):
    """What a run has read: which moment is shown; how many rows were there, and were kept."""

    moment: Moment
    found_rows: int
    kept_rows: int


async def read(snapshot: Snapshot, folder: Folder, watch: Watch) -> Done:
    """Read what is not there yet, or is not what it was; all parts are written down then."""
    found_rows = folder.rows
    folder.keep(await _unchanged(snapshot, folder.parts, watch))
    kept_rows = folder.rows
    about = await snapshot.estimate()
    after = folder.parts[-1].part.upto if folder.parts else None

    def take(rows: Rows) -> None:
        folder.append(rows)
        watch(_reading(folder.rows, about))

    async def reached(key: Key | None) -> None:
        nonlocal after
        if key is None or folder.is_part_due:
            part = Part(after, key)
            folder.write_down(part, await snapshot.digest(part))
            after = key

    if not folder.parts or after is not None:
        await snapshot.read(after, take, reached)
    return Done(snapshot.moment, found_rows, kept_rows)


def _reading(rows: int, about: int | None) -> Progress:
    share = min(1.0, rows / about) if about else None
    return Progress("reading", share, detail=f"{rows:,} rows so far")


async def _unchanged(snapshot: Snapshot, written: Sequence[Checkpoint], watch: Watch) -> int:
    """Count the parts, from the first one on, whose documents are the same in this snapshot."""
    for number, checkpoint in enumerate(written):
        watch(Progress("comparing what is there", number / len(written)))
        if await snapshot.digest(checkpoint.part) != checkpoint.digest:
            return number
    return len(written)
