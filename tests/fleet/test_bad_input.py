"""Every kind of bad input: its letter says why, and nobody behind it waits."""

import json

import pytest

from tests.support import provider
from tests.support.fleet import upsert

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENVIRONMENT = {
    "EMBEDFLEET_INGEST_UNKNOWN_COLLECTION_GRACE_SECONDS": "1",
    "EMBEDFLEET_INGEST_MAX_TEXT_BYTES": "20000",
    "EMBEDFLEET_INGEST_NUL": "dead_letter",
}
KEY, _ = upsert("bad", 1, "")
REFUSED = "the provider refuses this"
FILTERED = provider.status(
    400, "a secret text", code="content_filter", headers={"x-request-id": "req_filtered"}
)


def value(**changes):
    _, good = upsert("bad", 1, "text")
    return json.dumps(json.loads(good) | changes).encode()


BAD = {
    "no JSON": (KEY, b"{nonsense", "undecodable"),
    "no UTF-8": (KEY, b'{"type": "upsert", "text": "\xff"}', "undecodable"),
    "deep beyond any stack": (KEY, b'{"type":"upsert","x":' + b"[" * 99_999, "undecodable"),
    "no version": (KEY, b'{"type": "upsert", "tenant": "acme"}', "invalid_schema"),
    "a version that is no integer": (KEY, value(version="1"), "invalid_schema"),
    "a version out of bounds": (KEY, value(version=2**63), "invalid_schema"),
    "an unknown type": (KEY, value(type="rename"), "unknown_type"),
    "a text that is too long": (KEY, value(text="x" * 20_001), "oversize"),
    "metadata that is too deep": (
        KEY,
        value(metadata=json.loads('{"a":' * 70 + "1" + "}" * 70)),
        "oversize",
    ),
    "no key": (None, value(), "missing_key"),
    "a key of four parts": (b"acme/articles/bad/x", value(), "invalid_key"),
    "a key that is no percent-encoding": (b"acme/articles/%zz", value(), "invalid_key"),
    "a key of another document": (b"acme/articles/other", value(), "key_mismatch"),
    "a null value for a scope": (b"acme/articles", None, "invalid_schema"),
    "U+0000 where it is not wanted": (KEY, value(text="x\0y"), "nul_character"),
    "a collection that nobody creates": (
        b"acme/nowhere/bad",
        value(collection="nowhere"),
        "unknown_collection",
    ),
    "a text that the provider refuses": (KEY, value(text=REFUSED), "content_filter"),
    "a value that PostgreSQL refuses": (
        b"acme/articles/trigger",
        value(id="trigger"),
        "rejected_by_store",
    ),
}
HEADERS = [("source", b"cms"), ("traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")]
TRIGGER = """
create function refuse() returns trigger language plpgsql as
$$ begin raise exception 'a secret text' using constraint = 'short', detail = 'a secret text';
end $$;
create trigger refuse before insert on document for each row
when (new.id = 'trigger') execute function refuse();
"""


FACTS = {
    "a text that the provider refuses": {
        "provider-status": "400",
        "provider-request-id": "req_filtered",
    },
    "a value that PostgreSQL refuses": {"sqlstate": "P0001", "constraint": "short"},
}
FACT_NAMES = {"provider-status", "provider-request-id", "sqlstate", "constraint"}


async def test_every_bad_record_is_a_letter_and_holds_nobody_up(fleet):
    fleet.provider.for_text(REFUSED, FILTERED)
    await fleet.sql.execute(TRIGGER)
    records, positions = [], {}
    for number, (name, (key, content, _)) in enumerate(BAD.items()):
        positions[name] = (fleet.topic, 0, len(records))
        records += [(key, content, HEADERS), upsert(f"next {number}", 1, f"next {number}")]
    await fleet.publish(records, partition=0)
    await fleet.settled()
    stored = await fleet.stored()
    assert stored == {f"next {number}": f"next {number}" for number in range(len(BAD))}
    letters = {letter.position: letter for letter in await fleet.letters()}
    assert letters.keys() == set(positions.values())
    for name, (key, content, reason) in BAD.items():
        letter = letters[positions[name]]
        assert (letter.reason, letter.key, letter.value) == (reason, key, content), name
        assert list(letter.originals) == HEADERS, name
        envelope = letter.envelope
        assert (envelope["group"], envelope["attempts"]) == (fleet.kafka.group, "1"), name
        assert envelope["first-seen"] == envelope["last-seen"], name
        known = {fact: envelope[fact] for fact in FACT_NAMES & envelope.keys()}
        assert known == FACTS.get(name, {}), name
        assert "secret" not in str(envelope), name
    ledger = await fleet.sql.fetch('select "offset", reason, state from dead_letter')
    assert {(row["offset"], row["reason"], row["state"]) for row in ledger} == {
        (positions[name][2], reason, "published") for name, (_, _, reason) in BAD.items()
    }
