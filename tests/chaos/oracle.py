"""
Says whether a run has kept its promises, from the log and the tables alone.

Shares no code with the worker, but the schema: the fields of the events, the names of the
tables (`witness` reads them). It folds the topic by the written rules, cuts and embeds the
texts itself, and compares bit for bit. A record below an offset that anybody was told must be
covered at that moment: by its document's row, or by the ledger.

`check` returns every broken promise under the name of its anomaly, and what was only costly.
"""

import hashlib
import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
from semantic_text_splitter import TextSplitter

from tests.chaos.history import (
    Change,
    Claimed,
    Document,
    History,
    Ledgered,
    Order,
    Place,
    Record,
    Row,
    State,
    by_place,
)

MODEL, DIMENSIONS = "test-model", 8
FIXED_SIZE, TEXT_SIZE = 48, 60
CHUNKING = {
    "notes": ("none", 1),
    "articles": ("fixed", FIXED_SIZE),
    "pages": ("text", TEXT_SIZE),
}
"""The collections of a run: strategy and size; nothing overlaps."""

ANOMALIES = (
    "lost", "stale", "stale-overwrite", "resurrected", "torn", "orphan", "aborted-read",
    "watermark-skip", "ahead-of-store", "regress", "zombie-write", "wrong-vector",
    "dlq-missing", "dlq-extra", "unseen", "kafka-ahead-of-next_offset",
    "coalesced-into-dead-letter",
)  # fmt: skip
NEVER = float("inf")

Found = Iterator[tuple[str, str]]
"""Names of anomalies, each with what was seen."""


@dataclass(frozen=True)
class Report:
    """What is wrong, by anomaly, and what it cost."""

    anomalies: dict[str, list[str]]
    costs: dict[str, int]

    @property
    def is_clean(self) -> bool:
        return not self.anomalies

    def __str__(self) -> str:
        if self.is_clean:
            return "no anomaly"
        return "; ".join(
            f"{name} {len(seen)}x, first {seen[0]}" for name, seen in self.anomalies.items()
        )


class Event(NamedTuple):
    """What a record says; `version` None: a delete without one; `text` None: a delete."""

    document: Document
    version: int | None
    text: str | None
    order: Order


def event_of(record: Record) -> Event:
    if record.value is None:
        names = (unquote(part) for part in record.key.decode().split("/"))
        return Event(Document(*names), None, None, record.order)
    value = json.loads(record.value)
    document = Document(value["tenant"], value["collection"], value["id"])
    return Event(document, value["version"], value.get("text"), record.order)


# ---- what should be ----


def is_newer(event: Event, other: Event) -> bool:
    """Version first, then the place in the log."""
    if event.version != other.version:
        return event.version > other.version
    return event.order.is_after(other.order)


def fold(events: Iterable[Event]) -> Event | None:
    """
    Return what stands of all events of one document.

    A delete without a version beats what stands before it, whatever the version; it stands
    itself only where nothing comes after it.
    """
    newest = None
    events = list(events)
    barrier = newest_barrier(events)
    for event in events:
        if event.version is None:
            continue
        if barrier is not None and not event.order.is_after(barrier.order):
            continue
        if newest is None or is_newer(event, newest):
            newest = event
    return newest or barrier


def newest_barrier(events: Iterable[Event]) -> Event | None:
    """Return the last delete without a version."""
    barrier = None
    for event in events:
        if event.version is None and (barrier is None or event.order.is_after(barrier.order)):
            barrier = event
    return barrier


def chunks_of(collection: str, text: str) -> tuple[str, ...]:
    """Cut a text of ASCII letters and single blanks as the collection says."""
    strategy, size = CHUNKING[collection]
    match strategy:
        case "none":
            pieces = [text]
        case "fixed":
            pieces = [text[at : at + size] for at in range(0, len(text), size)]
        case _:
            pieces = list(_packed(text, size))
    return tuple(piece.strip() for piece in pieces if piece.strip())


def purchases(history: History) -> Counter[str]:
    """
    How often each text is bought by one who takes every record in turn.

    More than once where a delete without a version is followed by an older text.
    """
    bought: Counter[str] = Counter()
    seen: defaultdict[Document, list[Event]] = defaultdict(list)
    shown: defaultdict[Document, set[str]] = defaultdict(set)
    for record in sorted(history.records):
        if record.poison:
            continue
        event = event_of(record)
        seen[event.document].append(event)
        if fold(seen[event.document]) is not event:
            continue
        texts = set(chunks_of(event.document.collection, event.text or ""))
        bought.update(texts - shown[event.document])
        shown[event.document] = texts
    return bought


