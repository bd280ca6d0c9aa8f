"""
What a fleet has paid for more often than the log asks for, and what that can come from.

A process that is killed takes along what it had bought and nobody had stored; at the end of a
drain a worker leaves behind what it had begun. Told from outside: by the provider, which knows
who asks, and by the audit of the table. One clock for both: they are on one machine.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import datetime

from tests.chaos.history import Document, History
from tests.chaos.oracle import Event, chunks_of, event_of, is_readable, purchases
from tests.chaos.timed import unfinished
from tests.chaos.world import World
from tests.support.worker_process import WorkerProcess

Killed = tuple[WorkerProcess, datetime]
"""A process, and when it was seen to be dead: long before anybody may take over from it."""


def bought_again(world: World) -> Counter[str]:
    """How much more often than the log asks for each text was paid for."""
    needed = purchases(world.history)
    paid = world.fleet.embedded_twice().items()
    return +Counter({text: count - max(1, needed[text]) for text, count in paid})


def taken_along(world: World, killed: Iterable[Killed]) -> Counter[str]:
    """How many processes were killed between buying a text and having it stored."""
    stored = _stored(world.history)
    return Counter(
        text
        for worker, at in killed
        for text, sold in world.sold[worker.name].items()
        if not any(sold < shown <= at for shown in stored[text])
    )


def left_behind(world: World) -> Counter[str]:
    """How many workers had begun records with a text, and left them to the next owner."""
    records = {record.order[:3]: record for record in world.history.records}
    return Counter(
        text
        for worker in world.fleet.workers
        for text in {
            text
            for place in unfinished(worker)
            if is_readable(records[place])
            for text in _texts(event_of(records[place]))
        }
    )


def _stored(history: History) -> defaultdict[str, list[datetime]]:
    """When each text was stored: by a change of a document that had not shown it before."""
    events = {r.order[:3]: event_of(r) for r in history.records if is_readable(r)}
    shown: dict[Document, set[str]] = {}
    stored: defaultdict[str, list[datetime]] = defaultdict(list)
    for change in history.changes:
        texts = set() if change.row.deleted else _texts(events[change.row.order[:3]])
        for text in texts - shown.get(change.document, set()):
            stored[text].append(change.at)
        shown[change.document] = texts
    return stored


def _texts(event: Event) -> set[str]:
    return set(chunks_of(event.document.collection, event.text or ""))
