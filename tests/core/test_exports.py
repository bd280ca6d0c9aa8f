"""When an export may begin where another one is."""

import msgspec
import pytest

from tests.support.exports import SUBJECT, moment
from worker.core.exports import Manifest, Subject, differences, objection

OTHER = {
    "format_version": 2,
    "database": "1/postgres/other",
    "collection": "dogs",
    "collection_id": 2,
    "generation": 2,
    "model": "other",
    "embedding_space": "other",
    "dimensions": 4,
    "storage": "halfvec",
    "metric": "l2",
    "tenant": "acme",
    "dtype": "float16",
    "metadata": "parquet",
    "content": True,
}
FINISHED = Manifest(
    **msgspec.structs.asdict(SUBJECT),
    rows=1234,
    documents=100,
    snapshot=moment(),
    files={},
    finished_at=moment().taken_at,
    embedfleet="1",
)


def said(value):
    return "any" if value is None else value


@pytest.mark.parametrize("name", Subject.__struct_fields__)
def test_an_export_of_other_settings_is_another_export(name):
    other = msgspec.structs.replace(SUBJECT, **{name: OTHER[name]})
    assert differences(SUBJECT, SUBJECT) == []
    assert differences(SUBJECT, other) == [
        f"{name} is {said(getattr(SUBJECT, name))}, not {OTHER[name]}"
    ]
    assert name in objection(other, SUBJECT, None)


def test_what_an_export_was_not_limited_to_is_said_in_words():
    one = msgspec.structs.replace(SUBJECT, tenant=None)
    other = msgspec.structs.replace(SUBJECT, tenant="acme")
    assert differences(one, other) == ["tenant is any, not acme"]
    assert differences(other, one) == ["tenant is acme, not any"]


def test_an_export_begins_where_there_is_none():
    assert objection(SUBJECT, None, None) is None


def test_an_unfinished_export_goes_on_also_where_it_is_about_to_replace_another():
    assert objection(SUBJECT, SUBJECT, None) is None
    assert objection(SUBJECT, SUBJECT, FINISHED) is None


def test_a_finished_export_is_not_replaced_unasked_whatever_it_is_of():
    said = "a finished export: 1,234 rows of 'docs' as of 2026-11-01T00:00:00+00:00"
    assert objection(SUBJECT, None, FINISHED) == said
    assert objection(msgspec.structs.replace(SUBJECT, tenant="t"), None, FINISHED) == said


def test_all_that_differs_is_said_at_once():
    other = msgspec.structs.replace(SUBJECT, dtype="float16", content=True)
    assert objection(other, SUBJECT, None) == (
        "an unfinished export whose dtype is float32, not float16 and content is False, "
        "not True"
    )
