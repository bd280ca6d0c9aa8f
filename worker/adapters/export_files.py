"""
Files of an export: what is for its owner alone, and on the disk when that is said.

A full disk is an `OSError`, as everywhere; whatever else the system refuses is a `ConfigError`.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.lib import format as npy

from worker.core.exports import ExportFile, Rows, Subject
from worker.core.progress import Progress, Watch
from worker.errors import ConfigError

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What JSON can raise that a kill, a disk or somebody else has broken."""

_BLOCK_BYTES = 2**20


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """
    Say in our words what the system refuses, but for a full disk.

    Raises:
        ConfigError: nothing can be written there.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = error.filename2 or error.filename or path
        raise ConfigError(f"{place} cannot be written: {error.strerror or error}") from error


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read and to write, new or as it is; a link is not followed."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    file = os.fdopen(descriptor, "r+b")
    try:
        yield file
    finally:
        # What a full disk has not taken before it does not take now.
        with suppress(OSError):
            file.close()


def flush(file: BinaryIO) -> None:
    """Wait until what was written is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_names(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there wholly or not at all."""
    new = path.with_name(f"{path.name}.new")
    with opened(new) as file:
        file.truncate()
        file.write(content)
        flush(file)
    new.replace(path)
    flush_names(path.parent)


def sum_up(path: Path, watch: Watch) -> ExportFile:
    """Read a file through, and return what a manifest says of it."""
    total, done, digest = path.stat().st_size, 0, sha256()
    block = memoryview(bytearray(_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            done += count
            watch(Progress("computing checksums", done / total))
    return ExportFile(size_bytes=done, sha256=digest.hexdigest())


class GrowingFiles:
    """
    The two files that grow together: vector i belongs to line i.

    The vectors are `.npy`: its header has room for any number of rows, and tells it at the end.
    """

    def __init__(self, vectors: Path, lines: Path, subject: Subject, stack: ExitStack) -> None:
        """Open them, new or as they are; `stack` closes them."""
        self._vectors = stack.enter_context(opened(vectors))
        self._lines = stack.enter_context(opened(lines))
        self._dimensions = subject.dimensions
        self._dtype = np.dtype(subject.dtype).newbyteorder("<")
        self._header_bytes = self._write_header(0)

    @property
    def text_bytes(self) -> int:
        """How long the lines are."""
        return self._lines.tell()

    @property
    def size_bytes(self) -> int:
        """How long both are."""
        return self._vectors.tell() + self._lines.tell()

    def hold(self, rows: int, text_bytes: int) -> bool:
        """Tell whether so much is there."""
        sizes = [os.fstat(file.fileno()).st_size for file in (self._vectors, self._lines)]
        return sizes[0] >= self._vector_bytes(rows) and sizes[1] >= text_bytes

    def cut(self, rows: int, text_bytes: int) -> None:
        """Leave only so much, and go on from there."""
        for file, end in ((self._vectors, self._vector_bytes(rows)), (self._lines, text_bytes)):
            file.truncate(end)
            file.seek(end)

    def append(self, rows: Rows) -> None:
        """Write rows behind the others."""
        self._vectors.write(rows.vectors)
        self._lines.write(rows.lines)

    def flush(self) -> None:
        """Wait until both are on the disk."""
        flush(self._vectors)
        flush(self._lines)

    def end(self, rows: int) -> None:
        """Say in the header how many rows there are; nothing is appended after this."""
        self._write_header(rows)
        self.flush()

    def _vector_bytes(self, rows: int) -> int:
        return self._header_bytes + rows * self._dimensions * self._dtype.itemsize

    def _write_header(self, rows: int) -> int:
        """Return how long it is, which does not depend on how many rows there are."""
        shape = (rows, self._dimensions)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        self._vectors.seek(0)
        npy.write_array_header_1_0(self._vectors, header)
        return self._vectors.tell()
