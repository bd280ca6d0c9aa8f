import sys
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.codec import (
    Decoded,
    Limits,
    Undecodable,
    decode_record,
    encode_event,
    key_of,
)
from schemas.dead_letter import Origin, Reason
from schemas.events import (
    UNSET,
    DocumentDeleted,
    DocumentUpserted,
    ScopeDeleted,
    Tombstone,
)

LIMITS = Limits()
SECRET = "the-text-of-the-document"

no_nul = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
names = st.text(no_nul, min_size=1, max_size=128)
texts = st.text(no_nul, max_size=200)
versions = st.integers(0, 2**63 - 1)
numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
times = st.datetimes(
    min_value=datetime(1, 1, 2),  # noqa: DTZ001 the strategy adds the zone
    max_value=datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7, minutes=30))]),
)
maybe = lambda strategy: st.just(UNSET) | strategy  # noqa: E731
events = (
    st.builds(
        DocumentUpserted,
        tenant=names,
        collection=names,
        id=names,
        version=versions,
        text=texts,
        content_type=maybe(st.text(no_nul, max_size=255)),
        metadata=maybe(st.dictionaries(texts, values, max_size=4)),
        occurred_at=maybe(times),
    )
    | st.builds(
        DocumentDeleted,
        tenant=names,
        collection=names,
        id=names,
        version=versions,
        occurred_at=maybe(times),
    )
    | st.builds(
        ScopeDeleted,
        tenant=names,
        collection=maybe(names),
        version=versions,
        occurred_at=maybe(times),
    )
)


def upsert(**changes):
    fields = {"tenant": "acme", "collection": "docs", "id": "42", "version": 7, "text": SECRET}
    return DocumentUpserted(**fields | changes)


def read(event, headers=(), limits=LIMITS):
    return decode_record(key_of(event), encode_event(event), headers, limits)


@given(events)
def test_an_event_comes_back_as_it_went(event):
    assert read(event) == Decoded(event)


@given(names, names, names)
def test_a_tombstone_comes_back_from_its_key(tenant, collection, id_):
    tombstone = Tombstone(tenant=tenant, collection=collection, id=id_)

    assert decode_record(key_of(tombstone), None, (), LIMITS).event == tombstone


headers = st.lists(
    st.tuples(
        st.sampled_from(
            ["traceparent", "ce_specversion", "ce_type", "ce_time", "ce_traceparent"]
        )
        | st.sampled_from(["content-type", "embedfleet.origin.topic"])
        | st.text(max_size=5),
        st.none()
        | st.binary(max_size=12)
        | st.sampled_from([b"1.0", b"upsert", b"delete", b"application/cloudevents+json"]),
    ),
    max_size=6,
).map(tuple)
words = [
    "{",
    "}",
    "[",
    "]",
    '"',
    ",",
    ":",
    "1",
    "1e999",
    "null",
    '"type"',
    '"upsert"',
    '"version"',
    '"tenant":"a"',
    '"text":"\\u0000"',
    '"metadata":',
    '"k\\u0000":{',
    "\\ud800",
    "ÿ",
]
fragments = (
    st.lists(st.sampled_from(words)).map("".join).map(lambda text: text.encode("latin-1"))
)
mutated = st.tuples(events.map(encode_event), st.integers(0, 400), st.binary(max_size=3)).map(
    lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + 1 :]
)


