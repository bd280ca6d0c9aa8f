"""
What pgvector takes: the sizes of its columns, and vectors in its binary format.

Pure; shared by the adapter of PostgreSQL and the one in memory, so that both refuse the same.
Limits are those of pgvector 0.8 (README, "Vector Types" and "HNSW").
"""

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.dead_letter import Reason
from worker.core.model import Collection, Vector
from worker.core.vector_index import VectorIndex, lists_for
from worker.errors import ConfigError, PermanentError

METRIC_OPERATORS = {"cosine": "<=>", "l2": "<->", "inner_product": "<#>"}
_OPERATOR_CLASSES = {"cosine": "cosine_ops", "l2": "l2_ops", "inner_product": "ip_ops"}

# Also part of the name of a view, and names end at 63 bytes.
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,47}")
_MAX_DIMENSIONS = 16_000
_MAX_INDEXED_DIMENSIONS = {"halfvec": 4_000, "vector": 2_000}
# IVFFlat learns its lists from the rows that are there: pgvector warns below one a list.
_FEWEST_IVFFLAT_ROWS = 1_000


_WIRE_HEAD = struct.Struct(">HH")
"""Dimensions, and zero."""
_BLOCK_BYTES = 2**18
"""Of vectors that are turned at once: a processor's cache holds them and what they become."""


class _Number(NamedTuple):
    """How a storage keeps one dimension; from `limit` on it would be infinite."""

    native: str
    big_endian: str
    size_bytes: int
    limit: float


_NUMBERS = {
    # 65,504 is the largest; half a step above it is rounded up.
    "halfvec": _Number("<f2", ">f2", 2, 65_520),
    "vector": _Number("<f4", ">f4", 4, math.inf),
}


def check_collection(collection: Collection) -> None:
    """
    Refuse a collection that pgvector cannot hold, or cannot index as it should be.

    Raises:
        ConfigError: in one sentence, which value and why.
    """
    if not _NAME.fullmatch(collection.name):
        raise ConfigError(
            f"the collection name {collection.name!r} must be 1 to 48 of a-z, 0-9, _ and -, "
            "and begin with a letter"
        )
    if collection.storage not in _NUMBERS:
        raise ConfigError(f"storage {collection.storage!r} is neither 'halfvec' nor 'vector'")
    if collection.metric not in METRIC_OPERATORS:
        raise ConfigError(
            f"metric {collection.metric!r} is none of {', '.join(METRIC_OPERATORS)}"
        )
    check_index(collection.index)
    has_index = collection.index.kind != "none"
    limit = _MAX_INDEXED_DIMENSIONS[collection.storage] if has_index else _MAX_DIMENSIONS
    if not 1 <= collection.dimensions <= limit:
        raise ConfigError(
            f"{collection.dimensions} dimensions do not fit: {collection.storage} takes 1 to "
            f"{limit} {'with' if has_index else 'without'} an index"
        )


def check_index(index: VectorIndex) -> None:
    """
    Refuse an index that pgvector cannot build.

    Raises:
        ConfigError: in one sentence, which value and why.
    """
    if index.kind not in ("hnsw", "ivfflat", "none"):
        raise ConfigError(f"index {index.kind!r} is none of hnsw, ivfflat, none")
    for name, value, least, most in (
        ("m", index.m, 2, 100),
        ("ef_construction", index.ef_construction, 4, 1_000),
        ("lists", 1 if index.lists is None else index.lists, 1, 32_768),
        ("build_at_rows", index.build_at_rows, 0, 2**63 - 1),
    ):
        if not least <= value <= most:
            raise ConfigError(f"the index's {name} is {value}: it must be {least} to {most}")
    if index.ef_construction < 2 * index.m:
        raise ConfigError(
            f"the index's ef_construction is {index.ef_construction}: it must be at least "
            f"twice m, which is {index.m}"
        )
    fewest = max(_FEWEST_IVFFLAT_ROWS, index.lists or 0)
    if index.kind == "ivfflat" and index.build_at_rows < fewest:
        raise ConfigError(
            "ivfflat learns its lists from the rows that are there: build_at_rows must be at "
            f"least {fewest}"
        )


