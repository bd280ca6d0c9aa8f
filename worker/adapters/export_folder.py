"""
The folder of an export: what is unfinished in it, and what is finished.

An unfinished export lives in `unfinished`, with a journal of what of its files counts, and a
lock. Its `manifest.json` is made there when all files are whole and on the disk. From then on
only names change, the manifest's last, and whoever comes next finishes that. So a folder with a
manifest holds a finished export, at every moment, also while another one is written to take
its place.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path

import msgspec

from worker.adapters.export_files import (
    UNREADABLE,
    GrowingFiles,
    flush_names,
    opened,
    sum_up,
    write_whole,
    writing,
)
from worker.adapters.export_journal import Journal
from worker.adapters.export_parquet import write_parquet
from worker.core.exports import (
    PART_BYTES,
    Checkpoint,
    Digest,
    Manifest,
    Moment,
    Part,
    Rows,
    Subject,
    differences,
    objection,
)
from worker.core.progress import Watch
from worker.errors import ConfigError

UNFINISHED = "unfinished"
MANIFEST = "manifest.json"
VECTORS = "vectors.npy"
ROWS = {"jsonl": "rows.jsonl", "parquet": "rows.parquet"}
NAMES = (VECTORS, *ROWS.values())

_JOURNAL, _LOCK = "journal.jsonl", "lock"


class ExportFolder:
    """One export that is being written."""

    def __init__(self, path: Path, subject: Subject, stack: ExitStack, *, force: bool) -> None:
        """Open its files, under the lock of the folder; `stack` closes them."""
        self._path = path
        self._unfinished = path / UNFINISHED
        self._subject = subject
        self._journal = Journal(stack.enter_context(opened(self._unfinished / _JOURNAL)))
        # One without a part is nothing yet.
        unfinished = self._journal.subject if self._journal.checkpoints else None
        if not force:
            _check(path, subject, unfinished)
        if unfinished is None or differences(unfinished, subject):
            self._journal.begin(subject)
        vectors, lines = self._unfinished / VECTORS, self._unfinished / ROWS["jsonl"]
        self._files = GrowingFiles(vectors, lines, subject, stack)
        self.rows = self.documents = 0
        there = takewhile(lambda one: self._files.hold(one.rows, one.text_bytes), self.parts)
        self.keep(len(list(there)))

    @classmethod
    @contextmanager
    def open(cls, path: Path, subject: Subject, *, force: bool) -> "Iterator[ExportFolder]":
        """
        Begin an export, or go on with one that is unfinished.

        Raises:
            ConfigError: another one is there or is being written, or nothing can be.
        """
        with ExitStack() as stack:
            with writing(path):
                if path.exists() and not path.is_dir():
                    raise ConfigError(f"{path} is no folder")
                _publish_what_is_whole(path)
                if not force and not (path / UNFINISHED).exists():
                    _check(path, subject, None)
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                stack.enter_context(_locked(path / UNFINISHED))
                folder = cls(path, subject, stack, force=force)
            yield folder

    @property
    def parts(self) -> list[Checkpoint]:
        """The parts that are written down, in the order of their keys."""
        return self._journal.checkpoints

    @property
    def is_part_due(self) -> bool:
        """Whether what was written since the last part is enough for one."""
        return self._files.size_bytes - self._written_down_bytes >= PART_BYTES

    def keep(self, parts: int) -> None:
        """Leave only the first so many parts, and nothing that was written after them."""
        with writing(self._path):
            if parts < len(self.parts):
                self._journal.keep(parts)
            last = self.parts[-1] if parts else None
            self.rows, self.documents = (last.rows, last.documents) if last else (0, 0)
            self._files.cut(self.rows, last.text_bytes if last else 0)
            self._written_down_bytes = self._files.size_bytes

    def append(self, rows: Rows) -> None:
        """Write rows; they count once their part is written down."""
        with writing(self._path):
            self._files.append(rows)
        self.rows += rows.rows
        self.documents += rows.documents

    def write_down(self, part: Part, digest: Digest) -> None:
        """Say that all rows of a part are written, once they are on the disk."""
        with writing(self._path):
            self._files.flush()
            checkpoint = Checkpoint(
                part=part,
                digest=digest,
                rows=self.rows,
                documents=self.documents,
                text_bytes=self._files.text_bytes,
            )
            self._journal.add(checkpoint)
            self._written_down_bytes = self._files.size_bytes

    def finish(self, moment: Moment, watch: Watch) -> Manifest:
        """
        Make the files whole, sum them up in a manifest, and put them in their places.

        All parts are written down, and show that moment.
        """
        with writing(self._path):
            self._files.end(self.rows)
            rows_name = ROWS[self._subject.metadata]
            if self._subject.metadata == "parquet":
                with opened(self._unfinished / rows_name) as file:
                    write_parquet(self._unfinished / ROWS["jsonl"], file, self._subject, watch)
            names = (VECTORS, rows_name)
            manifest = Manifest(
                **msgspec.structs.asdict(self._subject),
                rows=self.rows,
                documents=self.documents,
                snapshot=moment,
                files={name: sum_up(self._unfinished / name, watch) for name in names},
                finished_at=datetime.now(UTC),
                embedfleet=version("embedfleet"),
            )
            write_whole(self._unfinished / MANIFEST, _text(manifest))
            _publish(self._path)
        return manifest


def _publish(path: Path) -> None:
    """Give the files of an export their places; begun again, it goes on wherever it was."""
    unfinished = path / UNFINISHED
    manifest = _manifest(unfinished)
    if manifest is None:
        (unfinished / MANIFEST).unlink()
        return
    (path / MANIFEST).unlink(missing_ok=True)
    flush_names(path)
    for name in NAMES:
        if name not in manifest.files:
            (path / name).unlink(missing_ok=True)
        elif (unfinished / name).exists():
            (unfinished / name).replace(path / name)
    # A journal without its files would be taken for an export to go on with.
    (unfinished / _JOURNAL).unlink(missing_ok=True)
    flush_names(unfinished)
    flush_names(path)
    (unfinished / MANIFEST).replace(path / MANIFEST)
    flush_names(path)
    shutil.rmtree(unfinished)


def _publish_what_is_whole(path: Path) -> None:
    """Finish what was ended in the middle of changing names, or of clearing up after it."""
    unfinished = path / UNFINISHED
    if (unfinished / MANIFEST).exists():
        with _locked(unfinished):
            _publish(path)
    elif unfinished.exists() and not (unfinished / _JOURNAL).exists():
        with _locked(unfinished):
            shutil.rmtree(unfinished)


def _check(path: Path, subject: Subject, unfinished: Subject | None) -> None:
    """
    Refuse to touch what is there without being told to.

    Raises:
        ConfigError: says what it is.
    """
    finished = _manifest(path)
    why_not = objection(subject, unfinished, finished)
    strange = [name for name in (MANIFEST, *NAMES) if (path / name).exists()]
    if strange and finished is None and unfinished is None:
        why_not = f"{' and '.join(strange)}, of no export that can be read"
    if why_not is not None:
        raise ConfigError(f"{path} holds {why_not}; --force replaces it")


def _manifest(folder: Path) -> Manifest | None:
    """Return the manifest in a folder, None where there is none that can be read."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (FileNotFoundError, *UNREADABLE):
        return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let nobody else write into a folder, which is made where it is missing."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink():  # what is written elsewhere cannot be put in its place
        raise ConfigError(f"{folder} is a link to another place")
    with opened(folder / _LOCK) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another export is being written into {folder.parent}") from None
        if not os.fstat(file.fileno()).st_nlink:
            raise ConfigError(
                f"an export into {folder.parent} has just ended: look at it first"
            )
        yield


def _text(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
