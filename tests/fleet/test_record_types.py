"""
The types of records that go wrong, each with what becomes of it, on a real worker.

A poison record becomes a dead letter that says why and is the record byte for byte; the others
of the table are none, and never become one. Nothing holds up the record behind it in its
partition. `ours` is the reason code, or the end of a record that is no poison.

| row | type | ours |
| --- | --- | --- |
| 1 | bytes that are no UTF-8, surrogates encoded as UTF-8 | `undecodable` |
| 2 | malformed JSON, BOM, trailing junk, control characters, NaN | `undecodable` |
| 3 | an escape of a lone surrogate | `undecodable` |
| 4 | nested beyond any stack; metadata of more than 64 levels | `undecodable`; `oversize` |
| 5 | a JSON key twice | stored: the last one counts |
| 6 | a field that is missing or wrong; an unknown type; an unknown collection | \
`invalid_schema`; `unknown_type`; `unknown_collection` |
| 7 | an integer beyond int64 | `invalid_schema` |
| 8 | no key; a key that names nothing, or another document | `missing_key`; `invalid_key`, \
`key_mismatch` |
|   | a null value | a delete; of a scope `invalid_schema` |
| 9 | an empty text, or white space only | stored without chunks |
| 10 | U+0000 | replaced by U+FFFD and counted; or `nul_character`, where configured |
| 11 | metadata or names that are too large, numbers beyond a double | `oversize`; \
`invalid_schema` |
| 12 | a text that is too large | `oversize`, before anything is embedded |
| 13 | a chunk that is too long for the model | `input_too_long` |
| 14 | a text that the content filter refuses, or that is refused for whatever reason | \
`content_filter`; `rejected_input` |
| 15 | a vector with NaN, infinity or of another size; one that its column cannot hold | \
`provider_bad_output`; `rejected_by_store` |
| 16 | a vector of zeros | `provider_bad_output` |
| 17 | a row that PostgreSQL refuses | `rejected_by_store`, with SQLSTATE and constraint only |
| 18 | a document twice in one batch | stored: the higher version stands |
| 19 | a database that is read-only, or ends the connection | waits; every other such \
SQLSTATE in `tests/adapters/test_pg_errors.py` |
| 20 | a record that ends the worker | `worker_killer`; on workers of its own |
| 21 | a version that is a time to come | `version_in_future` |
| 22 | an older version | superseded |
| 23 | partitions added to a topic in use | stored: versions say which one stands |
| 24 | a batch that cannot be read | `unreadable_batch`; on workers of its own |
| 25 | a tenant that nobody knows | none: every tenant is accepted |
"""

import json
import re
import time
from itertools import count
from typing import NamedTuple

import pytest
from aiokafka.admin import NewPartitions

from tests.support import provider
from tests.support.fleet import delete, upsert

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENVIRONMENT = {
    "EMBEDFLEET_INGEST_UNKNOWN_COLLECTION_GRACE_SECONDS": "1",
    "EMBEDFLEET_INGEST_MAX_TEXT_BYTES": "20000",
    "EMBEDFLEET_INGEST_VERSION_CLOCK": "seconds",
    "EMBEDFLEET_RETRY_CAP_SECONDS": "0.5",
    "OTEL_SDK_DISABLED": "false",
}
HEADERS = [("source", b"cms"), ("traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")]
KEY, GOOD = upsert("bad", 1, "text")
TOO_LONG, FILTERED, REFUSED = "more than the model reads", "indecent", "refused for no reason"
DAY_SECONDS = 86_400


def value(**changes):
    return json.dumps(json.loads(GOOD) | changes).encode()


def with_text(written: bytes) -> bytes:
    """The event with a text that is written exactly so."""
    return GOOD.replace(b'"text": "text"', b'"text": ' + written)


def with_metadata(written: bytes) -> bytes:
    return GOOD.replace(b'"text": "text"', b'"text": "text", "metadata": ' + written)


class Poison(NamedTuple):
    """A record that no worker can use, and the reason that its dead letter gives."""

    row: int
    name: str
    ours: str
    value: bytes | None
    key: bytes | None = KEY


def named(document: str) -> dict:
    """Key and value of an upsert of a document with another name."""
    key, content = upsert(document, 1, "text")
    return {"key": key, "value": content}


