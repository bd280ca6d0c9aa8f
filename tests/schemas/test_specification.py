import json
import re
from pathlib import Path

import jsonschema
import pytest
from msgspec import UNSET

from schemas.codec import key_of
from schemas.dead_letter import (
    DeadLetterEnvelope,
    Facts,
    Origin,
    Reason,
    dead_letter_headers,
)
from schemas.records import new_record
from schemas.specification import (
    EXAMPLES,
    async_api,
    dead_letter_headers_schema,
    json_schema,
)
from tests.support.generate import GENERATED, ROOT

GOLDEN = Path(__file__).parent / "golden"


def golden(name):
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def validator(schema):
    kind = jsonschema.Draft202012Validator
    kind.check_schema(schema)
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


def plain(case):
    """A case whose value alone says everything: neither CloudEvents nor a tombstone."""
    enveloped = any(name.startswith(("ce_", "content-type")) for name, _ in case["headers"])
    return not enveloped and case.get("value") is not None


ACCEPTED = [case for case in golden("v1-accepted.json") if plain(case)]
REFUSED = [case for case in golden("v1-refused.json") if plain(case)]
NOT_IN_THE_SCHEMA = {
    "an id of 513 bytes in fewer characters",
    "metadata with a number too large for a double",
    "a version that is a whole float",
    "a time without an offset",
    "a time that is a date",
}


@pytest.mark.parametrize("path", GENERATED)
def test_a_generated_file_is_current(path):
    assert (ROOT / path).read_text(encoding="utf-8") == GENERATED[path](), "run `make schemas`"


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case["case"])
def test_what_a_worker_accepts_the_json_schema_accepts(case):
    validator(json_schema()).validate(json.loads(case["value"]))


@pytest.mark.parametrize(
    "case",
    [case for case in REFUSED if case["reason"] in {"invalid_schema", "unknown_type"}],
    ids=lambda case: case["case"],
)
def test_what_a_worker_refuses_the_json_schema_refuses_where_it_can(case):
    valid = validator(json_schema()).is_valid(json.loads(case["value"]))

    assert valid == (case["case"] in NOT_IN_THE_SCHEMA)


@pytest.mark.parametrize("event", EXAMPLES.values(), ids=EXAMPLES)
def test_the_examples_are_events_that_a_worker_takes(event):
    record = new_record(event)

    assert json.loads(record.value) in json_schema()["examples"]


def test_the_headers_of_a_dead_letter_satisfy_their_schema():
    envelope = DeadLetterEnvelope(
        reason=Reason.OVERSIZE,
        stage="decode",
        topic="documents",
        partition=0,
        offset=2**63 - 1,
        timestamp_ms=-1,
        group="fleet",
        first_seen_ms=0,
        last_seen_ms=1,
        facts=Facts(400, "req_1", "23514", "short"),
        origin=Origin("documents", 0, 1, 2, 3),
    )
    headers = {name: value.decode() for name, value in dead_letter_headers([], envelope)}
    schema = dead_letter_headers_schema()

    validator(schema).validate(headers)

    assert set(headers) == set(schema["properties"])
    for name in ("embedfleet.offset", "embedfleet.last-seen", "embedfleet.provider-status"):
        assert not validator(schema).is_valid(headers | {name: "x"})
    del headers["embedfleet.reason"]
    assert not validator(schema).is_valid(headers)


def references(node):
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from references(child)


def resolve(document, reference):
    for part in reference.removeprefix("#/").split("/"):
        document = document[part]
    return document


def test_every_reference_of_the_async_api_leads_somewhere():
    document = async_api()
    found = list(references(document))

    assert len(found) > 10
    assert all(resolve(document, reference) for reference in found)


@pytest.mark.parametrize("tag", EXAMPLES)
def test_a_message_of_the_async_api_describes_key_and_value(tag):
    document = async_api()
    message = document["components"]["messages"][tag]
    payload = resolve(document, message["payload"]["$ref"])
    key = message["bindings"]["kafka"]["key"]

    for example in message["examples"]:
        validator(payload).validate(example["payload"])
    for example in key["examples"]:
        validator(key).validate(example)
    assert not validator(key).is_valid("a/b/c/d")


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case["case"])
def test_a_canonical_key_satisfies_the_key_schema(case):
    document = async_api()
    tag = case["event"]["type"]
    pattern = document["components"]["messages"][tag]["bindings"]["kafka"]["key"]["pattern"]
    event = EXAMPLES[tag]
    fields = {name: case["event"].get(name, UNSET) for name in ("tenant", "collection", "id")}
    named = {name: fields[name] for name in fields if name in event.__struct_fields__}

    canonical = key_of(type(event)(**{**_required(event), **named})).decode()

    assert re.search(pattern, canonical)


def _required(event):
    return {"version": 1} | ({"text": ""} if hasattr(event, "text") else {})


def test_the_async_api_knows_both_topics_and_every_reason():
    document = async_api()
    letter = document["components"]["messages"]["deadLetter"]
    codes = letter["headers"]["properties"]["embedfleet.reason"]["anyOf"]

    assert {channel["address"] for channel in document["channels"].values()} == {
        "documents",
        "documents.dead-letters",
    }
    assert {code["const"] for code in codes if "const" in code} == set(Reason)