def _packed(text: str, size: int) -> Iterator[str]:
    splitter = TextSplitter(size, trim=False)
    while len(text) > size:
        piece = splitter.chunks(text[: size + 1])[0]
        yield piece
        text = text[len(piece) :]
    yield text


def vector_of(text: str) -> tuple[float, ...]:
    """What the provider of a run answers, as float4."""
    digest = hashlib.shake_128(f"{MODEL}/{text}".encode()).digest(2 * DIMENSIONS)
    odd = np.frombuffer(digest, "<i2").astype(np.float32) * np.float32(2) + np.float32(1)
    return tuple(map(float, (odd / np.sqrt(np.dot(odd, odd))).astype(np.float32)))


# ---- the log of a run, once read ----


class Log:
    """The records of a run by document and by place, poison apart."""

    def __init__(self, history: History) -> None:
        self.poison = {r.order[:3]: r for r in history.records if r.poison}
        self.events = {r.order[:3]: event_of(r) for r in history.records if not r.poison}
        self.by_document: defaultdict[Document, list[Event]] = defaultdict(list)
        for event in self.events.values():
            self.by_document[event.document].append(event)
        self.expected = {name: fold(events) for name, events in self.by_document.items()}
        self.barriers = {
            name: barrier.order
            for name, events in self.by_document.items()
            if (barrier := newest_barrier(events)) is not None
        }
        self.covered = _covered(history, self)

    def poisons_of(self, document: Document) -> Iterator[Event]:
        """Those that can be read: a provider refuses their text."""
        for record in self.poison.values():
            if is_readable(record) and event_of(record).document == document:
                yield event_of(record)


def is_readable(record: Record) -> bool:
    try:
        event_of(record)
    except ValueError:
        return False
    return True


def carries(row: Row, event: Event) -> bool:
    """Tell whether a row shows that an event was heeded, or has come too late."""
    if row.barrier is not None and not event.order.is_after(row.barrier):
        return True
    if event.version is None or row.version is None:
        return False
    if row.version != event.version:
        return row.version > event.version
    return not event.order.is_after(row.order)


def _covered(history: History, log: Log) -> dict[tuple[str, int, int], float]:
    """Return when in the audit each record was covered first."""
    changes = defaultdict(list)
    for change in history.changes:
        changes[change.document].append(change)
    covered: dict[tuple[str, int, int], float] = dict.fromkeys(log.poison, NEVER)
    poison = {at: event_of(r) for at, r in log.poison.items() if is_readable(r)}
    for position, event in (log.events | poison).items():
        found = (one.seq for one in changes[event.document] if carries(one.row, event))
        covered[position] = next(found, NEVER)
    for entry in history.ledger:
        position = (*entry.place, entry.offset)
        if entry.state != "pending" and entry.seq < covered.get(position, NEVER):
            covered[position] = entry.seq
    return covered


# ---- the anomalies ----


def check(history: History) -> Report:
    """Return all that is wrong."""
    log = Log(history)
    found: defaultdict[str, list[str]] = defaultdict(list)
    for anomalies in (
        _rows(history, log),
        _chunks(history, log),
        _overwrites(history, log),
        _zombies(history),
        _snapshots(history, log),
        _told(history, log),
        _regress(history),
        _letters(history, log),
        _end(history),
    ):
        for name, seen in anomalies:
            assert name in ANOMALIES
            found[name].append(seen)
    return Report(dict(found), _costs(history))


def _rows(history: History, log: Log) -> Found:
    for document, expected in log.expected.items():
        row = history.rows.get(document)
        name = _fault_of(row, expected) or _forgets(row, log.barriers.get(document))
        if name is None:
            continue
        yield name, f"{document} is {row}, should be {expected}"
        if any(is_newer(one, expected) for one in log.poisons_of(document)
               if None not in (one.version, expected.version)):  # fmt: skip
            yield "coalesced-into-dead-letter", f"{document}"
    for document, row in history.rows.items():
        if document not in log.expected:
            yield "aborted-read", f"{document} is {row}, and was never published"


def _fault_of(row: Row | None, expected: Event) -> str | None:
    if row is None:
        return "lost"
    if (row.version, row.deleted) == (expected.version, expected.text is None):
        is_same = expected.order in (row.order, row.barrier)
        return None if is_same else "stale"
    if expected.text is None and not row.deleted:
        return "resurrected"
    if carries(row, expected) and row.deleted:
        return "lost"
    return "stale"


