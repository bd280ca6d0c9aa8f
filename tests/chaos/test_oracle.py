"""
The oracle finds each anomaly that is planted in a history by hand, and none in a clean one.

The clean history: two partitions, two workers and a takeover; documents that are updated,
deleted, swept by a delete without a version, replayed; poison of both kinds.
"""

import json
from copy import deepcopy

import pytest

from tests.chaos.history import (
    Change,
    Chunk,
    Claimed,
    Document,
    History,
    Ledgered,
    Letter,
    Order,
    Progressed,
    Record,
    Row,
    Sample,
    State,
)
from tests.chaos.oracle import ANOMALIES, check, chunks_of, event_of, fold, purchases, vector_of
from tests.support.provider import vector_of as provided
from worker.core.chunking import split
from worker.core.model import ChunkingOptions

TOPIC = "t"
ONE = (TOPIC, 1)
ZERO = (TOPIC, 0)


def order(partition, offset):
    return Order(TOPIC, partition, offset, 1000 + offset)


def name(identity):
    return Document("acme", "articles", identity)


def text(identity, version):
    return f"{identity} version {version} ".ljust(48, "x") + f"tail of {identity}"


def upsert(partition, offset, identity, version, poison=None, words=None):
    value = {"type": "upsert", "tenant": "acme", "collection": "articles", "id": identity}
    value |= {"version": version, "text": words or text(identity, version)}
    key = f"acme/articles/{identity}".encode()
    return Record(order(partition, offset), key, json.dumps(value).encode(), poison)


def delete(partition, offset, identity, version):
    value = {"type": "delete", "tenant": "acme", "collection": "articles", "id": identity}
    key = f"acme/articles/{identity}".encode()
    return Record(
        order(partition, offset), key, json.dumps(value | {"version": version}).encode()
    )


def barrier(partition, offset, identity):
    return Record(order(partition, offset), f"acme/articles/{identity}".encode(), None)


def chunks(identity, version):
    return chunks_of("articles", text(identity, version))


@pytest.fixture
def clean():
    """A history without a fault, that has a little of everything."""
    history = History(
        records=[
            upsert(0, 0, "a", 1),
            upsert(0, 1, "a", 2),
            upsert(0, 2, "a", 1),  # replayed by the publisher
            upsert(0, 3, "b", 1),
            delete(0, 4, "b", 2),
            Record(order(0, 5), b"acme/articles/c", b"{", "undecodable"),
            upsert(1, 0, "d", 7),
            barrier(1, 1, "d"),
            upsert(1, 2, "d", 3),
            upsert(1, 3, "e", 1),
            upsert(1, 4, "e", 2, "rejected_input", "refused"),
            upsert(1, 5, "f", 1, "rejected_input", "refused as well, and then deleted"),
            delete(1, 6, "f", 2),
        ],
        letters=[Letter(TOPIC, 0, 5, "undecodable"), Letter(TOPIC, 1, 4, "rejected_input")],
        ends={ZERO: 6, ONE: 7},
        workers={501: "w1", 502: "w2"},
    )
    claims = history.claims
    claims += [Claimed(1, ZERO, 1, 501), Claimed(2, ONE, 1, 501)]
    steps = [
        (3, "a", Row(1, order(0, 0)), 501),
        (4, "d", Row(7, order(1, 0)), 501),
        (6, "a", Row(2, order(0, 1)), 501),
        (9, "b", Row(1, order(0, 3)), 501),
        (11, "d", Row(None, order(1, 1), order(1, 1), deleted=True), 502),
        (12, "d", Row(3, order(1, 2), order(1, 1)), 502),
        (13, "b", Row(2, order(0, 4), deleted=True), 501),
        (14, "e", Row(1, order(1, 3)), 502),
        (17, "f", Row(2, order(1, 6), deleted=True), 502),
    ]
    claims.append(Claimed(10, ONE, 2, 502))
    history.changes = [Change(seq, name(who), row, port) for seq, who, row, port in steps]
    history.ledger = [
        Ledgered(15, ZERO, 5, "pending"),
        Ledgered(16, ZERO, 5, "published"),
        Ledgered(18, ONE, 4, "published"),
    ]
    history.progress = [
        Progressed(5, ONE, 1),
        Progressed(8, ZERO, 3),
        # The group's offset said less: the claim of the new owner starts there.
        Progressed(10, ONE, 0),
        Progressed(19, ZERO, 6),
        Progressed(20, ONE, 7),
    ]
    history.samples = [
        Sample(7, {ZERO: 0, ONE: 1}),
        Sample(9, {ZERO: 3, ONE: 0}),
        Sample(21, {ZERO: 6, ONE: 7}),
    ]
    history.rows = {change.document: change.row for change in history.changes}
    shown = {"a": 2, "d": 3, "e": 1}
    history.chunks = [
        Chunk(name(who), seq, content, vector_of(content))
        for who, version in shown.items()
        for seq, content in enumerate(chunks(who, version))
    ]
    history.states = {
        State(name("a"), Row(1, order(0, 0)), chunks("a", 1)),
        State(name("a"), Row(2, order(0, 1)), chunks("a", 2)),
        State(name("b"), Row(2, order(0, 4), deleted=True), ()),
        State(name("never seen"), None, ()),
    }
    history.embedded.update(chunk.content for chunk in history.chunks)
    return history


