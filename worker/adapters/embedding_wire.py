"""
What OpenAI-compatible embedding servers are asked and answer: bytes in, bytes out.

Owns the reading of an answer into vectors that are safe to store, in every dialect the same. A
wrong answer is never repaired and never half used: it raises. Never holds a connection, and
never repeats what a provider wrote in prose, which may quote a document or a key.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from worker.core.model import Vector
from worker.errors import BadOutput, RejectedInput, WrongDimensions

FLOAT_BYTES = 4


class _Item(msgspec.Struct, gc=False):
    index: int
    # Some servers ignore `encoding_format` and answer floats; msgspec decodes the base64.
    embedding: list[float] | bytes


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: float | None = None
    total_tokens: float | None = None


class _Answer(msgspec.Struct, gc=False):
    data: list[_Item]
    usage: _Usage | None = None


class Embeddings(NamedTuple):
    """A right answer: one vector a text, in the order of the texts."""

    vectors: list[Vector]
    tokens: int


_ENCODER = msgspec.json.Encoder()
_ANSWER = msgspec.json.Decoder(_Answer)
_FIRST_IS_A_LIST = re.compile(rb'"embedding"\s*:\s*\[')


def encode(body: Mapping[str, Any]) -> bytes:
    """
    Return the body of a request as JSON.

    Raises:
        RejectedInput: a text is no valid Unicode.
    """
    try:
        return _ENCODER.encode(body)
    except UnicodeEncodeError as error:
        raise RejectedInput("a text holds a lone surrogate, which no JSON can carry") from error


def is_slow_to_decode(content: bytes) -> bool:
    """
    Tell whether decoding takes so long that it belongs off the loop.

    Measured: floats 97 us a vector of 1536 dimensions (3 ms per MB), base64 6 us (0.7 ms per
    MB). A millisecond is what one batch may hold the loop; a thread hop costs 0.05 ms.
    """
    has_floats = _FIRST_IS_A_LIST.search(content, 0, 1024) is not None
    return len(content) > (256 * 1024 if has_floats else 2 * 1024 * 1024)


def decode(content: bytes, count: int, dimensions: int) -> Embeddings:
    """
    Return one vector a text, whatever order the provider chose.

    Raises:
        BadOutput: the answer is not exactly one finite vector of these dimensions, with a
            length, for each text.
    """
    try:
        answer = _ANSWER.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadOutput(
            f"the provider's answer cannot be read: {_reason(error)}", status=200
        ) from error
    rows = _checked(_ordered(answer.data, count), dimensions)
    return Embeddings(rows, _tokens(answer.usage))


def _reason(error: Exception) -> str:
    # A path and types ("Expected `int`, got `str` - at `$.data[0].index`"), or where the JSON
    # broke off; msgspec quotes values only of enumerations, of which there are none here.
    return str(error) if isinstance(error, msgspec.MsgspecError) else type(error).__name__


def _ordered(items: list[_Item], count: int) -> list[bytes]:
    if len(items) != count:
        raise _wrong(f"{len(items)} vectors for {count} texts")
    places: list[bytes | None] = [None] * count
    for item in items:
        if not 0 <= item.index < count or places[item.index] is not None:
            raise _wrong(f"index {item.index} is out of range or comes twice")
        places[item.index] = _as_bytes(item.embedding)
    return [place for place in places if place is not None]


def _as_bytes(embedding: list[float] | bytes) -> bytes:
    if isinstance(embedding, bytes):
        return embedding
    with np.errstate(over="ignore"):  # beyond float32: becomes infinite, and is refused as such
        return np.array(embedding, "<f4").tobytes()


def _checked(rows: list[bytes], dimensions: int) -> list[Vector]:
    size = dimensions * FLOAT_BYTES
    for row in rows:
        if len(row) != size:
            raise WrongDimensions(
                f"a vector of {len(row) / FLOAT_BYTES:g} dimensions where the collection has "
                f"{dimensions} (check the collection's model and embedding.send_dimensions)",
                status=200,
            )
    matrix = np.frombuffer(b"".join(rows), "<f4").reshape(len(rows), dimensions)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", matrix, matrix)
    # A NaN or an infinite value anywhere makes the sum of squares NaN or infinite.
    if not np.isfinite(squares).all():
        raise _wrong("a vector holds a value that is not finite, or too large to be compared")
    if not (squares > 0).all():
        raise _wrong("a vector is zero")
    return [Vector(row) for row in rows]


def _tokens(usage: _Usage | None) -> int:
    if usage is None:
        return 0
    return max(0, int(usage.total_tokens or usage.prompt_tokens or 0))


def _wrong(what: str) -> BadOutput:
    return BadOutput(f"the provider answered wrongly: {what}", status=200)