POISONS = [
    Poison(1, "no UTF-8", "undecodable", with_text(b'"\xff"')),
    Poison(1, "a surrogate in UTF-8", "undecodable", with_text(b'"a\xed\xa0\x80b"')),
    Poison(2, "no JSON", "undecodable", b"{nonsense"),
    Poison(2, "an empty value", "undecodable", b""),
    Poison(2, "a BOM", "undecodable", b"\xef\xbb\xbf" + GOOD),
    Poison(2, "trailing junk", "undecodable", GOOD + b" x"),
    Poison(2, "a raw control character", "undecodable", with_text(b'"a\x01b"')),
    Poison(2, "NaN", "undecodable", with_metadata(b'{"a": NaN}')),
    Poison(3, "a lone surrogate", "undecodable", with_text(b'"a\\ud800b"')),
    Poison(4, "deep beyond any stack", "undecodable", with_metadata(b'{"a":' + b"[" * 99_999)),
    Poison(
        4,
        "metadata that is too deep",
        "oversize",
        with_metadata(b'{"a":' * 70 + b"1" + b"}" * 70),
    ),
    Poison(6, "no version", "invalid_schema", b'{"type": "upsert", "tenant": "acme"}'),
    Poison(6, "a version that is no integer", "invalid_schema", value(version="1")),
    Poison(6, "a value that is no object", "invalid_schema", b"[1]"),
    Poison(6, "an unknown type", "unknown_type", value(type="rename")),
    Poison(7, "a version beyond int64", "invalid_schema", value(version=2**63)),
    Poison(8, "no key", "missing_key", GOOD, key=None),
    Poison(8, "a key of four parts", "invalid_key", GOOD, key=b"acme/articles/bad/x"),
    Poison(
        8, "a key that is no percent-encoding", "invalid_key", GOOD, key=b"acme/articles/%zz"
    ),
    Poison(8, "a key of another document", "key_mismatch", GOOD, key=b"acme/articles/other"),
    Poison(8, "a null value for a scope", "invalid_schema", None, key=b"acme/articles"),
    Poison(11, "metadata that is too large", "oversize", value(metadata={"a": "x" * 70_000})),
    Poison(11, "a name that is too long", "invalid_schema", **named("x" * 513)),
    Poison(11, "a number beyond a double", "invalid_schema", with_metadata(b'{"a": 1e999}')),
    Poison(12, "a text that is too large", "oversize", value(text="x" * 20_001)),
    Poison(
        6,
        "a collection that nobody creates",
        "unknown_collection",
        value(collection="nowhere"),
        key=b"acme/nowhere/bad",
    ),
    Poison(14, "a text refused for whatever reason", "rejected_input", value(text=REFUSED)),
    Poison(17, "a row that a trigger refuses", "rejected_by_store", **named("trigger")),
    Poison(17, "a row that a constraint refuses", "rejected_by_store", **named("constraint")),
    Poison(
        21,
        "a version that is a time to come",
        "version_in_future",
        value(version=int(time.time()) + DAY_SECONDS),  # noqa: TID251 - as a publisher has it
    ),
]
REFUSALS = """
create function refuse() returns trigger language plpgsql as
$$ begin raise exception 'a secret text' using constraint = 'short', detail = 'a secret text';
end $$;
create trigger refuse before insert on document for each row
when (new.id = 'trigger') execute function refuse();
alter table document add constraint no_such_name check (id <> 'constraint');
"""
FACTS = {
    "a text refused for whatever reason": {
        "provider-status": "400",
        "provider-request-id": "req_refused",
    },
    "a row that a trigger refuses": {"sqlstate": "P0001", "constraint": "short"},
    "a row that a constraint refuses": {"sqlstate": "23514", "constraint": "no_such_name"},
}
FACT_NAMES = {"provider-status", "provider-request-id", "sqlstate", "constraint"}
BAD_VECTORS = {
    "NaN": provider.vector(float("nan"), *[1.0] * 7),
    "infinity": provider.vector(float("inf"), *[1.0] * 7),
    "too few dimensions": provider.vector(*[1.0] * 7),
    "too many dimensions": provider.vector(*[1.0] * 9),
    "no base64": provider.embedding("%%%"),
    "zeros": provider.vector(*[0.0] * 8),
}
"""Rows 15 and 16."""


