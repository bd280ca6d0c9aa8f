"""What was paid for again is charged to a kill or to a drain only where it was lost there."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

from tests.chaos.bill import bought_again, left_behind, taken_along
from tests.chaos.history import Change, Document, History, Order, Record, Row
from tests.chaos.timed import UNFINISHED

NOTE = Document("acme", "notes", "a")


def moment(second):
    return datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=second)


def order(offset):
    return Order("t", 0, offset, 1000)


def upsert(offset, version, text):
    value = {"tenant": "acme", "collection": "notes", "id": "a", "version": version}
    return Record(order(offset), b"acme/notes/a", json.dumps(value | {"text": text}).encode())


def worker(name, *unfinished):
    lines = [{"action": UNFINISHED, "place": ["t", 0, offset]} for offset in unfinished]
    return SimpleNamespace(name=name, lines=lambda: lines)


def world(*, paid=(), sold=(), changes=(), workers=()):
    """A world in which document `a` says `one`, nothing, `one` again and then `two`."""
    records = [
        upsert(0, 1, "one"),
        Record(order(1), b"acme/notes/a", None),
        upsert(2, 1, "one"),
        upsert(3, 2, "two"),
    ]
    rows = [
        Row(1, order(0)),
        Row(None, order(1), order(1), deleted=True),
        Row(1, order(2), order(1)),
        Row(2, order(3), order(1)),
    ]
    history = History(
        records=records,
        changes=[
            Change(seq, NOTE, rows[offset], None, moment(at))
            for seq, (offset, at) in enumerate(changes)
        ],
    )
    fleet = SimpleNamespace(
        workers=workers,
        embedded_twice=lambda: {text: n for text, n in Counter(paid).items() if n > 1},
    )
    return SimpleNamespace(history=history, fleet=fleet, sold=dict(sold))


def test_what_the_log_asks_for_is_not_bought_again_however_often_that_is():
    assert bought_again(world(paid=["one", "one", "two"])) == {}
    assert bought_again(world(paid=["one"] * 4 + ["two"] * 2)) == {"one": 2, "two": 1}


def test_a_poison_text_may_be_bought_once():
    assert bought_again(world(paid=["a part of poison"])) == {}
    assert bought_again(world(paid=["a part of poison"] * 2)) == {"a part of poison": 1}


def test_a_kill_takes_along_what_was_bought_and_not_stored():
    sold = {"w": {"one": moment(1), "two": moment(1)}}
    stored = world(sold=sold, changes=[(0, 2)])
    assert taken_along(stored, [(worker("w"), moment(3))]) == {"two": 1}
    assert taken_along(stored, [(worker("w"), moment(1.5))]) == {"one": 1, "two": 1}


def test_what_was_stored_before_it_was_bought_again_is_taken_along():
    changes = [(0, 2), (1, 3)]
    assert taken_along(
        world(sold={"w": {"one": moment(4)}}, changes=changes), [(worker("w"), moment(5))]
    ) == {"one": 1}
    assert (
        taken_along(
            world(sold={"w": {"one": moment(4)}}, changes=[*changes, (2, 4.5)]),
            [(worker("w"), moment(5))],
        )
        == {}
    )


def test_a_text_that_stays_is_stored_once():
    changes = [(0, 2), (0, 4)]
    sold = {"w": {"one": moment(3)}}
    assert taken_along(world(sold=sold, changes=changes), [(worker("w"), moment(5))]) == {
        "one": 1
    }


def test_every_kill_counts():
    sold = {"w": {"two": moment(1)}, "v": {"two": moment(3)}}
    killed = [(worker("w"), moment(2)), (worker("v"), moment(4))]
    assert taken_along(world(sold=sold), killed) == {"two": 2}


def test_a_drain_leaves_the_texts_of_what_was_begun_once_a_worker():
    workers = [worker("w", 0, 0, 1), worker("v", 0, 3), worker("u")]
    assert left_behind(world(workers=workers)) == {"one": 2, "two": 1}
