import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.dead_letter import (
    EXPLANATIONS,
    FACT_NAMES,
    REPLAYS,
    VALUE_HASH,
    DeadLetterEnvelope,
    Facts,
    NotADeadLetter,
    Origin,
    Reason,
    dead_letter_headers,
    origin_headers,
    parse_dead_letter,
    parse_origin,
    parse_replays,
    value_hash,
    with_replays,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
offsets = st.integers(0, 2**63 - 1)
partitions = st.integers(0, 2**31 - 1)
timestamps = st.integers(-1, 2**63 - 1)
facts = st.builds(
    Facts,
    provider_status=st.none() | st.integers(100, 999),
    provider_request_id=st.none() | text,
    sqlstate=st.none() | text,
    constraint=st.none() | text,
)
origins = st.builds(Origin, text, partitions, offsets, timestamps, offsets)
envelopes = st.builds(
    DeadLetterEnvelope,
    reason=st.sampled_from(Reason).map(str),
    stage=text,
    detail=text,
    topic=text,
    partition=partitions,
    offset=offsets,
    timestamp_ms=timestamps,
    incarnation=offsets,
    group=text,
    passes=st.integers(0, 100),
    replays=st.integers(0, 100),
    attempts=st.integers(1, 100),
    first_seen_ms=timestamps,
    last_seen_ms=st.none() | timestamps,
    facts=facts,
    origin=st.none() | origins,
)
# Names of ours too: somebody may have copied a dead letter back into the topic.
ours = [
    name
    for name, _ in dead_letter_headers(
        [],
        msgspec.convert(
            {
                "embedfleet.reason": "oversize",
                "embedfleet.stage": "",
                "embedfleet.topic": "",
                "embedfleet.partition": 0,
                "embedfleet.offset": 0,
                "embedfleet.timestamp": 0,
                "embedfleet.group": "",
                "embedfleet.first-seen": 0,
            },
            DeadLetterEnvelope,
        ),
    )
] + list(FACT_NAMES)
originals = st.lists(
    st.tuples(
        st.sampled_from(["traceparent", "x", "embedfleet.origin.topic", *ours]) | text,
        st.none() | st.binary(max_size=5),
    ),
    max_size=8,
)


def envelope(**changes):
    fields = {
        "reason": "oversize",
        "stage": "decode",
        "topic": "documents",
        "partition": 3,
        "offset": 12,
        "timestamp_ms": 1000,
        "incarnation": 1,
        "group": "fleet",
        "first_seen_ms": 2000,
    }
    return DeadLetterEnvelope(**fields | changes)


@given(originals, envelopes)
def test_envelope_and_original_headers_come_back_exactly(headers, said):
    letter = dead_letter_headers(headers, said)

    parsed, back = parse_dead_letter(letter)

    assert back == headers
    assert letter[: len(headers)] == headers
    carried = said.origin or parse_origin(headers)
    assert parsed == msgspec.structs.replace(said, origin=carried)


@given(originals, envelopes, envelopes)
def test_a_chain_of_replays_keeps_the_first_origin_and_every_original_header(
    headers, first, second
):
    replayed = origin_headers(parse_dead_letter(dead_letter_headers(headers, first))[1], first)
    again = dead_letter_headers(replayed, msgspec.structs.replace(second, origin=None))
    said, back = parse_dead_letter(again)
    once_more = origin_headers(back, said)

    origin = first.origin or Origin(
        first.topic, first.partition, first.offset, first.timestamp_ms, first.incarnation
    )
    assert parse_origin(replayed) == said.origin == parse_origin(once_more) == origin
    assert once_more[: len(headers)] == headers
    assert once_more == replayed


def test_a_copied_dead_letter_is_a_record_like_any_other():
    copied = dead_letter_headers([("traceparent", b"t")], envelope(reason="undecodable"))

    said, back = parse_dead_letter(dead_letter_headers(copied, envelope(offset=99)))

    assert (said.reason, said.offset, back) == ("oversize", 99, copied)


def test_an_origin_that_is_known_beats_the_one_that_is_claimed():
    claimed = origin_headers([], envelope(offset=1))
    known = Origin("documents", 3, 2, 1000, 1)

    letter = dead_letter_headers(claimed, envelope(offset=20, origin=known))
    said, back = parse_dead_letter(letter)

    assert said.origin == known
    assert parse_origin(origin_headers(back, said)) == known


def test_the_detail_is_bounded():
    said, _ = parse_dead_letter(dead_letter_headers([], envelope(detail="é" * 1000)))

    assert said.detail == "é" * 200


def test_a_detail_that_is_no_text_does_not_stop_the_letter():
    said, _ = parse_dead_letter(dead_letter_headers([], envelope(detail="a\ud800")))

    assert said.detail == "a?"


def test_a_code_of_a_newer_worker_is_kept_as_it_is():
    said, _ = parse_dead_letter(dead_letter_headers([], envelope(reason="quantum_flux")))

    assert said.reason == "quantum_flux"


@pytest.mark.parametrize(
    "change",
    [
        ("embedfleet.offset", b"x"),
        ("embedfleet.offset", b"-1"),
        ("embedfleet.offset", b"9223372036854775808"),
        ("embedfleet.offset", None),
        ("embedfleet.group", b"\xff"),
        ("embedfleet.partition", b"2147483648"),
        ("embedfleet.attempts", b"0"),
        ("embedfleet.provider-status", b"x"),
        ("embedfleet.sqlstate", None),
    ],
)
def test_an_envelope_that_cannot_be_read_is_refused(change):
    with pytest.raises(NotADeadLetter):
        parse_dead_letter([*dead_letter_headers([], envelope()), change])


def test_headers_without_an_envelope_are_refused():
    with pytest.raises(NotADeadLetter):
        parse_dead_letter([("traceparent", b"x")])


@given(st.lists(st.tuples(st.sampled_from(ours) | text, st.none() | st.binary(max_size=5))))
def test_any_headers_are_a_letter_or_refused(headers):
    try:
        _, back = parse_dead_letter(headers)
    except NotADeadLetter:
        return
    assert back == headers[: len(back)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("offset", b"-1"),
        ("offset", b"1_0"),
        ("offset", b"\xd9\xa1"),  # an Arabic digit one
        ("offset", b"9223372036854775808"),
        ("offset", b""),
        ("offset", None),
        ("partition", b"2147483648"),
        ("topic", b"\xff"),
        ("topic", None),
    ],
)
def test_a_malformed_origin_is_none(name, value):
    assert parse_origin(origin_headers([], envelope())) is not None

    headers = [*origin_headers([], envelope()), (f"embedfleet.origin.{name}", value)]

    assert parse_origin(headers) is None