async def letters_of(fleet, names) -> dict:
    """Document -> reason of the dead letters of these documents."""
    rows = await fleet.sql.fetch(
        "select document_id, reason from dead_letter where document_id = any($1)", list(names)
    )
    return {row["document_id"]: row["reason"] for row in rows}


async def pass_in_turn(fleet, *events):
    """Publish to one partition; returns when all are settled, and none is a dead letter."""
    before = await fleet.sql.fetchval("select count(*) from dead_letter")
    await fleet.publish(events, partition=0)
    await fleet.settled()
    assert await fleet.sql.fetchval("select count(*) from dead_letter") == before


async def test_every_poison_is_a_letter_with_its_reason_and_the_record_behind_it_passes(fleet):
    """Rows 1 to 4, 6 to 8, 11, 12, 17, 21."""
    headers = {"x-request-id": "req_refused"}
    fleet.provider.for_text(REFUSED, provider.status(400, "a secret text", headers=headers))
    await fleet.sql.execute(REFUSALS)
    records, positions = [], {}
    for number, poison in enumerate(POISONS):
        positions[poison.name] = (fleet.topic, 0, len(records))
        after = upsert(f"after {number}", 1, f"after {number}")
        records += [(poison.key, poison.value, HEADERS), after]
    await fleet.publish(records, partition=0)
    await fleet.settled()
    stored = await fleet.stored()
    assert stored == {f"after {number}": f"after {number}" for number in range(len(POISONS))}
    letters = {letter.position: letter for letter in await fleet.letters()}
    assert letters.keys() == set(positions.values())
    for poison in POISONS:
        letter = letters[positions[poison.name]]
        found = letter.reason, letter.key, letter.value
        assert found == (poison.ours, poison.key, poison.value), poison
        assert list(letter.originals) == HEADERS, poison
        envelope = letter.envelope
        assert (envelope["group"], envelope["attempts"]) == (fleet.kafka.group, "1"), poison
        assert envelope["first-seen"] == envelope["last-seen"], poison
        known = {fact: envelope[fact] for fact in FACT_NAMES & envelope.keys()}
        assert known == FACTS.get(poison.name, {}), poison
        assert "secret" not in str(envelope), poison
    ledger = await fleet.sql.fetch('select "offset", reason, state from dead_letter')
    assert {(row["offset"], row["reason"], row["state"]) for row in ledger} == {
        (positions[poison.name][2], poison.ours, "published") for poison in POISONS
    }
    refused = letters[positions["a row that a constraint refuses"]]
    detail = "SQLSTATE 23514 (CheckViolationError), constraint no_such_name"
    assert refused.envelope["detail"] == detail
    assert not any(text.startswith("xx") for text in fleet.provider.received)


async def test_a_json_key_that_comes_twice_counts_as_it_comes_last(fleet):
    """Row 5."""
    key, content = upsert("twice", 1, "first")
    content = content.replace(b'"text": "first"', b'"text": "first", "text": "last"')
    await pass_in_turn(fleet, (key, content), upsert("behind 5", 1, "behind 5"))
    stored = await fleet.stored()
    assert (stored["twice"], stored["behind 5"]) == ("last", "behind 5")


async def test_a_null_value_deletes_the_document_of_its_key(fleet):
    """Row 8."""
    key, content = upsert("gone", 7, "gone")
    await pass_in_turn(fleet, (key, content), (key, None), upsert("behind 8", 1, "behind 8"))
    assert (await fleet.row("gone"))["deleted"]
    stored = await fleet.stored()
    assert ("gone" in stored, stored["behind 8"]) == (False, "behind 8")


@pytest.mark.parametrize(("name", "text"), [("empty", ""), ("blank", " \t\n\u00a0\u2003 ")])
async def test_a_text_without_words_is_stored_without_chunks(fleet, name, text):
    """Row 9."""
    before = upsert(name, 1, f"{name}, but not yet")
    await pass_in_turn(fleet, before, upsert(name, 2, text), upsert(f"behind {name}", 1, "x"))
    row = await fleet.row(name)
    assert (row["version"], row["deleted"]) == (2, False)
    assert await fleet.chunks(name) == {}
    assert fleet.provider.received[text] == 0
    assert f"behind {name}" in await fleet.stored()


