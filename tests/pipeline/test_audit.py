"""The audit of the simulation finds what is planted in the tables behind the workers' backs."""

from dataclasses import replace

import pytest

from tests.pipeline.test_counterexamples import cut_in_letters, letters
from tests.support.audit import Broken
from tests.support.universe import live, tombstone, upsert
from worker.core.model import DocumentKey


def key(document, collection="articles"):
    return DocumentKey("tenant", collection, document)


def changed(row, **changes):
    return replace(row, stored=replace(row.stored, **changes))


def says_another_version(rows):
    rows[key("a")] = changed(rows[key("a")], version=9)


def shows_another_document(rows):
    rows[key("a")] = rows[key("b")]


def forgets_a_delete(rows):
    rows[key("c")] = changed(rows[key("c")], barrier=None)


def goes_back_behind_a_delete(rows):
    barrier = rows[key("c")].stored.barrier
    first = barrier._replace(offset=barrier.offset - 1)
    rows[key("c")] = changed(rows[key("c")], order=first, version=5, barrier=None)


def is_shown_though_deleted(rows):
    rows[key("d")] = changed(rows[key("d")], deleted=False)


def shows_its_chunks_in_another_order(rows):
    row = rows[key("e", "letters")]
    swapped = [
        (replace(chunk, seq=seq), vector)
        for (chunk, vector), seq in zip(row.chunks.values(), (1, 0), strict=True)
    ]
    chunks = dict(zip(row.chunks, swapped, strict=True))
    rows[key("e", "letters")] = replace(row, chunks=chunks)


def shows_too_little(rows):
    row = rows[key("e", "letters")]
    chunks = dict(list(row.chunks.items())[:1])
    rows[key("e", "letters")] = replace(row, chunks=chunks)


async def story(universe):
    """A little of everything, and all of it right."""
    await cut_in_letters(universe)
    cut = universe.pieces
    universe.pieces = lambda text: cut(text) if text == "xy" else [text]
    for event in (
        *(upsert("a", 1, "one"), upsert("b", 2, "other")),
        *(upsert("c", 5, "before"), tombstone("c"), upsert("c", 3, "after")),
        *(upsert("d", 1, "shown"), tombstone("d")),
        letters(1, "xy", "e"),
    ):
        universe.publish(event)
    universe.start()
    await universe.settled()
    return universe


@pytest.mark.parametrize(
    ("plant", "anomaly"),
    [
        (says_another_version, "torn"),
        (shows_another_document, "torn"),
        (forgets_a_delete, "stale-overwrite"),
        (goes_back_behind_a_delete, "stale-overwrite"),
        (is_shown_though_deleted, "resurrected"),
        (shows_its_chunks_in_another_order, "torn"),
        (shows_too_little, "torn"),
    ],
    ids=lambda one: getattr(one, "__name__", one),
)
def test_a_row_that_is_changed_behind_the_workers_is_found_under_its_name(plant, anomaly):
    universe = live(story, partitions=1)
    universe.audit.check_end()
    plant(universe.database.state.documents)
    with pytest.raises(Broken, match=f"^{anomaly}:"):
        universe.audit.check()
