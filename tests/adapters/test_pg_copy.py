"""A binary COPY stream, cut anywhere, becomes the rows that were sent, or is refused."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.adapters.pg_copy import CopyRows

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
END = b"\xff\xff"


def field(content: bytes | None) -> bytes:
    return (
        struct.pack(">i", -1) if content is None else struct.pack(">i", len(content)) + content
    )


def row(*fields: bytes | None) -> bytes:
    return struct.pack(">h", len(fields)) + b"".join(map(field, fields))


@st.composite
def streams(draw):
    """Widths, rows of such fields with a text, and the stream of them in pieces."""
    widths = draw(st.lists(st.integers(0, 20), min_size=1, max_size=4))
    fields = st.tuples(*(st.binary(min_size=width, max_size=width) for width in widths))
    rows = draw(st.lists(st.tuples(fields, st.binary(max_size=40)), max_size=8))
    stream = HEADER + b"".join(row(*fixed, text) for fixed, text in rows) + END
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    return widths, rows, pieces


@given(streams())
def test_rows_are_those_that_were_sent_however_the_stream_is_cut(sent):
    widths, rows, pieces = sent
    copy = CopyRows(widths)
    blocks = [copy.feed(piece) for piece in pieces]
    copy.close()
    for number in range(len(widths)):
        found = np.concatenate([block.field(number) for block in blocks])
        assert [one.tobytes() for one in found] == [fixed[number] for fixed, _ in rows]
    assert b"".join(block.lines for block in blocks) == b"".join(
        text + b"\n" for _, text in rows
    )


@given(streams(), st.data())
def test_a_stream_that_breaks_off_is_not_taken_for_a_whole_one(sent, data):
    widths, _, pieces = sent
    stream = b"".join(pieces)
    copy = CopyRows(widths)
    copy.feed(stream[: data.draw(st.integers(0, len(stream) - 1))])
    with pytest.raises(ValueError, match="ends in the middle"):
        copy.close()


@pytest.mark.parametrize(
    "stream",
    [
        b"PGCOPY\n\xff\r\nX" + bytes(8) + END,
        HEADER + row(b"A", b"B", b"text") + END,
        HEADER + row(b"ABCDEF", b"text") + END,
        HEADER + row(None, b"text") + END,
        HEADER + row(b"AB", None) + END,
        HEADER + row(b"AB", b"text", b"") + END,
        HEADER + row(b"AB") + END,
    ],
    ids=[
        "no COPY",
        "narrow fields",
        "a wide field",
        "a null",
        "no text",
        "one more",
        "one less",
    ],
)
def test_other_rows_than_those_asked_for_are_refused(stream):
    def read():
        copy = CopyRows([2])
        copy.feed(stream)
        copy.close()

    with pytest.raises(ValueError, match="COPY stream"):
        read()