async def replaced(fleet) -> float:
    _, metrics = await fleet.workers[0].ask("/metrics")
    found = re.search(r"^embedfleet_nul_replaced_total\S* (\S+)$", metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def test_a_nul_is_replaced_in_texts_and_metadata_and_counted(fleet):
    """Row 10."""
    before = await replaced(fleet)
    event = upsert("nul", 1, "x\0y", metadata={"a\0": ["\0", {"b": "\0"}]})
    await pass_in_turn(fleet, event, upsert("behind 10", 1, "behind 10"))
    stored = await fleet.stored()
    assert (stored["nul"], stored["behind 10"]) == ("x\ufffdy", "behind 10")
    metadata = json.loads((await fleet.row("nul"))["metadata"])
    assert metadata == {"a\ufffd": ["\ufffd", {"b": "\ufffd"}]}
    assert await replaced(fleet) == before + 4


@pytest.mark.asyncio(loop_scope="function")
async def test_a_nul_is_a_dead_letter_where_that_is_configured(make_fleet):
    """Row 10."""
    fleet = await make_fleet(partitions=1)
    await fleet.start(EMBEDFLEET_INGEST_NUL="dead_letter")
    await fleet.publish([upsert("nul", 1, "x\0y"), upsert("behind", 1, "behind")])
    await fleet.settled()
    assert await fleet.stored() == {"behind": "behind"}
    assert [letter.reason for letter in await fleet.letters()] == ["nul_character"]


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("input_too_long", TOO_LONG, "context_length_exceeded"),
        ("content_filter", FILTERED, "content_filter"),
    ],
)
async def test_a_text_that_the_provider_refuses_is_a_letter_that_says_why(
    fleet, name, text, code
):
    """Rows 13 and 14."""
    fleet.provider.for_text(text, provider.status(400, code=code))
    events = [upsert(name, 1, text), upsert(f"behind {name}", 1, f"behind {name}")]
    await fleet.publish_together(events)
    await fleet.settled()
    assert await letters_of(fleet, [name, f"behind {name}"]) == {name: name}
    assert f"behind {name}" in await fleet.stored()
    assert fleet.provider.embedded[text] == 0


async def test_a_text_without_a_usable_vector_is_a_letter_while_others_are_answered(fleet):
    """Rows 15 and 16."""
    for name, reply in BAD_VECTORS.items():
        fleet.provider.for_text(f"vector of {name}", reply)
    pairs = [(upsert(name, 1, f"vector of {name}"), name) for name in BAD_VECTORS]
    events = [
        event
        for bad, name in pairs
        for event in (bad, upsert(f"behind {name}", 1, f"behind {name}"))
    ]
    others = (upsert(f"other {number}", 1, f"other {number}") for number in count())

    async def all_are_letters():
        return (await letters_of(fleet, BAD_VECTORS)).keys() == BAD_VECTORS.keys()

    async with fleet.flow(others):
        await fleet.publish(events, partition=0)
        await fleet.until(all_are_letters)
    await fleet.settled()
    reasons = await letters_of(fleet, BAD_VECTORS)
    assert reasons == dict.fromkeys(BAD_VECTORS, "provider_bad_output")
    stored = await fleet.stored()
    assert stored.keys().isdisjoint(BAD_VECTORS)
    assert {f"behind {name}" for name in BAD_VECTORS} <= stored.keys()
    await fleet.check_vectors()


async def test_a_vector_that_its_column_cannot_hold_is_refused_and_never_stored(fleet):
    """Row 15."""
    await fleet.create_collection("halves", storage="halfvec")
    fleet.provider.for_text("huge", provider.vector(70_000.0, *[1.0] * 7))
    await fleet.publish(
        [
            upsert("huge", 1, "huge", collection="halves"),
            upsert("behind huge", 1, "behind huge", collection="halves"),
        ],
        partition=0,
    )
    await fleet.settled()
    assert await letters_of(fleet, ["huge"]) == {"huge": "rejected_by_store"}
    shown = await fleet.sql.fetch('select document_id from "halves_chunks"')
    assert [row["document_id"] for row in shown] == ["behind huge"]


