"""
Whatever is delivered in whatever order, a row ends as the log says, with exactly its chunks.

The rows of these tests are what a store makes of change sets: `apply` below is the whole of
it. The order rule is compared with that of the model-checked protocol (`newer_there` and
`row_there` are the operators Newer and After of its TLA+ module) in every state that small
logs can reach, so the sequences of deliveries are exhausted, redeliveries included.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import reduce
from itertools import chain, combinations, product
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import DocumentDeleted, DocumentUpserted
from tests.support.works import claim, collection, delete, tombstone, upsert, work
from worker.core import changeset
from worker.core.changeset import newer, reaches, same_content, settled
from worker.core.model import (
    Base,
    ChangeSet,
    Chunk,
    ChunkId,
    Rank,
    StoredChunk,
    StoredDocument,
    Superseded,
    Unchanged,
    Work,
)

Row = StoredDocument | None


# ---- a store of one row ----


def stored(chunk: Chunk) -> StoredChunk:
    return StoredChunk(chunk.id, chunk.seq, chunk.start, chunk.end, chunk.heading)


def apply(row: Row, change: ChangeSet) -> StoredDocument:
    """Do what a change set says; it must fit the row it is applied to."""
    assert change.base is row
    revision = row.revision + 1 if row else 1
    if change.keeps_row:
        return replace(row, revision=revision, barrier=change.barrier)
    chunks = {chunk.id: chunk for chunk in row.chunks} if row else {}
    for identity in change.remove:
        del chunks[identity]
    assert all(chunk.id in chunks for chunk in change.move)
    assert not any(chunk.id in chunks for chunk in change.insert)
    chunks |= {chunk.id: stored(chunk) for chunk in chain(change.move, change.insert)}
    return StoredDocument(
        revision=revision,
        version=change.rank.version,
        order=change.rank.order,
        barrier=change.barrier,
        deleted=change.deleted,
        content_hash=change.content_hash,
        chunks=tuple(sorted(chunks.values(), key=lambda chunk: chunk.seq)),
    )


def cut(text: str) -> tuple[Chunk, ...]:
    """Make a chunk of every character."""
    seen = Counter[str]()
    chunks = []
    for seq, content in enumerate(text):
        identity = ChunkId(content.encode(), seen[content])
        chunks.append(Chunk(identity, seq, content, start=seq, end=seq + 1))
        seen[content] += 1
    return tuple(chunks)


def decide(work: Work, base: Base) -> ChangeSet | Unchanged | Superseded:
    """Decide as prepare does."""
    end = settled(work, base)
    if end is not None:
        return end
    if not isinstance(work.event, DocumentUpserted):
        return changeset.delete(work, collection(), base)
    text = work.event.text
    chunks = None if same_content(base, text.encode()) else cut(text)
    return changeset.upsert(work, collection(), base, text.encode(), chunks)


def deliver(row: Row, one: Work) -> Row:
    change = decide(one, Base(row))
    return apply(row, change) if isinstance(change, ChangeSet) else row


def fold(works: Iterable[Work]) -> Row:
    return reduce(deliver, works, None)


def says(row: Row) -> tuple[object, ...] | None:
    """Return all that a reader or a later decision could see of a row."""
    return row and (row.version, row.order, row.barrier, row.deleted, row.chunks)


# ---- the protocol's own words ----

NO_VERSION = -1


class There(NamedTuple):
    """A row of the TLA+ module."""

    version: int = -2
    order: int = -1
    deleted: bool = True
    barrier: int = -1


def newer_there(work: Work, row: There) -> bool:
    version, order = work.rank.version, work.rank.order.offset
    if version is None:
        return order > row.barrier
    return order > row.barrier and (
        version > row.version or (version == row.version and order > row.order)
    )


def row_there(work: Work, row: There) -> There:
    version, order = work.rank.version, work.rank.order.offset
    if version is not None:
        return There(version, order, not isinstance(work.event, DocumentUpserted), row.barrier)
    if row.order < order:
        return There(NO_VERSION, order, deleted=True, barrier=order)
    return row._replace(barrier=order)


def there(row: Row) -> There:
    if row is None:
        return There()
    version = NO_VERSION if row.version is None else row.version
    return There(
        version, row.order.offset, row.deleted, row.barrier.offset if row.barrier else -1
    )


# ---- every sequence of deliveries ----

MAKE: dict[str, Callable[..., Work]] = {
    # Equal texts under unequal versions: what is "unchanged" must be met as well.
    "upsert 1": lambda **at: upsert("a", version=1, text="xy", **at),
    "upsert 2": lambda **at: upsert("a", version=2, text=f"y{at['offset']}", **at),
    "upsert 3": lambda **at: upsert("a", version=3, text="xy", **at),
    "delete 2": lambda **at: delete("a", version=2, **at),
    "tombstone": lambda **at: tombstone("a", **at),
}
VERSIONED = [kind for kind in MAKE if kind != "tombstone"]


def logs(kinds: Iterable[str], longest: int) -> Iterator[list[Work]]:
    for length in range(1, longest + 1):
        for log in product(kinds, repeat=length):
            yield [MAKE[kind](offset=offset) for offset, kind in enumerate(log)]


def reached(
    first: object, steps: Callable[[Row, object], Iterable[tuple[Work | None, object]]]
) -> list[tuple[Row, object]]:
    """Walk through all states from an empty table and a first state of the delivery."""
    todo: list[tuple[Row, object]] = [(None, first)]
    seen = {(says(None), first)}
    for row, state in todo:
        for delivered, after in steps(row, state):
            changed = row if delivered is None else deliver(row, delivered)
            if (says(changed), after) not in seen:
                seen.add((says(changed), after))
                todo.append((changed, after))
    return todo


def in_any_order(log: list[Work]) -> list[tuple[Row, frozenset[Work]]]:
    return reached(frozenset(), lambda _, seen: ((one, seen | {one}) for one in log))


def in_log_order_with_rewinds(log: list[Work]) -> list[tuple[Row, int]]:
    def steps(_: Row, position: int) -> Iterator[tuple[Work | None, int]]:
        if position < len(log):
            yield log[position], position + 1
        yield from ((None, back) for back in range(position))

    return reached(0, steps)


def test_the_order_rule_is_that_of_the_checked_protocol_in_every_state():
    compared = 0
    for log in logs(MAKE, 4):
        for row, _ in in_any_order(log):
            for one in log:
                expected = newer_there(one, there(row))
                assert newer(one.rank, row) is expected
                after = row_there(one, there(row)) if expected else there(row)
                assert there(deliver(row, one)) == after
                compared += 1
    assert compared > 40_000


def test_logs_with_versions_converge_in_every_order_with_every_redelivery():
    for log in logs(VERSIONED, 4):
        expected = says(fold(log))
        ends = [row for row, seen in in_any_order(log) if len(seen) == len(log)]
        assert {says(row) for row in ends} == {expected}


def test_logs_with_tombstones_converge_in_log_order_with_every_rewind():
    for log in logs(MAKE, 4):
        expected = says(fold(log))
        ends = [row for row, at in in_log_order_with_rewinds(log) if at == len(log)]
        assert {says(row) for row in ends} == {expected}


def test_dead_letters_that_are_replayed_at_any_time_converge_to_the_whole_log():
    """A replay stands where its original stood, whatever was stored meanwhile."""
    for log in logs(MAKE, 3):
        versioned = [one for one in log if one.rank.version is not None]
        for poison in chain.from_iterable(
            combinations(versioned, size) for size in range(1, len(versioned) + 1)
        ):
            ends = replayed(log, frozenset(poison))
            assert {says(row) for row in ends} == {says(fold(log))}


def replayed(log: list[Work], poison: frozenset[Work]) -> list[Row]:
    def steps(_: Row, state: tuple[int, frozenset[Work]]) -> Iterator[tuple[object, object]]:
        position, again = state
        if position < len(log):
            one = log[position]
            yield None if one in poison else one, (position + 1, again)
        yield from ((None, (back, again)) for back in range(position))
        for one in poison - again:
            if one.position.offset < position:
                yield one, (position, again | {one})

    states = reached((0, frozenset()), steps)
    return [row for row, state in states if state == (len(log), poison)]


def test_two_partitions_of_one_document_converge_by_version_then_timestamp():
    for log in logs(VERSIONED, 3):
        for places in product((0, 1), repeat=len(log)):
            spread = [
                work(one.event, of=claim(place), offset=at, timestamp_ms=at)
                for at, (one, place) in enumerate(zip(log, places, strict=True))
            ]
            ends = [row for row, seen in in_any_order(spread) if len(seen) == len(log)]
            assert {says(row) for row in ends} == {says(fold(spread))}


def test_a_row_has_at_every_moment_the_chunks_of_its_own_version():
    """S6 of the protocol."""
    for log in logs(MAKE, 4):
        texts = {one.rank.order: getattr(one.event, "text", "") for one in log}
        for row, _ in in_any_order(log):
            if row is not None:
                text = "" if row.deleted else texts[row.order]
                assert row.chunks == tuple(map(stored, cut(text)))
                assert row.content_hash == (None if row.deleted else text.encode())


# ---- the counterexamples of the protocol ----


def test_an_older_version_that_comes_again_is_superseded():
    """C0."""
    row = fold([upsert("a", version=1, offset=0), upsert("a", version=2, offset=1)])
    assert settled(upsert("a", version=1, offset=0), Base(row)) == Superseded()


def test_the_same_version_and_position_is_unchanged():
    for one in (upsert("a", version=2), delete("a", version=2), tombstone("a")):
        assert settled(one, Base(fold([one]))) == Unchanged()


def test_an_unchanged_text_still_raises_the_version():
    """C5."""
    row = fold([upsert("a", version=1, text="X")])
    change = decide(upsert("a", version=3, text="X", offset=1), Base(row))
    assert (change.insert, change.move, change.remove, change.kept) == ((), (), (), 1)
    row = apply(row, change)
    assert row.version == 3
    assert settled(upsert("a", version=2, text="Y", offset=2), Base(row)) == Superseded()


def test_a_change_set_names_the_row_it_was_computed_from():
    """C6: without it a write between prepare and store would be torn."""
    row = fold([upsert("a", version=1, text="xy")])
    late = decide(upsert("a", version=3, text="xw", offset=2), Base(row))
    moved = deliver(row, upsert("a", version=2, text="yz", offset=1))
    assert late.base is row
    assert late.base.revision != moved.revision


def test_a_replayed_dead_letter_is_older_than_what_came_after_its_original():
    """C7."""
    row = fold([upsert("a", version=5, text="Y", offset=1)])
    replay = upsert("a", version=5, text="X", offset=2)
    assert settled(replay, Base(row)) is None
    replay.rank = Rank(5, upsert("a", offset=0).rank.order)
    assert settled(replay, Base(row)) == Superseded()


@pytest.mark.parametrize("again", [0, 1, 2], ids="again from {}".format)
def test_a_delete_without_a_version_beats_all_before_it_and_nothing_after_it(again):
    """C8."""
    log = [upsert("a", version=5), tombstone("a", offset=1), upsert("a", version=3, offset=2)]
    row = fold(log[: again + 1] + log)
    assert (row.version, row.deleted) == (3, False)
    assert row.barrier == log[1].rank.order


def test_a_replay_does_not_resurrect_what_was_deleted_without_a_version():
    """C9."""
    row = fold([tombstone("a", offset=1)])
    replay = upsert("a", version=5, offset=2)
    replay.rank = Rank(5, upsert("a", offset=0).rank.order)
    assert settled(replay, Base(row)) == Superseded()


def test_of_equal_versions_the_later_offset_stands():
    first, second = upsert("a", version=2, offset=0), delete("a", version=2, offset=1)
    assert fold([first, second]).deleted
    assert fold([second, first]).deleted


# ---- deletes ----


def test_a_document_that_was_never_seen_gets_a_tombstone():
    change = decide(delete("a", version=4), Base())
    assert (change.base, change.remove, change.keeps_row) == (None, (), False)
    row = apply(None, change)
    assert (row.version, row.deleted, row.chunks) == (4, True, ())
    assert settled(upsert("a", version=3, offset=1), Base(row)) == Superseded()


@pytest.mark.parametrize("make", [delete, tombstone])
def test_a_delete_takes_all_chunks_and_nothing_else(make):
    row = fold([upsert("a", version=1, text="xyx")])
    change = decide(make("a", offset=1), Base(row))
    assert set(change.remove) == {(b"x", 0), (b"x", 1), (b"y", 0)}
    assert (change.insert, change.move, change.deleted) == ((), (), True)


def test_a_delete_with_a_version_keeps_the_barrier():
    row = fold([tombstone("a", offset=1), delete("a", version=1, offset=2)])
    assert row.barrier == tombstone("a", offset=1).rank.order


def test_a_late_delete_without_a_version_only_raises_the_barrier():
    row = fold([upsert("a", version=1, text="x", offset=5)])
    change = decide(tombstone("a", offset=3), Base(row))
    assert change.keeps_row
    assert (change.remove, change.barrier) == ((), tombstone("a", offset=3).rank.order)
    assert apply(row, change) == replace(row, revision=2, barrier=change.barrier)


# ---- scopes ----


@pytest.mark.parametrize(
    ("scope_version", "version", "yes"),
    [(None, 0, False), (4, 5, False), (5, 5, True), (6, 5, True), (0, 0, True)],
)
def test_a_scope_reaches_every_version_that_is_not_higher(scope_version, version, yes):
    assert reaches(scope_version, version) is yes
    base = Base(scope_version=scope_version)
    expected = Superseded() if yes else None
    assert settled(upsert("a", version=version), base) == expected
    assert settled(delete("a", version=version), base) == expected


def test_a_scope_does_not_reach_a_delete_without_a_version():
    assert settled(tombstone("a"), Base(scope_version=9)) is None


def test_what_the_row_carries_is_unchanged_also_under_a_scope():
    one = upsert("a", version=2)
    assert settled(one, Base(fold([one]), scope_version=9)) == Unchanged()


# ---- upserts ----


@pytest.mark.parametrize(
    ("row", "content", "same"),
    [
        (fold([upsert("a", text="X")]), b"X", True),
        (fold([upsert("a", text="X")]), b"Y", False),
        (fold([delete("a")]), b"X", False),
        (replace(fold([upsert("a", text="X")]), deleted=True), b"X", False),
        (None, b"X", False),
    ],
)
def test_only_a_living_row_of_the_same_hash_has_the_same_content(row, content, same):
    assert same_content(Base(row), content) is same


@st.composite
def texts(draw: st.DrawFn) -> tuple[Chunk, ...]:
    """Chunks of few contents, so that equal ones occur, at places of their own."""
    chunks = cut(draw(st.text("abcd", max_size=8)))
    places = st.tuples(st.integers(0, 2), st.integers(3, 4), st.sampled_from([None, "h"]))
    moved = [
        replace(chunk, start=start, end=end, heading=heading)
        for chunk in chunks
        for start, end, heading in [draw(places)]
    ]
    return tuple(draw(st.permutations(moved)))


@given(texts(), texts())
def test_a_change_set_makes_exactly_the_new_chunks_out_of_the_old_ones(old, new):
    one = upsert("a")
    row = StoredDocument(1, *one.rank, None, False, b"old", tuple(map(stored, old)))  # noqa: FBT003
    change = changeset.upsert(
        upsert("a", version=2, offset=1), collection(), Base(row), b"new", new
    )
    after = apply(row, change)
    assert set(after.chunks) == set(map(stored, new))
    before, wanted = {chunk.id for chunk in old}, {chunk.id for chunk in new}
    assert {chunk.id for chunk in change.insert} == wanted - before
    assert set(change.remove) == before - wanted
    assert change.kept == len(before & wanted)
    # What stands where it stood is not touched, and nothing is named twice.
    touched = [stored(chunk) for chunk in (*change.move, *change.insert)]
    assert set(touched) == set(map(stored, new)) - set(row.chunks)
    assert len(touched) == len(set(touched))
    assert len(change.remove) == len(set(change.remove))


def test_a_row_that_was_deleted_gets_all_chunks_anew():
    row = fold([delete("a", version=1)])
    change = decide(upsert("a", version=2, text="xy", offset=1), Base(row))
    assert (len(change.insert), change.kept, change.deleted) == (2, 0, False)


TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
AT = datetime(2024, 5, 1, 12, 30, 0, 250_000, tzinfo=UTC)


def test_an_upsert_carries_what_its_event_says():
    event = DocumentUpserted(
        tenant="tenant",
        collection="articles",
        id="a",
        version=1,
        text="x",
        content_type="text/markdown",
        metadata={"k": [1, "ü"]},
        occurred_at=AT,
    )
    one = work(event)
    one.traceparent = TRACEPARENT
    change = decide(one, Base())
    assert change.key == one.document_key
    assert change.collection == collection()
    assert change.rank == one.rank
    assert change.content_hash == b"x"
    assert (change.content_type, change.metadata) == (
        "text/markdown",
        '{"k":[1,"ü"]}'.encode(),
    )
    assert change.trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert change.occurred_at_ms == 1_714_566_600_250


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("9999-12-31T23:59:59.999999+00:00", "9999-12-31T23:59:59.999000+00:00"),
        ("9999-12-31T23:59:59-12:00", "9999-12-31T23:59:59.999000+00:00"),
        ("0001-01-01T00:00:00+12:00", "0001-01-01T00:00:00+00:00"),
        ("2024-05-01T12:30:00.2504+00:00", "2024-05-01T12:30:00.250000+00:00"),
    ],
)
def test_when_it_occurred_is_a_time_that_readers_can_hold(said, kept):
    """PostgreSQL has later and earlier years; clients, Parquet and RFC 3339 have not."""
    event = DocumentUpserted(
        tenant="tenant",
        collection="articles",
        id="a",
        version=1,
        text="x",
        occurred_at=datetime.fromisoformat(said),
    )
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    change = decide(work(event), Base())
    stored_at = epoch + timedelta(milliseconds=change.occurred_at_ms)
    assert stored_at == datetime.fromisoformat(kept)


def test_a_delete_carries_what_its_event_says():
    event = DocumentDeleted(
        tenant="tenant", collection="articles", id="a", version=1, occurred_at=AT
    )
    one = work(event)
    one.traceparent = TRACEPARENT
    change = decide(one, Base())
    assert change.key == one.document_key
    assert change.collection == collection()
    assert change.rank == one.rank
    assert change.trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert change.occurred_at_ms == 1_714_566_600_250


@pytest.mark.parametrize("make", [upsert, delete, tombstone])
def test_what_an_event_does_not_say_is_not_made_up(make):
    change = decide(make("a"), Base())
    assert (change.metadata, change.content_type) == (None, None)
    assert (change.trace_id, change.occurred_at_ms, change.barrier is None) == (
        None,
        None,
        make is not tombstone,
    )


def test_what_is_moved_is_not_bought_again():
    """An inserted paragraph in front shifts the others and buys one vector."""
    row = fold([upsert("a", version=1, text="xyz")])
    change = decide(upsert("a", version=2, text="wxyz", offset=1), Base(row))
    assert [chunk.content for chunk in change.insert] == ["w"]
    assert [chunk.content for chunk in change.move] == ["x", "y", "z"]
    assert (change.remove, change.kept) == ((), 3)
