"""
The vector index of a collection: what it should be, what is there, and what is to be done.

Owns the judgement of what was found, the steps from there to what is wanted, and what an index
costs in memory and time. What is found is looked at anew before every build, so a build that
was ended anywhere goes on from where it was. Never waits, never knows a table.

Invariant: the steps never take away an index that readers can use before there is another one,
unless none is wanted.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

MIB = 2**20
BYTES_A_DIMENSION = {"halfvec": 2, "vector": 4}
FEW_ROWS = 10_000
"""Fewer chunks (of 1,536 dimensions) are compared in 0.1 s: readers hardly miss an index."""


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """
    What index a collection should have.

    `kind` is hnsw, ivfflat or none. `lists` None: by the number of chunks when it is built.
    With fewer chunks than `build_at_rows` there is none: all are compared, which is exact.
    """

    kind: str = "hnsw"
    m: int = 16
    ef_construction: int = 64
    lists: int | None = None
    build_at_rows: int = FEW_ROWS


NO_INDEX = VectorIndex(kind="none")
DEFAULT_INDEX = VectorIndex()


class Present(NamedTuple):
    """
    An index that is there; one that is not valid is of a build that has not ended.

    One that serves no reader has its definition for its kind.
    """

    kind: str
    m: int | None = None
    ef_construction: int | None = None
    lists: int | None = None
    is_valid: bool = True

    def is_as(self, wanted: VectorIndex) -> bool:
        """Tell whether it is of the wanted kind, with the wanted parameters."""
        if self.kind != wanted.kind:
            return False
        if self.kind == "ivfflat":
            return wanted.lists in (None, self.lists)
        return (self.m, self.ef_construction) == (wanted.m, wanted.ef_construction)


class State(StrEnum):
    """How the index of a collection is."""

    VALID = "valid"
    DIFFERS = "differs"  # readers use it, but it is of another kind, or has other parameters
    UNWANTED = "unwanted"  # there is one, and there should be none
    BUILDING = "building"
    BUSY = "busy"  # somebody is at it, and does not build at the moment
    INVALID = "invalid"  # left behind by a build that was ended
    MISSING = "missing"  # it should always be there
    DUE = "due"  # enough chunks, and none yet
    EARLY = "early"  # too few chunks
    NONE = "none"  # there should be none


WRONG = frozenset({State.INVALID, State.MISSING, State.DUE})
"""What somebody has to do something about: a worker, or an operator."""


class Place(StrEnum):
    """An index by its place: the one of a collection, and one that is to replace it."""

    MAIN = ""
    NEXT = "_next"


class Drop(NamedTuple):
    """Take an index away."""

    place: Place


class Create(NamedTuple):
    """Build an index."""

    place: Place


class Promote(NamedTuple):
    """Put the next index into the place of the main one, which is gone."""


Step = Drop | Create | Promote
Places = dict[Place, Present]
"""The indexes of a collection that are there."""


def judge(
    wanted: VectorIndex, found: Places, rows: int, *, is_building: bool, is_busy: bool
) -> State:
    """Say how the index of a collection of so many chunks is."""
    if is_building or is_busy:
        return State.BUILDING if is_building else State.BUSY
    if any(not one.is_valid for one in found.values()):
        return State.INVALID
    if wanted.kind == "none":
        return State.UNWANTED if found else State.NONE
    main = found.get(Place.MAIN)
    if main is not None:
        return State.VALID if main.is_as(wanted) else State.DIFFERS
    return _absent(wanted, rows)


def _absent(wanted: VectorIndex, rows: int) -> State:
    if wanted.build_at_rows == 0:
        return State.MISSING
    return State.DUE if rows >= wanted.build_at_rows else State.EARLY


def steps(wanted: VectorIndex, found: Places, *, rebuild: bool = False) -> list[Step]:
    """
    Return what leads from what was found to what is wanted, in order.

        >>> steps(VectorIndex(), {Place.MAIN: Present("hnsw", 16, 64, is_valid=False)})
        [Drop(place=<Place.MAIN: ''>), Create(place=<Place.MAIN: ''>)]
    """
    if wanted.kind == "none":
        return [Drop(place) for place in found]
    good = {place: one for place, one in found.items() if one.is_valid}
    dropped: list[Step] = [Drop(place) for place in found if place not in good]
    return dropped + _from_good(wanted, good, rebuild=rebuild)


def _from_good(wanted: VectorIndex, good: Places, *, rebuild: bool) -> list[Step]:
    main, following = good.get(Place.MAIN), good.get(Place.NEXT)
    if following is not None and following.is_as(wanted):
        return _exchange(main)
    if following is not None and main is not None:
        return [Drop(Place.NEXT), *_from_good(wanted, {Place.MAIN: main}, rebuild=rebuild)]
    if following is not None:
        return [Promote(), *_from_good(wanted, {Place.MAIN: following}, rebuild=rebuild)]
    if main is None:
        return [Create(Place.MAIN)]
    if main.is_as(wanted) and not rebuild:
        return []
    return [Create(Place.NEXT), *_exchange(main)]


def _exchange(main: Present | None) -> list[Step]:
    return [Promote()] if main is None else [Drop(Place.MAIN), Promote()]


def lists_for(rows: int) -> int:
    """Return how many lists pgvector's manual recommends for so many rows."""
    return max(1, min(rows // 1000, math.isqrt(rows)))


def probes_for(lists: int) -> int:
    """Return how many of the lists a query should look at, by pgvector's manual."""
    return max(1, math.ceil(math.sqrt(lists)))


def build_bytes(index: VectorIndex, rows: int, dimensions: int, storage: str) -> int:
    """
    Return the memory that a build needs so that all of it is done there.

    HNSW, measured on pgvector 0.8.5, which says how many rows have found room: the vector, two
    times `m` neighbours of 16 bytes and 206 bytes more, within 1 %. IVFFlat, from its source:
    50 rows a list and their distances to all centres.
    """
    vector = dimensions * BYTES_A_DIMENSION[storage]
    if index.kind == "hnsw":
        return rows * (vector + 32 * index.m + 206)
    lists = index.lists or lists_for(rows)
    samples = max(50 * lists, 10_000)
    return (samples + 3 * lists) * (vector + 16) + 4 * lists * (samples + 2 * lists)


def memory_bytes(need_bytes: int) -> int:
    """Return what to give a build that needs so much: a tenth more, and 8 MiB."""
    return need_bytes + need_bytes // 10 + 8 * MIB


def index_bytes(rows: int, dimensions: int, storage: str) -> int:
    """Return the size of an index, roughly: what readers should find in memory."""
    # Whole rows in pages of 8 KiB: 2 of 3 KB and no third.
    row = dimensions * BYTES_A_DIMENSION[storage] + 64
    return rows * 8192 // max(1, 8152 // row)


def scan_seconds(rows: int, dimensions: int) -> float:
    """Guess how long it takes to compare all rows: 0.1 s for 10,000 of 1,536 dimensions."""
    return rows * dimensions * 6.5e-9


def build_seconds(
    rows: int, dimensions: int, index: VectorIndex, *, processes: int, fits: bool
) -> float:
    """
    Guess how long a build takes where none was measured; of the right order of magnitude.

    Fitted to builds of 20,000 clustered rows by one core: 0.3 ms a row of 128 dimensions, 1 ms
    of 1,536, 1.8 times that with m 32; growing with the logarithm of the rows; 4 to 14 times
    that where the graph does not fit into memory. IVFFlat: 0.08 ms at 1,536.
    """
    if index.kind == "ivfflat":
        return rows * dimensions * 5e-8
    effort = math.pow(index.ef_construction / 64, 0.6) * math.pow(index.m / 16, 0.8)
    growth = max(1.0, math.log(max(rows, 1), 20_000))
    seconds = rows * (2.5e-4 + 4.6e-7 * dimensions) * effort * growth
    return seconds / processes if fits else 8 * seconds