def test_a_clean_history_is_clean(clean):
    report = check(clean)
    assert report.anomalies == {}
    assert report.costs["duplicate embeddings"] == 0


# ---- one fault each ----


def lost_row(history):
    del history.rows[name("e")]
    history.chunks = [chunk for chunk in history.chunks if chunk.document != name("e")]


def lost_record(history):
    history.changes = [change for change in history.changes if change.document != name("b")]


def stale(history):
    history.rows[name("a")] = Row(1, order(0, 0))


def stale_by_place(history):
    history.records.append(upsert(0, 6, "a", 2))


def overwritten(history):
    history.changes.append(Change(30, name("a"), Row(1, order(0, 2)), 501))
    history.changes.append(Change(31, name("a"), Row(2, order(0, 1)), 501))


def overwritten_by_place(history):
    history.changes.append(Change(30, name("d"), Row(3, order(1, 1), order(1, 1)), 502))


def overwritten_from_before_a_delete(history):
    """The row had forgotten the delete without a version, and knew of it again in the end."""
    history.changes.append(Change(30, name("d"), Row(7, order(1, 0)), 502))
    history.changes.append(
        Change(31, name("d"), Row(None, order(1, 1), order(1, 1), deleted=True), 502)
    )
    history.changes.append(Change(32, name("d"), Row(3, order(1, 2), order(1, 1)), 502))


def delete_forgotten(history):
    history.rows[name("d")] = Row(3, order(1, 2))


def resurrected(history):
    history.rows[name("b")] = Row(1, order(0, 3))


def kept_alive(history):
    history.rows[name("f")] = Row(1, order(1, 5))


def torn(history):
    mixed = chunks("a", 2)[:1] + chunks("d", 3)[1:]
    history.states.add(State(name("a"), Row(2, order(0, 1)), mixed))


def torn_by_half(history):
    del history.chunks[0]


def torn_in_a_refused_text(history):
    row = Row(2, order(1, 4))
    history.states.add(State(name("e"), row, ("refused",)))


def torn_by_place(history):
    history.chunks[1] = history.chunks[1]._replace(seq=5)


def torn_on_one_place(history):
    history.chunks[1] = history.chunks[1]._replace(seq=0)


def torn_from_its_version(history):
    """For a moment the row says a version that its record does not."""
    history.changes.append(Change(30, name("a"), Row(3, order(0, 1)), 501))
    history.changes.append(Change(31, name("a"), Row(2, order(0, 1)), 501))


def torn_from_its_name(history):
    history.states.add(State(name("b"), Row(2, order(0, 1)), chunks("a", 2)))


