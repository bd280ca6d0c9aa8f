"""Vectors on the wire: pgvector's bytes, and what is refused before they are sent."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.store_changes import vector
from worker.adapters.pgvector_format import wire
from worker.errors import PermanentError

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