def _forgets(row: Row, barrier: Order | None) -> str | None:
    """A row that does not know of a delete lets in what stands before it."""
    return None if row.barrier == barrier else "stale"


def _chunks(history: History, log: Log) -> Found:
    by_document = defaultdict(list)
    for chunk in sorted(history.chunks):
        by_document[chunk.document].append((chunk.seq, chunk.content))
        if chunk.vector != vector_of(chunk.content):
            yield "wrong-vector", f"{chunk}"
    for document, row in history.rows.items():
        shown = by_place(by_document.pop(document, ()))
        yield from _whole(State(document, row, shown), log)
    for document in by_document:
        yield "orphan", f"{document} has chunks and no row"


def _snapshots(history: History, log: Log) -> Found:
    for state in sorted(history.states, key=str):
        yield from _whole(state, log)


def _whole(state: State, log: Log) -> Found:
    """A document shows all of one version and nothing else."""
    row = state.row
    if row is None or row.deleted:
        if state.chunks:
            yield "orphan", f"{state}"
        return
    said = list(_said(state.document, row, log))
    yield from said
    if not said:
        event = log.events[row.order[:3]]
        if state.chunks != chunks_of(state.document.collection, event.text or ""):
            yield "torn", f"{state}"


def _said(document: Document, row: Row, log: Log) -> Found:
    """A row says what its record says, and knows of deletes that there are."""
    event = log.events.get(row.order[:3])
    if event is not None:
        if event[:2] != (document, row.version) or (event.text is None) != row.deleted:
            yield "torn", f"{document} is {row}, and its record says {event}"
    elif row.order[:3] in log.poison:
        yield "torn", f"{document} is {row}, which is a record that cannot pass"
    else:
        yield "aborted-read", f"{document} is {row}, which stands nowhere in the log"
    if row.barrier is not None:
        event = log.events.get(row.barrier[:3])
        if event is None or event[:2] != (document, None):
            yield "aborted-read", f"{document} is {row}, and was not deleted there"


def _overwrites(history: History, log: Log) -> Found:
    last: dict[Document, Row] = {}
    for change in history.changes:
        old, new = last.get(change.document), change.row
        last[change.document] = new
        yield from _said(change.document, new, log)
        if old is not None and _goes_back(old, new):
            yield "stale-overwrite", f"{change.document} from {old} to {new}"


def _goes_back(old: Row, new: Row) -> bool:
    """Nothing older comes, but over a delete without a version that is newer than all."""
    if old.barrier != new.barrier:
        if new.barrier is None or (old.barrier and not new.barrier.is_after(old.barrier)):
            return True
        return new.order != new.barrier and new != old._replace(barrier=new.barrier)
    versions = [-1 if row.version is None else row.version for row in (old, new)]
    if versions[0] != versions[1]:
        return versions[1] < versions[0]
    return old.order.is_after(new.order)


def _zombies(history: History) -> Found:
    """Nobody writes for a partition that somebody else has claimed since."""
    owners: dict[Place, str | None] = {}
    barriers: dict[Document, Order | None] = {}
    # That a letter is published is a fact, which anybody may write down.
    letters = [entry for entry in history.ledger if entry.state == "pending"]
    for entry in sorted((*history.claims, *history.changes, *letters), key=lambda one: one.seq):
        worker = history.workers.get(entry.port)
        if isinstance(entry, Claimed):
            owners[entry.place] = worker
            continue
        owner = owners.get(_written_for(entry, barriers))
        if None not in (worker, owner) and worker != owner:
            yield "zombie-write", f"{entry} by {worker}, the owner is {owner}"


def _written_for(entry: Change | Ledgered, barriers: dict[Document, Order | None]) -> Place:
    """Return the partition of the record that is written; takes note of its delete."""
    if isinstance(entry, Ledgered):
        return entry.place
    row, known = entry.row, barriers.get(entry.document)
    barriers[entry.document] = row.barrier
    moved = row.barrier if known != row.barrier else row.order
    return (moved or row.order).place