def test_every_reason_is_explained_in_full_sentences():
    for reason in Reason:
        explanation = EXPLANATIONS[reason]
        assert explanation == f"{reason.what} {reason.remedy}"
        assert reason.what.endswith(".")
        assert reason.remedy.endswith(".")


def test_the_codes_are_a_contract():
    """Replay tools and ledgers hold them: add codes, never change one."""
    assert [*Reason] == [
        "undecodable",
        "invalid_schema",
        "unknown_type",
        "oversize",
        "missing_key",
        "invalid_key",
        "key_mismatch",
        "nul_character",
        "unknown_collection",
        "rejected_input",
        "content_filter",
        "input_too_long",
        "provider_bad_output",
        "retries_exhausted",
        "deadline_exceeded",
        "rejected_by_store",
        "version_in_future",
        "unreadable_batch",
        "worker_killer",
        "internal_error",
    ]


def test_the_header_names_are_a_contract():
    said = envelope(
        attempts=2,
        last_seen_ms=3000,
        facts=Facts(400, "req_1", "23514", "short"),
        origin=Origin("t", 1, 2, 3, 4),
    )
    named = dict(dead_letter_headers([], said))

    assert named == {
        "embedfleet.reason": b"oversize",
        "embedfleet.stage": b"decode",
        "embedfleet.detail": b"",
        "embedfleet.topic": b"documents",
        "embedfleet.partition": b"3",
        "embedfleet.offset": b"12",
        "embedfleet.timestamp": b"1000",
        "embedfleet.incarnation": b"1",
        "embedfleet.group": b"fleet",
        "embedfleet.passes": b"0",
        "embedfleet.attempts": b"2",
        "embedfleet.first-seen": b"2000",
        "embedfleet.last-seen": b"3000",
        "embedfleet.replays": b"0",
        "embedfleet.provider-status": b"400",
        "embedfleet.provider-request-id": b"req_1",
        "embedfleet.sqlstate": b"23514",
        "embedfleet.constraint": b"short",
        "embedfleet.origin.topic": b"t",
        "embedfleet.origin.partition": b"1",
        "embedfleet.origin.offset": b"2",
        "embedfleet.origin.timestamp": b"3",
        "embedfleet.origin.incarnation": b"4",
    }


def test_what_is_not_known_has_no_header():
    names = {name for name, _ in dead_letter_headers([], envelope())}

    assert not names & {*FACT_NAMES, "embedfleet.last-seen"}


def test_a_letter_of_before_facts_and_times_were_told_is_read():
    newer = {*FACT_NAMES, "embedfleet.attempts", "embedfleet.last-seen"}
    told = dead_letter_headers([], envelope(last_seen_ms=3000, facts=Facts(400, "req_1")))

    said, _ = parse_dead_letter([header for header in told if header[0] not in newer])

    assert said == envelope()
    assert (said.attempts, said.last_seen_ms, said.facts) == (1, None, Facts())


def test_facts_of_the_original_headers_are_not_taken_for_those_of_the_letter():
    originals = [(name, b"200") for name in FACT_NAMES]

    said, back = parse_dead_letter(dead_letter_headers(originals, envelope()))

    assert (said.facts, back) == (Facts(), originals)


@given(originals, st.lists(st.integers(0, 10**9 - 1), min_size=1, max_size=3))
def test_a_record_says_how_often_it_was_replayed_last(headers, counts):
    replayed = headers
    for count in counts:
        replayed = with_replays(replayed, count)

    others = [header for header in headers if header[0] != REPLAYS]
    assert replayed == [*others, (REPLAYS, str(counts[-1]).encode())]
    assert parse_replays(replayed) == counts[-1]


@pytest.mark.parametrize("value", [None, b"", b"-1", b"x", b"1" * 10, "\u0661".encode()])
def test_a_count_of_replays_that_cannot_be_read_is_none(value):
    assert parse_replays([("embedfleet.replays", value)]) == 0


def test_only_what_stands_behind_the_envelope_makes_a_pointer():
    letter = dead_letter_headers([(VALUE_HASH, b"of the publisher's")], envelope())

    assert value_hash(letter) is None
    assert value_hash([*letter, (VALUE_HASH, b"abc")]) == "abc"
