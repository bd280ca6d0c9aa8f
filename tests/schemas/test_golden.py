"""
Records that every version must read alike, for ever: never change a case, only add some.

`v1-accepted.json` and `v1-refused.json` are usable by publishers in other languages too.
"""

import base64
import json
from pathlib import Path

import msgspec
import pytest

from schemas.codec import Decoded, Limits, Undecodable, decode_record
from schemas.dead_letter import Origin, Reason
from schemas.events import JsonEvent, Tombstone

GOLDEN = Path(__file__).parent / "golden"


def cases(name):
    found = json.loads((GOLDEN / name).read_text(encoding="utf-8"))
    return [pytest.param(case, id=case["case"]) for case in found]


def raw(text):
    return None if text is None else text.encode()


def decode(case) -> Decoded:
    if "value_base64" in case:
        value = base64.b64decode(case["value_base64"])
    else:
        value = raw(case["value"])
    headers = tuple((name, raw(content)) for name, content in case["headers"])
    limits = Limits(nul=case.get("nul", "replace"))
    return decode_record(raw(case["key"]), value, headers, limits)


@pytest.mark.parametrize("case", cases("v1-accepted.json"))
def test_an_accepted_record_says_what_it_always_said(case):
    decoded = decode(case)

    kind = JsonEvent if "type" in case["event"] else Tombstone
    assert decoded.event == msgspec.convert(case["event"], kind)
    assert decoded.nul_replaced == case.get("nul_replaced", 0)
    assert decoded.traceparent == case.get("traceparent")
    origin = case.get("origin")
    assert decoded.origin == (Origin(*origin) if origin else None)


@pytest.mark.parametrize("case", cases("v1-refused.json"))
def test_a_refused_record_has_the_reason_it_always_had(case):
    with pytest.raises(Undecodable) as refused:
        decode(case)

    assert refused.value.reason is Reason(case["reason"])


def test_every_reason_of_the_codec_has_a_golden_record():
    seen = {param.values[0]["reason"] for param in cases("v1-refused.json")}

    # Too large for a file; see test_bounds.
    assert seen | {Reason.OVERSIZE} == {
        Reason.UNDECODABLE,
        Reason.INVALID_SCHEMA,
        Reason.UNKNOWN_TYPE,
        Reason.OVERSIZE,
        Reason.MISSING_KEY,
        Reason.INVALID_KEY,
        Reason.KEY_MISMATCH,
        Reason.NUL_CHARACTER,
    }
