"""What each order of records becomes in the table, on real parts, under one worker."""

import asyncio
import json
import re
from uuid import uuid4

import pytest

from tests.support import provider
from tests.support.fleet import delete, upsert

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENVIRONMENT = {"OTEL_SDK_DISABLED": "false"}
PARAGRAPHS = [f"{letter * 5} " * 50 for letter in "abcdefgh"]


@pytest.fixture
def document():
    """A document that no other test knows."""
    return f"doc-{uuid4().hex[:8]}"


def words(document, what):
    """A text that is paid for by no other test."""
    return f"{document} {what}"


async def publish(fleet, *events):
    """Publish one after the other, each after the one before was settled."""
    for event in events:
        await fleet.publish([event])
        await fleet.settled()


async def test_a_record_older_than_what_is_stored_changes_nothing(fleet, document):
    await publish(fleet, upsert(document, 5, words(document, "new")))
    stored, chunks = await fleet.row(document), await fleet.chunks(document)
    await publish(fleet, upsert(document, 3, words(document, "old")))
    assert await fleet.row(document) == stored
    assert await fleet.chunks(document) == chunks
    assert fleet.provider.received[words(document, "old")] == 0


async def test_a_record_sent_again_costs_no_embedding_and_rewrites_no_chunk(fleet, document):
    event = upsert(document, 1, words(document, "text"))
    await publish(fleet, event)
    chunks = await fleet.chunks(document)
    await publish(fleet, event, event)
    assert await fleet.chunks(document) == chunks
    assert fleet.provider.received[words(document, "text")] == 1


async def test_a_newer_version_with_equal_text_keeps_an_older_different_one_out(
    fleet, document
):
    """C5."""
    x, y = words(document, "X"), words(document, "Y")
    await publish(fleet, *(upsert(document, *event) for event in ((1, x), (3, x), (2, y))))
    assert (await fleet.row(document))["version"] == 3
    assert (await fleet.stored())[document] == x
    assert (fleet.provider.received[x], fleet.provider.received[y]) == (1, 0)


async def test_a_delete_of_a_document_never_seen_keeps_an_older_upsert_out(fleet, document):
    await publish(fleet, delete(document, 2), upsert(document, 1, words(document, "old")))
    row = await fleet.row(document)
    assert (row["deleted"], row["version"]) == (True, 2)
    assert document not in await fleet.stored()
    assert fleet.provider.received[words(document, "old")] == 0


async def test_a_deleted_document_comes_back_by_a_newer_upsert_only(fleet, document):
    await publish(
        fleet,
        upsert(document, 1, words(document, "one")),
        delete(document, 5),
        upsert(document, 4, words(document, "four")),
    )
    assert document not in await fleet.stored()
    assert await fleet.chunks(document) == {}
    await publish(fleet, upsert(document, 6, words(document, "six")))
    assert (await fleet.stored())[document] == words(document, "six")


async def test_a_document_that_shrinks_loses_its_chunks_and_rewrites_none(fleet, document):
    paragraphs = [words(document, text) for text in PARAGRAPHS]
    await publish(fleet, upsert(document, 1, "\n\n".join(paragraphs)))
    before = await fleet.chunks(document)
    assert len(before) == len(paragraphs)
    await publish(fleet, upsert(document, 2, "\n\n".join(paragraphs[:3])))
    after = await fleet.chunks(document)
    assert after == {content: before[content] for content in list(before)[:3]}
    assert all(fleet.provider.received[content] == 1 for content in before)


async def test_an_edit_pays_for_the_paragraph_that_it_touches(fleet, document):
    paragraphs = [words(document, text) for text in PARAGRAPHS]
    await publish(fleet, upsert(document, 1, "\n\n".join(paragraphs)))
    before = await fleet.chunks(document)
    paid = sum(fleet.provider.embedded.values())
    paragraphs[4] = words(document, PARAGRAPHS[4].replace("e", "x"))
    await publish(fleet, upsert(document, 2, "\n\n".join(paragraphs)))
    after = await fleet.chunks(document)
    assert sum(fleet.provider.embedded.values()) == paid + 1
    assert len(after.items() & before.items()) == len(paragraphs) - 1
    await fleet.check_vectors()


async def test_two_versions_in_one_poll_cost_one_embedding(fleet, document):
    old, new = words(document, "old"), words(document, "new")
    await fleet.publish_together([upsert(document, 1, old), upsert(document, 2, new)])
    await fleet.settled()
    assert (await fleet.stored())[document] == new
    assert (fleet.provider.received[old], fleet.provider.received[new]) == (0, 1)


async def test_a_poison_newer_version_leaves_the_waiting_good_one_shown(fleet, document):
    """C1: and the letter is the record, byte for byte."""
    good, poison = words(document, "good"), words(document, "poison")
    neighbour = words(document, "neighbour")
    fleet.provider.for_text(poison, provider.status(400, code="content_filter"))
    headers = [("source", b"cms"), ("source", b"cms again"), ("empty", b"")]
    bad = upsert(document, 2, poison)
    await fleet.publish_together(
        [
            upsert(document, 1, good),
            (*bad, headers),
            upsert(f"{document}-neighbour", 1, neighbour),
        ]
    )
    await fleet.settled()
    stored = await fleet.stored()
    assert (stored[document], stored[f"{document}-neighbour"]) == (good, neighbour)
    (letter,) = [one for one in await fleet.letters() if one.key == bad[0]]
    assert letter.reason == "content_filter"
    assert letter.value == bad[1]
    assert list(letter.originals) == headers
    assert fleet.provider.embedded[poison] == 0