@settings(max_examples=600)
@given(
    st.none() | st.binary(max_size=20) | st.sampled_from([b"a/b/c", b"a/b", b"a"]),
    st.none() | st.binary(max_size=40) | fragments | mutated,
    headers,
    st.sampled_from([LIMITS, Limits(max_text_bytes=1, max_record_bytes=60, nul="dead_letter")]),
)
@example(b"a/b/c", b'{"type":"upsert","tenant":1,"x":' + b"[" * 100_000, (), LIMITS)
@example(b"a/b/c", b"[" * 100_000, (), LIMITS)
@example(
    b"a/b/c", b'{"a":' * 100_000, (("ce_specversion", b"1.0"), ("ce_type", b"upsert")), LIMITS
)
@example(
    b"a/b/c",
    b'{"data":' * 100_000,
    (("content-type", b"application/cloudevents+json"),),
    LIMITS,
)
def test_any_record_is_decoded_or_has_a_reason(key, value, headers, limits):
    decoded, refused = None, None
    try:
        decoded = decode_record(key, value, headers, limits)
    except Undecodable as error:
        refused = error

    if refused is not None:
        assert refused.reason in Reason
        assert len(refused.detail) <= 200
    else:
        assert "\x00" not in "".join(strings(msgspec.to_builtins(decoded.event)))


def strings(value):
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize(
    "change",
    [
        {"version": SECRET},
        {"tenant": SECRET * 40},
        {"tenant": ""},
        {"id": SECRET + "\x00"},
        {"content_type": SECRET * 40},
        {"metadata": [SECRET]},
        {"metadata": {SECRET: SECRET * 4000}},
        {"occurred_at": SECRET},
        {"text": [SECRET]},
    ],
)
def test_a_detail_does_not_repeat_what_the_event_holds(change):
    with pytest.raises(Undecodable) as refused:
        decode_record(b"acme/docs/42", encode_event(upsert(**change)), (), LIMITS)

    assert SECRET not in refused.value.detail
    assert SECRET not in str(refused.value)


def test_an_unknown_type_is_not_repeated_in_the_detail():
    value = encode_event(upsert()).replace(b'"upsert"', f'"{SECRET}"'.encode())

    with pytest.raises(Undecodable) as refused:
        decode_record(b"acme/docs/42", value, (), LIMITS)

    assert refused.value.reason is Reason.UNKNOWN_TYPE
    assert SECRET not in refused.value.detail


def test_a_detail_names_the_field():
    with pytest.raises(Undecodable, match=r"\$\.version"):
        read(upsert(version=-1))


def test_a_detail_is_bounded():
    assert len(Undecodable(Reason.OVERSIZE, "x" * 500).detail) == 200


@pytest.mark.parametrize(
    ("event", "limits"),
    [
        (upsert(text="x" * 2000), Limits(max_text_bytes=1000)),
        (upsert(metadata={"a": "x" * 70_000}), LIMITS),
        (upsert(text="\x00"), Limits(nul="dead_letter")),
    ],
)
def test_whose_content_alone_is_refused_is_known_by_its_names_where_its_key_says_them_too(
    event, limits
):
    for key, known in ((b"acme/docs/42", event), (b"acme/docs/43", None), (b"", None)):
        with pytest.raises(Undecodable) as refused:
            decode_record(key, encode_event(event), (), limits)
        assert refused.value.event == known


def test_deep_nesting_is_poison_on_a_deep_stack_too():
    """The recursion limit counts the caller's frames: metadata may pass here and fail there."""
    depth = sys.getrecursionlimit() - 300
    value = encode_event(upsert(metadata={"a": 1})).replace(
        b"1}", b"[" * depth + b"]" * depth + b"}"
    )

    def deeper(frames):
        if frames:
            return deeper(frames - 1)
        with pytest.raises(Undecodable) as refused:
            decode_record(b"acme/docs/42", value, (), LIMITS)
        return refused.value.reason

    assert {deeper(frames) for frames in range(0, 200, 5)} <= {
        Reason.OVERSIZE,
        Reason.UNDECODABLE,
    }


def test_an_origin_says_where_the_record_first_stood():
    origin = (
        ("embedfleet.origin.topic", b"documents"),
        ("embedfleet.origin.partition", b"1"),
        ("embedfleet.origin.offset", b"2"),
        ("embedfleet.origin.timestamp", b"3"),
        ("embedfleet.origin.incarnation", b"4"),
    )

    assert read(upsert(), origin).origin == Origin("documents", 1, 2, 3, 4)
