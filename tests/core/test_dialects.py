"""A request holds what its dialect calls things, within its limits, and nothing else."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.config import DialectName
from worker.core.dialects import DIALECTS, bearer
from worker.core.packing import PackLimits

NAMES = get_args(DialectName)
SETTINGS = PackLimits(max_inputs=128, max_tokens=100_000, max_bytes=512 * 1024)
OPENAI_LIKE = {"model", "input", "encoding_format", "dimensions"}


def test_every_dialect_that_can_be_set_is_known():
    assert tuple(DIALECTS) == NAMES
    assert all(one.name == name for name, one in DIALECTS.items())


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("openai", OPENAI_LIKE),
        ("azure", OPENAI_LIKE),
        ("mistral", {"model", "input", "encoding_format", "output_dimension"}),
        (
            "voyage",
            {
                *("model", "input", "encoding_format", "output_dimension"),
                *("input_type", "truncation"),
            },
        ),
        ("jina", {"model", "input", "embedding_type", "dimensions", "task", "truncate"}),
        ("tei", OPENAI_LIKE),
        ("vllm", OPENAI_LIKE),
        ("ollama", OPENAI_LIKE),
        ("litellm", OPENAI_LIKE),
        ("generic", OPENAI_LIKE),
    ],
)
def test_a_body_has_the_fields_of_its_dialect(name: DialectName, fields: set[str]):
    body = DIALECTS[name].body("m", ["a", "b"], dimensions=256)
    assert set(body) == fields
    assert body["model"] == "m"
    assert body["input"] == ["a", "b"]
    assert {256, "base64"} <= {value for value in body.values() if isinstance(value, int | str)}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_asked_for_is_not_sent(name: DialectName):
    dialect = DIALECTS[name]
    body = dialect.body("m", ["a"], dimensions=None, encoding=None)
    assert dialect.dimensions not in body
    assert dialect.encoding not in body


@pytest.mark.parametrize(
    ("name", "field", "document", "query"),
    [
        ("voyage", "input_type", "document", "query"),
        ("jina", "task", "retrieval.passage", "retrieval.query"),
    ],
)
def test_documents_and_queries_are_told_apart(
    name: DialectName, field: str, document: str, query: str
):
    dialect = DIALECTS[name]
    assert dialect.body("m", ["a"])[field] == document
    assert dialect.body("m", ["a"], input_type="query")[field] == query


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {"voyage", "jina"}])
def test_where_there_is_no_difference_none_is_sent(name: DialectName):
    dialect = DIALECTS[name]
    assert dialect.body("m", ["a"]) == dialect.body("m", ["a"], input_type="query")


@pytest.mark.parametrize(("name", "field"), [("voyage", "truncation"), ("jina", "truncate")])
def test_truncation_is_switched_off_where_a_request_can_say_so(name: DialectName, field: str):
    assert DIALECTS[name].body("m", ["a"])[field] is False


@pytest.mark.parametrize("name", ["tei", "ollama"])
def test_where_a_request_cannot_say_so_the_note_does(name: DialectName):
    assert DIALECTS[name].truncation is None
    assert "trunca" in DIALECTS[name].note or "Cuts" in DIALECTS[name].note


def test_a_key_goes_into_the_header_of_the_dialect():
    assert DIALECTS["azure"].authorization("k") == ("api-key", "k")
    for name in set(NAMES) - {"azure"}:
        assert DIALECTS[name].authorization("k") == bearer("k") == ("Authorization", "Bearer k")


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("openai", SETTINGS),
        ("mistral", SETTINGS.__class__(128, 14_745, SETTINGS.max_bytes)),
        ("tei", SETTINGS.__class__(32, 100_000, SETTINGS.max_bytes)),
        ("generic", SETTINGS),
    ],
)
def test_the_narrower_of_settings_and_dialect_bounds_a_request(
    name: DialectName, limits: PackLimits
):
    assert DIALECTS[name].bound(SETTINGS) == limits


@given(
    st.sampled_from(NAMES),
    st.builds(
        PackLimits,
        max_inputs=st.integers(1, 2048),
        max_tokens=st.integers(1, 10**6),
        max_bytes=st.integers(1, 2**20),
    ),
)
def test_a_dialect_only_ever_narrows(name: DialectName, limits: PackLimits):
    dialect, bound = DIALECTS[name], DIALECTS[name].bound(limits)
    assert 1 <= bound.max_inputs <= limits.max_inputs
    assert 1 <= bound.max_tokens <= limits.max_tokens
    assert bound.max_bytes == limits.max_bytes
    assert dialect.max_inputs is None or bound.max_inputs <= dialect.max_inputs
    assert dialect.max_request_tokens is None or bound.max_tokens < dialect.max_request_tokens