async def test_a_change_of_metadata_alone_rewrites_no_vector(fleet, document):
    text = words(document, "text")
    await publish(fleet, upsert(document, 1, text, metadata={"stage": "draft"}))
    chunks = await fleet.chunks(document)
    await publish(fleet, upsert(document, 2, text, metadata={"stage": "final"}))
    row = await fleet.row(document)
    assert json.loads(row["metadata"]) == {"stage": "final"}
    assert row["version"] == 2
    assert await fleet.chunks(document) == chunks
    assert fleet.provider.received[text] == 1


async def test_an_empty_text_is_a_document_without_chunks(fleet, document):
    await publish(fleet, upsert(document, 1, words(document, "text")), upsert(document, 2, ""))
    row = await fleet.row(document)
    assert (row["version"], row["deleted"]) == (2, False)
    assert await fleet.chunks(document) == {}


async def test_a_nul_is_replaced_in_text_and_metadata(fleet, document):
    event = upsert(document, 1, f"{document} x\0y", metadata={"a\0": "\0"})
    await publish(fleet, event)
    assert (await fleet.stored())[document] == f"{document} x\ufffdy"
    assert json.loads((await fleet.row(document))["metadata"]) == {"a\ufffd": "\ufffd"}


async def test_a_trace_goes_from_the_record_to_the_provider_the_row_and_the_letter(
    fleet, document
):
    good, poison = words(document, "good"), words(document, "poison")
    fleet.provider.for_text(poison, provider.status(400, code="content_filter"))
    sent = {}
    fleet.provider.script = lambda call: sent.update(
        {text: call.headers.get("traceparent") for text in call.texts}
    )
    ids = [uuid4().hex, uuid4().hex]
    parents = [f"00-{trace_id}-00f067aa0ba902b7-01".encode() for trace_id in ids]
    bad = upsert(f"{document}-bad", 1, poison)
    await fleet.publish([(*upsert(document, 1, good), [("traceparent", parents[0])])])
    await fleet.settled()
    await fleet.publish([(*bad, [("traceparent", parents[1])])])
    await fleet.settled()
    fleet.provider.script = None
    assert (await fleet.row(document))["trace_id"] == ids[0]
    assert sent[good].split("-")[1] == ids[0]
    (letter,) = [one for one in await fleet.letters() if one.key == bad[0]]
    assert letter.originals == (("traceparent", parents[1]),)
    ledger = await fleet.sql.fetchval(
        "select traceparent from dead_letter where document_id = $1", f"{document}-bad"
    )
    assert ledger.encode() == parents[1]


async def test_a_collection_created_within_the_time_of_grace_is_found_and_holds_nobody_up(
    fleet, document
):
    name = document.replace("-", "_")
    await fleet.publish_together(
        [
            upsert(document, 1, words(document, "early"), collection=name),
            upsert(f"{document}-next", 1, words(document, "next")),
        ]
    )

    async def next_is_stored():
        return f"{document}-next" in await fleet.stored()

    await fleet.until(next_is_stored)
    assert await fleet.row(document) is None
    assert await fleet.committed() != await fleet.ends()
    await fleet.create_collection(name)
    await fleet.settled()
    shown = await fleet.sql.fetch(f'select content from "{name}_chunks"')
    assert [row["content"] for row in shown] == [words(document, "early")]


async def test_the_admin_port_says_what_the_worker_does(fleet, document):
    (worker,) = fleet.workers
    gate = asyncio.Event()
    text = words(document, "held")
    fleet.provider.for_text(text, provider.held(gate))
    await fleet.publish([upsert(document, 1, text)])
    state = await worker.shows(lambda state: state["provider_requests_in_flight"] == 1)
    assert state["queue"]["documents"] == state["queue"]["in_flight"] == 1
    gate.set()
    await fleet.settled()
    state = await worker.shows(lambda state: state["queue"]["documents"] == 0)
    assert state["queue"] == {"documents": 0, "bytes": 0, "waiting": 0, "in_flight": 0}
    shown = {one["partition"]: one["next_offset"] for one in state["partitions"]}
    committed = await fleet.committed()
    assert shown == {f"{place.topic}/{place.partition}": at for place, at in committed.items()}
    for path in ("/livez", "/readyz"):
        status, body = await worker.ask(path)
        assert (status, json.loads(body)["ok"]) == (200, True)
    status, metrics = await worker.ask("/metrics")
    assert status == 200
    assert re.search(r"^embedfleet_queue_depth\S* 0\.0$", metrics, re.MULTILINE)
    assert re.search(r"^embedfleet_rebalances_total\S* 1\.0$", metrics, re.MULTILINE)
    assert document not in metrics


async def test_the_admin_port_says_how_many_workers_there_should_be(fleet, document):
    await publish(fleet, upsert(document, 1, words(document, "scaled")))
    (worker,) = fleet.workers
    status, body = await worker.ask("/scale")
    assert (status, json.loads(body)) == (200, {"replicas": 1, "reason": "idle"})


async def test_in_the_end_the_table_is_the_topic_and_no_text_was_paid_for_twice(fleet):
    await publish(fleet, upsert("last", 1, "the last one"))
    expected = {
        document: " ".join(text.replace("\0", "\ufffd").split())
        for document, text in (await fleet.expected()).items()
        if text
    }
    stored = await fleet.stored()
    assert {document: " ".join(text.split()) for document, text in stored.items()} == expected
    await fleet.check_vectors()
    assert fleet.embedded_twice() == {}
