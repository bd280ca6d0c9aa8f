"""
PostgreSQL's binary COPY stream, for rows of fields of fixed widths and one text at the end.

Takes the stream as it comes, cut anywhere, and hands out whole rows: the fixed part of all of
them as one array, their texts as lines. Holds no more than it was fed and a row that is not
whole yet. Pure. The format: PostgreSQL manual, "COPY", "Binary Format".
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"PGCOPY\n\xff\r\n\0"
_HEADER_BYTES = len(_SIGNATURE) + 8  # two words more: flags, and the length of an extension
_END = b"\xff\xff"

_count = struct.Struct(">h")
_length = struct.Struct(">i")


class Block(NamedTuple):
    """Rows: their fixed parts (rows x bytes), where in it each field is, and a line each."""

    heads: NDArray[np.uint8]
    fields: Sequence[slice]
    lines: bytes

    def field(self, number: int) -> NDArray[np.uint8]:
        """Return one field of all rows (rows x bytes)."""
        return self.heads[:, self.fields[number]]


class CopyRows:
    r"""
    One stream; `widths` are those of the fields before the text, in bytes.

        >>> row = b"\0\2" b"\0\0\0\1A" b"\0\0\0\3one"
        >>> stream = _SIGNATURE + bytes(8) + row + _END
        >>> rows = CopyRows([1])
        >>> rows.feed(stream[:30]).lines, rows.feed(stream[30:]).lines
        (b'', b'one\n')
        >>> rows.close()
    """

    def __init__(self, widths: Sequence[int]) -> None:
        head, fields = _count.pack(len(widths) + 1), []
        is_frame = [True] * len(head)
        for width in widths:
            start = len(head) + _length.size
            fields.append(slice(start, start + width))
            head += _length.pack(width) + bytes(width)
            is_frame += [True] * _length.size + [False] * width
        self._fields = tuple(fields)
        self._is_frame = np.array(is_frame)
        self._frame = np.frombuffer(head, np.uint8)[self._is_frame]
        self._text_at = len(head)
        self._rest = b""
        self._has_begun = False

    def feed(self, data: bytes) -> Block:
        """
        Return the rows that are whole with these bytes.

        Raises:
            ValueError: these are other rows than those that were asked for.
        """
        data = self._rest + data
        at = 0 if self._has_begun else self._begin(data)
        heads, texts, at = self._walk(data, at)
        self._rest = data[at:]
        width = self._text_at
        found = np.frombuffer(b"".join(heads), np.uint8).reshape(len(heads), width)
        if not (found[:, self._is_frame] == self._frame).all():
            raise ValueError("a row of the COPY stream has other fields")
        # An end behind each, also the last.
        return Block(found, self._fields, b"\n".join([*texts, b""]))

    def _begin(self, data: bytes) -> int:
        if len(data) < _HEADER_BYTES:
            return 0
        if data[: len(_SIGNATURE)] != _SIGNATURE:
            raise ValueError("this is no binary COPY stream")
        self._has_begun = True
        return _HEADER_BYTES

    def _walk(self, data: bytes, at: int) -> tuple[list[bytes], list[bytes], int]:
        """Cut the rows that are whole; return heads, texts, and where the rest begins."""
        heads: list[bytes] = []
        texts: list[bytes] = []
        head, length, end = self._text_at, _length.unpack_from, len(data)
        if not self._has_begun:
            return heads, texts, at
        while (begin := at + head + 4) <= end:
            stop = begin + length(data, begin - 4)[0]
            if stop > end:
                break
            if stop < begin:
                raise ValueError("a row of the COPY stream has no text")
            heads.append(data[at : at + head])
            texts.append(data[begin:stop])
            at = stop
        return heads, texts, at

    def close(self) -> None:
        """
        Say that the stream is over.

        Raises:
            ValueError: it is not.
        """
        if self._rest != _END:
            raise ValueError("the COPY stream ends in the middle of a row")
