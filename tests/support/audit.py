"""
What must hold in a universe at every moment (protocol, section 2: S1, S3, S4, S6, S7).

Reads the broker's log and the tables, and of the workers only what each carries. `Audit.check`
raises `Broken` with the anomaly's name at the first commit, of the database or of the group,
after which a promise is broken, and at each one from then on: a worker may have caught it.
"""

from schemas.codec import Limits, Undecodable, decode_record
from schemas.dead_letter import parse_dead_letter
from schemas.events import DocumentUpserted, ScopeDeleted, Tombstone
from worker.adapters.memory_ledger import MemoryLedger
from worker.adapters.memory_store import MemoryStore
from worker.core.lifecycle import Phase
from worker.core.model import DocumentKey, Order, Partition, Progress


class Broken(AssertionError):
    """A promise does not hold."""


class WatchedStore(MemoryStore):
    """Tells the audit of each document that is written, before it is."""

    def __init__(self, database, audit) -> None:
        super().__init__(database)
        self._audit = audit

    def _write(self, write) -> None:
        self._audit.writes(write.claim, write.change.key)
        super()._write(write)


class WatchedLedger(MemoryLedger):
    """Tells the audit of each dead letter that is written, before it is."""

    def __init__(self, database, audit) -> None:
        super().__init__(database)
        self._audit = audit

    def _write(self, key, letter):
        self._audit.writes(letter.claim, key)
        return super()._write(key, letter)


def carried(queue):
    """Yield all works that a queue holds: waiting, in flight, and parked under those."""
    for works in queue._queues.values():
        yield from works
    for work in queue.works_in_flight():
        yield from (work, *work.parked)


