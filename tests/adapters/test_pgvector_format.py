"""Vectors on the wire: pgvector's bytes, and what is refused before they are sent."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.store_changes import vector
from worker.adapters.pgvector_format import converted, unwire, wire, wire_bytes
from worker.errors import ConfigError, PermanentError

singles = st.floats(width=32, allow_nan=False, allow_infinity=False)
halves = st.floats(min_value=-65_504, max_value=65_504, width=32)


def matrix(numbers):
    return st.integers(1, 8).flatmap(
        lambda width: st.lists(
            st.lists(numbers, min_size=width, max_size=width), min_size=1, max_size=5
        )
    )


@given(matrix(singles))
def test_a_vector_is_its_dimensions_zero_and_big_endian_singles(rows) -> None:
    width = len(rows[0])
    expected = [struct.pack(f">HH{width}f", width, 0, *row) for row in rows]
    assert wire([vector(*row) for row in rows], width, "vector") == expected


@given(matrix(halves))
def test_a_halfvec_is_its_dimensions_zero_and_big_endian_halves(rows) -> None:
    width = len(rows[0])
    expected = [struct.pack(f">HH{width}e", width, 0, *row) for row in rows]
    assert wire([vector(*row) for row in rows], width, "halfvec") == expected


def test_the_largest_half_is_taken_and_what_would_be_infinite_is_not() -> None:
    below = float(np.nextafter(np.float32(65_520), np.float32(0)))
    (wired,) = wire([vector(below, -below)], 2, "halfvec")
    assert struct.unpack(">HH2e", wired) == (2, 0, 65_504, -65_504)
    for number in (65_520, -65_520, 1e30, math.inf, -math.inf, math.nan):
        with pytest.raises(PermanentError, match="range of halfvec"):
            wire([vector(1, 2), vector(1, number)], 2, "halfvec")


def test_what_is_no_number_is_no_vector() -> None:
    for number in (math.inf, -math.inf, math.nan):
        with pytest.raises(PermanentError, match="range of vector"):
            wire([vector(number)], 1, "vector")


def test_another_length_is_refused() -> None:
    for wrong in (vector(1), vector(1, 2, 3), vector(1, 2)[:-1], b""):
        with pytest.raises(PermanentError, match="2 dimensions"):
            wire([vector(1, 2), wrong], 2, "vector")


def test_no_vectors_are_no_bytes() -> None:
    assert wire([], 3, "vector") == []


def test_any_number_of_vectors_comes_back_in_order():
    rows = np.arange(3_000, dtype=np.float32).reshape(3, 1_000) / 3_000
    many = [rows[number % 3] + number for number in range(1_000)]
    found = unwire(on_the_wire(many, 1_000, "vector"), 1_000, "vector")
    assert np.array_equal(found, np.array(many, np.float32))


def on_the_wire(rows, width: int, storage: str) -> np.ndarray:
    """Rows as they stand in the middle of other bytes, not aligned."""
    wired = wire([vector(*row) for row in rows], width, storage)
    assert {len(one) for one in wired} == {wire_bytes(width, storage)}
    framed = b"".join(b"xyz" + one + b"z" for one in wired)
    return np.frombuffer(framed, np.uint8).reshape(len(rows), -1)[:, 3:-1]


@given(matrix(singles))
def test_what_was_a_vector_comes_back_exactly(rows) -> None:
    found = unwire(on_the_wire(rows, len(rows[0]), "vector"), len(rows[0]), "vector")
    assert found.tolist() == rows
    assert converted(found, "float32").dtype.str == "<f4"
    assert converted(found, "float32").tolist() == rows


@given(matrix(st.floats(width=16, allow_nan=False, allow_infinity=False)))
def test_what_was_a_halfvec_comes_back_exactly_in_either_width(rows) -> None:
    found = unwire(on_the_wire(rows, len(rows[0]), "halfvec"), len(rows[0]), "halfvec")
    for dtype, code in (("float16", "<f2"), ("float32", "<f4")):
        exported = converted(found, dtype)
        assert (exported.dtype.str, exported.tolist()) == (code, rows)


@given(matrix(halves))
def test_singles_are_rounded_to_the_nearest_half(rows) -> None:
    found = unwire(on_the_wire(rows, len(rows[0]), "vector"), len(rows[0]), "vector")
    rounded = [
        list(struct.unpack(f"<{len(row)}e", struct.pack(f"<{len(row)}e", *row))) for row in rows
    ]
    assert converted(found, "float16").tolist() == rounded


def test_a_single_that_no_half_can_hold_is_refused_as_a_half() -> None:
    for number in (65_520, -65_520, 1e30):
        found = unwire(on_the_wire([[1, number]], 2, "vector"), 2, "vector")
        assert converted(found, "float32").tolist() == np.float32([[1, number]]).tolist()
        with pytest.raises(ConfigError, match="range of float16: say --dtype float32"):
            converted(found, "float16")


def test_a_vector_of_other_dimensions_is_none_of_ours() -> None:
    wired = np.frombuffer(struct.pack(">HH3e", 3, 0, 1, 2, 3), np.uint8).reshape(1, -1)
    with pytest.raises(ValueError, match="does not have 2 dimensions"):
        unwire(wired, 2, "halfvec")