def orphan(history):
    row = Row(2, order(0, 4), deleted=True)
    history.states.add(State(name("b"), row, chunks("b", 1)))


def orphan_of_no_row(history):
    history.chunks.append(Chunk(name("gone"), 0, "x", vector_of("x")))


def aborted(history):
    row = Row(9, order(0, 77))
    history.changes.append(Change(30, name("z"), row, 501))
    history.rows[name("z")] = row


def aborted_and_repaired(history):
    """Seen in a snapshot only."""
    row = Row(9, order(0, 77))
    history.states.add(State(name("a"), row, ("x",)))


def deleted_by_nobody(history):
    row = Row(3, order(1, 2), order(1, 0))
    history.changes[5] = history.changes[5]._replace(row=row)


def skipped_in_the_table(history):
    history.progress.insert(1, Progressed(5, ZERO, 2))


def skipped_in_kafka(history):
    history.progress.insert(1, Progressed(6, ZERO, 1))
    history.samples.insert(1, Sample(8, {ZERO: 5, ONE: 1}))


def skipped_a_letter_that_is_pending(history):
    history.ledger = [entry for entry in history.ledger if entry.state == "pending"]


def ahead(history):
    history.samples[0] = Sample(7, {ZERO: 1, ONE: 1})


def regress(history):
    history.progress.append(Progressed(22, ZERO, 5))
    history.progress.append(Progressed(23, ZERO, 6))


def zombie(history):
    history.changes[5] = history.changes[5]._replace(port=501)


def zombie_with_a_delete_without_version(history):
    history.changes[4] = history.changes[4]._replace(port=501)


def zombie_with_a_letter(history):
    history.ledger.insert(2, Ledgered(17, ONE, 4, "pending", port=501))


def wrong_vector(history):
    history.chunks[0] = history.chunks[0]._replace(vector=vector_of("another text"))


def nearly_the_vector(history):
    first, *rest = history.chunks[0].vector
    near = (first * (1 + 2**-23), *rest)
    history.chunks[0] = history.chunks[0]._replace(vector=near)


def letter_missing(history):
    del history.letters[0]


def letter_of_another_reason(history):
    history.letters[0] = history.letters[0]._replace(reason="worker_killer")


def letter_of_two_reasons(history):
    history.letters.insert(0, history.letters[0]._replace(reason="worker_killer"))


def letter_missing_of_what_could_pass(history):
    """The ledger has a letter for a record that something newer has beaten."""
    history.ledger.append(Ledgered(22, ZERO, 0, "published"))


def letter_extra(history):
    history.letters.append(Letter(TOPIC, 0, 3, "retries_exhausted"))


def unseen(history):
    history.ends[ONE] = 8


def ahead_at_the_end(history):
    history.claims.append(Claimed(22, ONE, 3, 501))
    history.progress.append(Progressed(23, ONE, 2))


def coalesced(history):
    """The version before a refused one was settled with it."""
    lost_row(history)


