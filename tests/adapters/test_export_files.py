"""The header of the vectors has room for any number of rows, and numpy reads what it says."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.support.exports import SUBJECT
from worker.adapters.export_files import GrowingFiles


@given(st.integers(0, 10**15), st.integers(1, 16_000), st.sampled_from(["float32", "float16"]))
def test_the_header_is_as_long_for_no_row_as_for_all(rows, dimensions, dtype):
    with tempfile.TemporaryDirectory() as folder:
        check_header(Path(folder), rows, dimensions, dtype)


def check_header(folder: Path, rows: int, dimensions: int, dtype: str) -> None:
    subject = msgspec.structs.replace(SUBJECT, dimensions=dimensions, dtype=dtype)
    with ExitStack() as stack:
        files = GrowingFiles(folder / "vectors", folder / "lines", subject, stack)
        files.cut(0, 0)
        begin = (folder / "vectors").stat().st_size
        files.end(rows)
    with (folder / "vectors").open("rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        shape, is_fortran, found = np.lib.format.read_array_header_1_0(file)
        assert (shape, is_fortran, found) == ((rows, dimensions), False, np.dtype(dtype))
        assert file.tell() == begin == (folder / "vectors").stat().st_size
        assert begin % 64 == 0  # where vectors are aligned when they are mapped
