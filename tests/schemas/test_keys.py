import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.keys import (
    DocumentName,
    InvalidKey,
    ScopeName,
    decode_key,
    encode_key,
    encode_scope_key,
)

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=512).filter(
    lambda name: len(name.encode()) <= 512
)


@given(names, names, names)
def test_a_document_key_comes_back_as_it_went(tenant, collection, id_):
    key = encode_key(tenant, collection, id_)

    assert decode_key(key) == DocumentName(tenant, collection, id_)
    assert key.isascii()


@given(names, st.none() | names)
def test_a_scope_key_comes_back_as_it_went(tenant, collection):
    name = decode_key(encode_scope_key(tenant, collection))

    assert name == ScopeName(tenant, collection)
    assert isinstance(name, ScopeName)


@given(st.tuples(names, names, names), st.tuples(names, names, names))
def test_two_documents_have_two_keys(one, other):
    assert (encode_key(*one) == encode_key(*other)) == (one == other)


def test_a_key_reads_as_it_is_documented():
    assert encode_key("acme", "a/b", "ü 1") == b"acme/a%2Fb/%C3%BC%201"
    assert encode_scope_key("acme", None) == b"acme"
    assert encode_scope_key("acme", "a/b") == b"acme/a%2Fb"


@pytest.mark.parametrize("parts", [("", "b", "c"), ("a", "", "c"), ("a", "b", "")])
def test_an_empty_name_makes_no_key(parts):
    with pytest.raises(InvalidKey):
        encode_key(*parts)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_key_or_refused(key):
    try:
        name = decode_key(key)
    except InvalidKey:
        return
    assert all(part is None or 1 <= len(part.encode()) <= 512 for part in name)
