import ast
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import Limits, Undecodable, decode_record, encode_event, key_of
from schemas.dead_letter import Reason
from schemas.events import MAX_METADATA_BYTES, MAX_METADATA_DEPTH, DocumentUpserted


def upsert(text="", **fields):
    return DocumentUpserted(
        tenant="acme", collection="docs", id="42", version=7, text=text, **fields
    )


def decode(event, limits):
    return decode_record(key_of(event), encode_event(event), (), limits)


def reason(event, limits=Limits()):  # noqa: B008 frozen
    try:
        decode(event, limits)
    except Undecodable as refused:
        return refused.reason
    return None


def nested(levels):
    value = 1
    for level in range(levels - 1):
        value = [value] if level % 2 else {"k": value}
    return {"k": value}


@pytest.mark.parametrize("character", ["a", "é", "€", "😀", '"', "\n"])
def test_a_text_is_measured_in_bytes_of_utf8(character):
    text = character * 100
    size = len(text.encode())

    assert reason(upsert(text), Limits(max_text_bytes=size)) is None
    assert reason(upsert(text), Limits(max_text_bytes=size - 1)) is Reason.OVERSIZE


def test_escapes_do_not_count_against_the_text():
    value = encode_event(upsert("x")).replace(b'"x"', b'"' + b"\\u00e9" * 50 + b'"')

    decoded = decode_record(b"acme/docs/42", value, (), Limits(max_text_bytes=100))

    assert decoded.event.text == "é" * 50


def test_the_largest_text_passes_the_limit_of_the_record_however_it_is_spelled():
    limits = Limits(max_text_bytes=10_000)
    filler = {"k": "\\" * (MAX_METADATA_BYTES // 2 - 10)}
    value = encode_event(upsert("?", metadata=filler)).replace(
        b'"?"', b'"' + b"\\u0041" * 10_000 + b'"'
    )

    assert len(decode_record(b"acme/docs/42", value, (), limits).event.text) == 10_000


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        (b"a/b/" + b"c" * 1000, None, ()),
        (b"a/b/c", b" " * 1000, ()),
        (b"a/b/c", None, (("h", b"v" * 1000),)),
        (b"a/b/c", None, (("h" * 1000, None),)),
        (None, b"x" * 1001, ()),
    ],
)
def test_key_value_and_headers_count_for_the_record(key, value, headers):
    with pytest.raises(Undecodable) as refused:
        decode_record(key, value, headers, Limits(max_record_bytes=1000))

    assert refused.value.reason is Reason.OVERSIZE


def test_a_record_of_exactly_the_limit_passes():
    limits = Limits(max_record_bytes=5 + 3)

    assert decode_record(b"a/b/c", None, (("x", b"yz"),), limits).event.id == "c"


def test_metadata_is_measured_as_compact_json():
    overhead = len(msgspec.json.encode({"k": ""}))
    largest = "x" * (MAX_METADATA_BYTES - overhead)

    assert reason(upsert(metadata={"k": largest})) is None
    assert reason(upsert(metadata={"k": largest + "x"})) is Reason.OVERSIZE


def test_metadata_has_at_most_64_levels():
    assert reason(upsert(metadata=nested(MAX_METADATA_DEPTH))) is None
    assert reason(upsert(metadata=nested(MAX_METADATA_DEPTH + 1))) is Reason.OVERSIZE


def test_wide_metadata_is_not_deep():
    assert reason(upsert(metadata={"k": [[] for _ in range(1000)]})) is None


def test_brackets_in_a_text_are_not_depth():
    assert reason(upsert("[{" * 1000, metadata={"k": "[{" * 1000})) is None


mostly_nul = st.text(st.sampled_from("\x00\\u0a"), max_size=12)
json_values = st.recursive(
    mostly_nul | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(mostly_nul, inner, max_size=3),
    max_leaves=8,
)


@given(mostly_nul, st.dictionaries(mostly_nul, json_values, max_size=3))
def test_every_nul_is_replaced_and_counted_and_nothing_else_is_touched(text, metadata):
    event = upsert(text, metadata=metadata)
    wanted, count = in_print(replaced, (text, metadata))

    decoded = decode(event, Limits())

    assert (decoded.event.text, decoded.event.metadata) == wanted
    assert decoded.nul_replaced == count
    refused = Reason.NUL_CHARACTER if count else None
    assert reason(event, Limits(nul="dead_letter")) is refused


def in_print(replace, value):
    """Replace in a value as it prints, where U+0000 is \\x00 and a backslash is two."""
    printed, count = replace(repr(value))
    return ast.literal_eval(printed), count


def replaced(printed):
    count = 0
    parts = re.split(r"(\\\\|\\x00)", printed)
    for index, part in enumerate(parts):
        if part == "\\x00":
            parts[index] = "\ufffd"
            count += 1
    return "".join(parts), count