PLANTED = {
    lost_row: "lost",
    lost_record: "lost",
    stale: "stale",
    stale_by_place: "stale",
    overwritten: "stale-overwrite",
    overwritten_by_place: "stale-overwrite",
    overwritten_from_before_a_delete: "stale-overwrite",
    delete_forgotten: "stale",
    resurrected: "resurrected",
    kept_alive: "resurrected",
    torn: "torn",
    torn_by_half: "torn",
    torn_in_a_refused_text: "torn",
    torn_by_place: "torn",
    torn_on_one_place: "torn",
    torn_from_its_version: "torn",
    torn_from_its_name: "torn",
    orphan: "orphan",
    orphan_of_no_row: "orphan",
    aborted: "aborted-read",
    aborted_and_repaired: "aborted-read",
    deleted_by_nobody: "aborted-read",
    skipped_in_the_table: "watermark-skip",
    skipped_in_kafka: "watermark-skip",
    skipped_a_letter_that_is_pending: "watermark-skip",
    ahead: "ahead-of-store",
    regress: "regress",
    zombie: "zombie-write",
    zombie_with_a_delete_without_version: "zombie-write",
    zombie_with_a_letter: "zombie-write",
    wrong_vector: "wrong-vector",
    nearly_the_vector: "wrong-vector",
    letter_missing: "dlq-missing",
    letter_of_another_reason: "dlq-missing",
    letter_of_two_reasons: "dlq-missing",
    letter_missing_of_what_could_pass: "dlq-missing",
    letter_extra: "dlq-extra",
    unseen: "unseen",
    ahead_at_the_end: "kafka-ahead-of-next_offset",
    coalesced: "coalesced-into-dead-letter",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found_under_its_name(clean, plant):
    plant(clean)
    assert PLANTED[plant] in check(clean).anomalies


def test_every_anomaly_is_planted():
    assert set(PLANTED.values()) == set(ANOMALIES)


def test_what_was_paid_twice_is_a_cost_and_no_fault(clean):
    clean.embedded.update(["twice", "twice", "three", "three", "three"])
    clean.letters.append(clean.letters[0])
    report = check(clean)
    assert report.is_clean
    assert report.costs["duplicate embeddings"] == 3
    assert report.costs["duplicate dead letters"] == 1


def test_a_record_that_is_blamed_for_kills_is_left_out_where_that_is_asked_for(clean):
    clean.letters.append(Letter(TOPIC, 0, 2, "worker_killer"))
    assert "dlq-extra" in check(deepcopy(clean)).anomalies
    assert clean.blame("worker_killer") == 1
    assert check(clean).is_clean


def test_a_fall_of_kafka_s_offset_is_a_cost_and_an_unknown_offset_is_none(clean):
    clean.samples[1:1] = [Sample(8, {ZERO: 3, ONE: 1}), Sample(8, {ZERO: 0, ONE: 1})]
    clean.samples.append(Sample(22, {ZERO: 5, ONE: 7}))
    clean.samples.append(Sample(23, {ZERO: 6, ONE: 7}))
    assert check(clean).costs["rewinds of Kafka's offsets"] == 1


def test_a_record_is_not_covered_by_what_comes_later(clean):
    """A skip is seen although it was made good."""
    early = deepcopy(clean)
    early.progress.insert(1, Progressed(8, ZERO, 4))
    early.progress.insert(3, Progressed(9, ZERO, 4))
    assert len(check(early).anomalies["watermark-skip"]) == 1


# ---- the oracle's own rules, against those of the worker ----


def test_a_delete_without_version_stands_until_something_comes_after_it():
    def of(*records):
        return fold(map(event_of, records))

    low, high, gone = upsert(1, 5, "d", 1), upsert(1, 3, "d", 9), barrier(1, 4, "d")
    assert of(high, gone, low).version == 1
    assert of(high, gone).version is None
    assert of(low, high).version == 9


def test_a_text_is_needed_again_only_where_it_had_gone():
    older, newer = upsert(0, 0, "a", 1), upsert(0, 1, "a", 2)
    history = History(records=[older, newer, upsert(0, 2, "a", 1), barrier(0, 3, "a")])
    assert set(purchases(history).values()) == {1}
    history.records.append(upsert(0, 4, "a", 1))
    needed = purchases(history)
    assert {text for text, count in needed.items() if count == 2} == set(chunks("a", 1))


@pytest.mark.parametrize("length", [10, 47, 48, 49, 59, 60, 61, 200, 1000])
def test_texts_are_cut_as_the_worker_cuts_them(length):
    words = " ".join(f"word{number}" for number in range(length))[:length]
    for collection, options in {
        "notes": ChunkingOptions("none", 1),
        "articles": ChunkingOptions("fixed", 48),
        "pages": ChunkingOptions("text", 60),
    }.items():
        theirs = tuple(chunk.content for chunk in split(words, None, options))
        assert chunks_of(collection, words) == theirs


def test_vectors_are_those_of_the_provider():
    for words in ("a", "some words", "x" * 1000):
        assert vector_of(words) == tuple(map(float, provided(words, "test-model", 8)))