class Audit:
    """
    Checks a universe after every commit, and as a whole at its end.

    `is_poison` tells of an event whether a dead letter is its right end; None: any may be.
    """

    def __init__(self, universe, group) -> None:
        self.universe = universe
        self.group = group
        self.seen = {}
        self.is_poison = None
        self._broken = None
        self._events = {}
        self._bygone = {}
        self._told_before = {}
        self._said = {}
        self._vectors = {}
        self._letters = {}

    # ---- the log, read independently ----

    def event(self, record):
        position = record.position
        if position not in self._events:
            try:
                decoded = decode_record(record.key, record.value, record.headers, Limits())
                self._events[position] = decoded.event
            except Undecodable:
                self._events[position] = None
        return self._events[position]

    def records(self):
        broker = self.universe.broker
        for partition in broker.partitions(self.universe.topics):
            for record in broker.log(partition).records:
                yield partition, record

    def log_is_gone(self) -> None:
        """Take note that a topic was created again: what is in the tables speaks of another."""
        self._events.clear()
        self._bygone = self._stored()
        self._told_before = dict(self.universe.database.state.progress)

    def _stored(self):
        return {key: row.stored for key, row in self.universe.database.state.documents.items()}

    # ---- the promises ----

    def check(self) -> None:
        if self._broken is not None:
            raise self._broken
        try:
            self._whatever_is_carried_is_in_flight()
            self._no_row_goes_back()
            self._everything_told_is_covered()
            self._rows_say_what_their_records_say()
            self._chunks_are_those_of_the_row()
            self._kafka_is_not_ahead()
            self._letters_are_published_and_deserved()
        except Broken as broken:
            self._broken = broken
            raise

    def writes(self, claim, what) -> None:
        """Nobody writes under a claim that is not the newest."""
        row = self.universe.database.state.claims.get((claim.group, claim.partition))
        newest = None if row is None else (row.epoch, row.claim_id)
        history = self.universe.database.history
        if (newest, history) != ((claim.epoch, claim.claim_id), claim.history):
            self._broken = Broken(f"zombie-write: {what} under {claim}, the newest is {row}")
            raise self._broken

    def _no_row_goes_back(self) -> None:
        rows = self.universe.database.state.documents
        for key, row in rows.items():
            new = (row.stored.version, row.stored.order, row.stored.barrier)
            old = self.seen.get(key)
            if old is not None and old != new and self._goes_back(old, new):
                raise Broken(f"stale-overwrite: {key} went from {old} to {new}")
            self.seen[key] = new
        for key in [key for key in self.seen if key not in rows]:
            del self.seen[key]

    def _goes_back(self, old, new) -> bool:
        """Nothing older comes, but over a delete without a version that is newer than all."""
        if old[2] != new[2]:
            if new[2] is None or (old[2] is not None and not new[2].is_after(old[2])):
                return True
            return new[1] != new[2] and new[:2] != old[:2]
        was, now = (-1 if version is None else version for version in (old[0], new[0]))
        return now < was or (now == was and not new[1].is_after(old[1]))

    def _everything_told_is_covered(self) -> None:
        state = self.universe.database.state
        for partition, record in self.records():
            place = self.group, partition
            saved = state.progress.get(place)
            if saved is None or saved == self._told_before.get(place):
                saved = Progress(0)
            told = max(self.universe.broker.committed.get(place, 0), saved.next_offset)
            if record.position.offset < told and not self.is_covered(record):
                raise Broken(f"lost: {record.position} is below {told} and nowhere")

    def is_covered(self, record) -> bool:
        return self.is_dead_letter(record) or self.is_carried(record)

    def is_dead_letter(self, record) -> bool:
        """Also by a letter that points at its batch, where that cannot be read."""
        topic, number, offset = record.position
        log = self.universe.broker.log(Partition(topic, number))
        batches = [batch for batch in log.broken if offset in batch] or [
            range(offset, offset + 1)
        ]
        return any(
            row.state != "pending"
            for key, row in self.universe.database.state.letters.items()
            if key.partition == (topic, number) and key.offset in batches[0]
        )

    def is_carried(self, record) -> bool:
        event = self.event(record)
        state = self.universe.database.state
        if event is None:
            return False
        if isinstance(event, ScopeDeleted):
            return self._scope(event.tenant, event.collection) >= event.version
        if not isinstance(event, Tombstone) and self._is_reached(event):
            return True
        row = state.documents.get(DocumentKey(event.tenant, event.collection, event.id))
        order = Order(*record.position, record.timestamp_ms)
        return row is not None and self._carries(row.stored, event, order)

    def _carries(self, stored, event, order) -> bool:
        if stored.barrier is not None and not order.is_after(stored.barrier):
            return True
        if isinstance(event, Tombstone):
            return False
        if stored.version != event.version:
            return stored.version is not None and stored.version > event.version
        return not order.is_after(stored.order)

    def _is_reached(self, event) -> bool:
        return (
            max(self._scope(event.tenant, event.collection), self._scope(event.tenant, ""))
            >= event.version
        )

    def _scope(self, tenant, collection) -> int:
        name = collection if isinstance(collection, str) else ""
        rank = self.universe.database.state.scopes.get((tenant, name))
        return -1 if rank is None else rank.version

    def _rows_say_what_their_records_say(self) -> None:
        for key, stored in self._stored().items():
            if stored == self._bygone.get(key):
                continue
            event = self._event_at(stored.order)
            if not stored.deleted and not isinstance(event, DocumentUpserted):
                raise Broken(f"resurrected: {key} is shown, and its record is {event}")
            said = event is not None and (
                DocumentKey(event.tenant, event.collection, event.id),
                getattr(event, "version", None),
                not isinstance(event, DocumentUpserted),
            )
            if said != (key, stored.version, stored.deleted):
                raise Broken(f"torn: {key} is {stored}, and its record says {event}")

    def _event_at(self, order):
        record = self.universe.broker.log((order.topic, order.partition)).at(order.offset)
        return None if record is None else self.event(record)

    def _chunks_are_those_of_the_row(self) -> None:
        for key, row in self.universe.database.state.documents.items():
            chunks = sorted((chunk.seq, chunk.content) for chunk, _ in row.chunks.values())
            is_bygone = row.stored == self._bygone.get(key)
            if not is_bygone and chunks != list(enumerate(self._wanted(row.stored))):
                raise Broken(f"torn: {key} shows {chunks}")
            for chunk, vector in row.chunks.values():
                if vector != self._vector(key.collection, chunk.content):
                    raise Broken(f"wrong-vector: {key} {chunk.content!r}")

    def _vector(self, name, content):
        collection = self.universe.database.state.collections[name]
        place = collection.model, collection.dimensions, content
        if place not in self._vectors:
            self._vectors[place] = self.universe.vector_of(content, *place[:2])
        return self._vectors[place]

    def _wanted(self, stored):
        if stored.deleted:
            return []
        text = self._event_at(stored.order).text.replace("\0", "\ufffd")
        return self.universe.pieces(text)

    def _kafka_is_not_ahead(self) -> None:
        # Of what the table ever said: a claim that starts lower writes that back, and a commit
        # that was sent before may still arrive. It names a stable fact, so it only rewinds.
        for key, progress in self.universe.database.state.progress.items():
            self._said[key] = max(self._said.get(key, 0), progress.next_offset)
        for key, offset in self.universe.broker.committed.items():
            if offset > self._said.get(key, -1):
                raise Broken(f"kafka-ahead-of-next_offset: {key} {offset} {self._said}")

    def _letters_are_published_and_deserved(self) -> None:
        state = self.universe.database.state
        told = self._told() if state.letters else ()
        for key, row in state.letters.items():
            place = (*key.partition, key.offset)
            if row.state != "pending" and place not in told:
                raise Broken(f"dlq-missing: {place} is {row.state} and not in its topic")
            event = self.event(row.letter.record)
            if self.is_poison is not None and event is not None and not self.is_poison(event):
                raise Broken(f"dlq-extra: {place} for {row.letter.reason}")

    def _told(self):
        """Return the places of the records that the dead-letter topic holds."""
        (topic,) = self.universe.broker.partitions(["documents.dead-letters"])
        for letter in self.universe.broker.log(topic).records[len(self._letters) :]:
            envelope, _ = parse_dead_letter(letter.headers)
            place = (envelope.topic, envelope.partition, envelope.offset)
            self._letters[letter.position.offset] = place
        return set(self._letters.values())

    def _whatever_is_carried_is_in_flight(self) -> None:
        """No work completes an offset that another one is still carried for."""
        for member in self.universe.members:
            dispatch = member.worker.dispatch
            for work in carried(dispatch.scheduler):
                life = dispatch._lives.find(work.claim.partition)
                if life is None or life.phase is not Phase.RUNNING or life.claim != work.claim:
                    continue
                if not life.has_in_flight(work.position.offset):
                    raise Broken(f"settled-in-flight: {work.position} under {work.claim}")

    # ---- the end ----

    def check_end(self) -> None:
        """Every record is in a row that is no older, or a dead letter: so rows are the fold."""
        self.check()
        for partition, record in self.records():
            if not self.is_covered(record):
                raise Broken(f"lost: {record.position} of {partition} has no fate")