def index_definition(collection: Collection, rows: int) -> str:
    """Return what stands behind `create index ... on ...`, for a table of so many rows."""
    index = collection.index
    if index.kind == "ivfflat":
        parameters = f"lists = {index.lists or lists_for(rows)}"
    else:
        parameters = f"m = {index.m}, ef_construction = {index.ef_construction}"
    return f"using {index.kind} (embedding {index_operators(collection)}) with ({parameters})"


def index_operators(collection: Collection) -> str:
    """Return the operator class of an index that serves its readers."""
    return f"{collection.storage}_{_OPERATOR_CLASSES[collection.metric]}"


def is_same(collection: Collection, other: Collection) -> bool:
    """Tell whether two collections hold the same; their index says only how it is found."""
    alike = replace(collection, id=other.id, generation=other.generation, index=other.index)
    return alike == other


def wire(vectors: Sequence[Vector], dimensions: int, storage: str) -> list[bytes]:
    """
    Return vectors as pgvector's binary format: dimensions, zero, big-endian floats.

    Raises:
        PermanentError: a vector has other dimensions, or leaves the range of `storage`.
    """
    if any(len(vector) != 4 * dimensions for vector in vectors):
        raise PermanentError(
            Reason.REJECTED_BY_STORE, f"a vector does not have {dimensions} dimensions"
        )
    # Ten times cheaper than a row at a time, and half of what all at once costs.
    count = max(1, _BLOCK_BYTES // (4 * dimensions))
    return [
        row
        for start in range(0, len(vectors), count)
        for row in _wire_block(vectors[start : start + count], dimensions, storage)
    ]


def _wire_block(vectors: Sequence[Vector], dimensions: int, storage: str) -> list[bytes]:
    values = np.frombuffer(b"".join(vectors), "<f4").reshape(len(vectors), dimensions)
    number = _NUMBERS[storage]
    # Not a number is in no range, and is the largest and the smallest of all.
    if not -number.limit < values.min() <= values.max() < number.limit:
        raise PermanentError(
            Reason.REJECTED_BY_STORE, f"a vector leaves the range of {storage}"
        )
    # Converting first and turning the bytes while copying takes half the time of both at once.
    rows = np.empty((len(vectors), 4 + number.size_bytes * dimensions), np.uint8)
    rows[:, :4] = np.frombuffer(_WIRE_HEAD.pack(dimensions, 0), np.uint8)
    rows[:, 4:].view(number.big_endian)[:] = values.astype(number.native)
    return [row.tobytes() for row in rows]


def wire_bytes(dimensions: int, storage: str) -> int:
    """Return how many bytes a vector has in pgvector's binary format."""
    return _WIRE_HEAD.size + _NUMBERS[storage].size_bytes * dimensions


def unwire(wired: NDArray[np.uint8], dimensions: int, storage: str) -> NDArray[np.floating]:
    """
    Return vectors (rows x dimensions, as exact as they are stored) from their binary format.

    Raises:
        ValueError: one has other dimensions.
    """
    head = np.frombuffer(_WIRE_HEAD.pack(dimensions, 0), np.uint8)
    if not (wired[:, : len(head)] == head).all():
        raise ValueError(f"a vector does not have {dimensions} dimensions")
    number = _NUMBERS[storage]
    # Turned while it is copied out of its row: a row is not aligned.
    return wired[:, len(head) :].view(number.big_endian).astype(number.native)


def converted(vectors: NDArray[np.floating], dtype: str) -> NDArray[np.floating]:
    """
    Return vectors as little-endian `float32` or `float16`, rounded to the nearest.

    Raises:
        ConfigError: a number is too large for it.
    """
    try:
        with np.errstate(over="raise"):
            return vectors.astype({"float32": "<f4", "float16": "<f2"}[dtype], copy=False)
    except FloatingPointError:
        raise ConfigError(
            f"a vector leaves the range of {dtype}: say --dtype float32"
        ) from None