class _Reached:
    """Up to when in the audit all records below an offset were covered."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._positions: defaultdict[Place, list[tuple[str, int, int]]] = defaultdict(list)
        for position in sorted({*log.events, *log.poison}):
            self._positions[position[:2]].append(position)
        self._latest = {
            place: list(accumulate((log.covered[one] for one in positions), max))
            for place, positions in self._positions.items()
        }

    def below(self, place: Place, offset: int) -> list[tuple[str, int, int]]:
        positions = self._positions[place]
        return positions[: bisect_left(positions, (*place, offset))]

    def is_open(self, place: Place, offset: int, seq: float) -> bool:
        """Tell whether anything below an offset was not covered at that time."""
        count = len(self.below(place, offset))
        return count > 0 and self._latest[place][count - 1] > seq


def _told(history: History, log: Log) -> Found:
    """Everything below an offset that anybody was told is covered by then."""
    reached = _Reached(log)
    for entry in history.progress:
        if reached.is_open(entry.place, entry.next_offset, entry.seq):
            yield "watermark-skip", f"{entry}"
    for sample in history.samples:
        for place, offset in sample.committed.items():
            if reached.is_open(place, offset, sample.seq):
                yield "watermark-skip", f"Kafka was told {offset} of {place} at {sample.seq}"
    yield from _ahead(history)
    yield from _nowhere(history, log, reached)


def _nowhere(history: History, log: Log, reached: _Reached) -> Found:
    committed = history.samples[-1].committed if history.samples else {}
    for place, offset in committed.items():
        for position in reached.below(place, offset):
            if log.covered[position] == NEVER:
                yield "lost", f"{position} is below {offset} and nowhere"


def _ahead(history: History) -> Found:
    said: dict[Place, list[tuple[int, int]]] = defaultdict(list)
    highest: Counter[Place] = Counter()
    for entry in history.progress:
        highest[entry.place] = max(highest[entry.place], entry.next_offset)
        said[entry.place].append((entry.seq, highest[entry.place]))
    for sample in history.samples:
        for place, offset in sample.committed.items():
            before = bisect_left(said[place], (sample.seq + 1, 0))
            known = said[place][before - 1][1] if before else 0
            if offset > known:
                yield "ahead-of-store", f"Kafka was told {offset} of {place}, the table {known}"


def _regress(history: History) -> Found:
    """`next_offset` falls only where a claim has just decided a lower start."""
    last: dict[Place, int] = {}
    is_fresh: dict[Place, bool] = {}
    for entry in sorted((*history.claims, *history.progress), key=lambda one: one.seq):
        if hasattr(entry, "epoch"):
            is_fresh[entry.place] = True
            continue
        if entry.next_offset < last.get(entry.place, 0) and not is_fresh.get(entry.place):
            yield "regress", f"{entry} after {last[entry.place]}"
        last[entry.place] = entry.next_offset
        is_fresh[entry.place] = False


def _letters(history: History, log: Log) -> Found:
    reasons: defaultdict[tuple[str, int, int], set[str]] = defaultdict(set)
    for letter in history.letters:
        reasons[letter[:3]].add(letter.reason)
    for entry in history.ledger:
        position = (*entry.place, entry.offset)
        if entry.state != "pending" and position not in reasons:
            yield "dlq-missing", f"{entry}, and there is no letter"
    for position, record in log.poison.items():
        told = reasons.pop(position, set())
        if told == {record.poison}:
            continue
        if not told and is_readable(record) and _is_beaten(record, log):
            continue
        yield "dlq-missing", f"{position} should be {record.poison}, is {told or None}"
    for position, told in reasons.items():
        yield "dlq-extra", f"{position} is {told}, and could pass"


def _is_beaten(record: Record, log: Log) -> bool:
    """A text that nobody asks the provider for, as a newer one or a delete stands."""
    event = event_of(record)
    standing = fold([*log.by_document[event.document], event])
    return standing != event


def _end(history: History) -> Found:
    if not history.samples:
        return
    committed = history.samples[-1].committed
    table: dict[Place, int] = {}
    for entry in history.progress:
        table[entry.place] = entry.next_offset
    for place, end in history.ends.items():
        if committed.get(place, 0) < end:
            yield "unseen", f"{place} is at {committed.get(place, 0)} of {end}"
        if committed.get(place, 0) > table.get(place, 0):
            yield "kafka-ahead-of-next_offset", f"{place}: {committed[place]}"


def _costs(history: History) -> dict[str, int]:
    letters = Counter(letter[:3] for letter in history.letters)
    rewinds = sum(
        0 < new.committed[place] < old.committed.get(place, 0)
        for old, new in pairwise(history.samples)
        for place in new.committed
    )
    return {
        "embeddings": history.embedded.total(),
        "duplicate embeddings": sum(count - 1 for count in history.embedded.values()),
        "duplicate dead letters": sum(count - 1 for count in letters.values()),
        "rewinds of Kafka's offsets": rewinds,
    }