async def test_a_document_twice_in_one_batch_is_stored_at_its_higher_version(fleet):
    """Row 18."""
    before = await fleet.sql.fetchval("select count(*) from dead_letter")
    await fleet.publish_together(
        [
            upsert("rising", 1, "rising 1"),
            upsert("falling", 2, "falling 2"),
            upsert("rising", 2, "rising 2"),
            upsert("falling", 1, "falling 1"),
            upsert("equal", 1, "equal"),
            upsert("equal", 1, "equal"),
            delete("deleted", 2),
            upsert("deleted", 1, "deleted"),
        ]
    )
    await fleet.settled()
    assert await fleet.sql.fetchval("select count(*) from dead_letter") == before
    stored = await fleet.stored()
    names = "rising", "falling", "equal", "deleted"
    assert [stored.get(name) for name in names] == ["rising 2", "falling 2", "equal", None]


END_CONNECTIONS = """
select pg_terminate_backend(pid) from pg_stat_activity
where application_name = 'embedfleet' and datname = current_database()
"""


async def test_a_database_that_is_read_only_or_ends_connections_is_waited_for(fleet):
    """Row 19: 57P01 and 25006."""
    before = await fleet.sql.fetchval("select count(*) from dead_letter")
    database = await fleet.sql.fetchval("select current_database()")
    await fleet.sql.execute(f"alter database {database} set default_transaction_read_only = on")
    try:
        await fleet.sql.execute(END_CONNECTIONS)
        await fleet.publish([upsert("patient", 1, "patient")], partition=0)

        async def is_embedded():
            return fleet.provider.embedded["patient"]

        await fleet.until(is_embedded)
        await fleet.pass_time(1)
        assert await fleet.row("patient") is None
    finally:
        await fleet.sql.execute(
            f"alter database {database} reset default_transaction_read_only"
        )
    await fleet.sql.execute(END_CONNECTIONS)
    await fleet.publish([upsert("behind 19", 1, "behind 19")], partition=0)
    await fleet.settled()
    stored = await fleet.stored()
    assert (stored["patient"], stored["behind 19"]) == ("patient", "behind 19")
    assert fleet.provider.embedded["patient"] == 1
    assert await fleet.sql.fetchval("select count(*) from dead_letter") == before


async def test_an_older_version_is_superseded_and_never_embedded(fleet):
    """Row 22."""
    await pass_in_turn(fleet, upsert("stale", 5, "stale 5"))
    row = await fleet.row("stale")
    await pass_in_turn(
        fleet, upsert("stale", 4, "stale 4"), upsert("behind 22", 1, "behind 22")
    )
    assert await fleet.row("stale") == row
    assert fleet.provider.received["stale 4"] == 0
    assert (await fleet.stored())["behind 22"] == "behind 22"


@pytest.mark.asyncio(loop_scope="function")
async def test_versions_keep_the_table_right_where_partitions_are_added_in_use(make_fleet):
    """Row 23: a key moves to a partition that the first worker does not know yet."""
    fleet = await make_fleet(partitions=1)
    first = await fleet.start()
    await first.works_on(1)
    await fleet.publish([upsert("moved", 1, "moved 1"), upsert("kept", 1, "kept 1")])
    await fleet.settled()
    await fleet.groups.create_partitions({fleet.topic: NewPartitions(total_count=2)})

    async def is_known():
        await fleet.producer.client.force_metadata_update()
        return await fleet.producer.partitions_for(fleet.topic) == {0, 1}

    await fleet.until(is_known)
    await fleet.publish(
        [upsert("moved", 3, "moved 3"), upsert("kept", 2, "kept 2")], partition=1
    )
    await fleet.publish(
        [upsert("moved", 2, "moved 2"), upsert("kept", 3, "kept 3")], partition=0
    )
    second = await fleet.start()
    assert await fleet.stop(first) == 0
    await second.works_on(2)
    await fleet.settled()
    assert await fleet.stored() == {"moved": "moved 3", "kept": "kept 3"}
    assert await fleet.letters() == []
