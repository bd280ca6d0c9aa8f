"""
What must hold in a universe at every moment (protocol, section 2: S1, S3, S6, S7).

Reads only the broker's log and the tables. `Audit.check` raises `Broken` with the anomaly's
name at the first commit, of the database or of the group, after which a promise is broken.
"""

from schemas.codec import Limits, Undecodable, decode_record
from schemas.events import DocumentUpserted, ScopeDeleted, Tombstone
from worker.core.model import DocumentKey, Order, Partition


class Broken(AssertionError):
    """A promise does not hold."""


class Audit:
    """Checks a universe after every commit, and as a whole at its end."""

    def __init__(self, universe, group) -> None:
        self.universe = universe
        self.group = group
        self.seen = {}
        self.checks = 0
        self._events = {}
        self._said = {}

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

    # ---- the promises ----

    def check(self) -> None:
        self.checks += 1
        self._no_row_goes_back()
        self._everything_told_is_covered()
        self._chunks_are_those_of_the_row()
        self._kafka_is_not_ahead()

    def _no_row_goes_back(self) -> None:
        rows = self.universe.database.state.documents
        for key, row in rows.items():
            new = (row.stored.version, row.stored.order, row.stored.barrier)
            old = self.seen.get(key)
            if old is not None and old != new and old[2] == new[2]:
                self._forward(key, old, new)
            self.seen[key] = new
        for key in [key for key in self.seen if key not in rows]:
            del self.seen[key]

    def _forward(self, key, old, new) -> None:
        was, now = old[0] if old[0] is not None else -1, new[0] if new[0] is not None else -1
        if now < was or (now == was and not new[1].is_after(old[1])):
            raise Broken(f"stale-overwrite: {key} went from {old} to {new}")

    def _everything_told_is_covered(self) -> None:
        state = self.universe.database.state
        for partition, record in self.records():
            told = max(
                self.universe.broker.committed.get((self.group, partition), 0),
                getattr(state.progress.get((self.group, partition)), "next_offset", 0),
            )
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

    def _chunks_are_those_of_the_row(self) -> None:
        for key, row in self.universe.database.state.documents.items():
            contents = {chunk.content for chunk, _ in row.chunks.values()}
            if contents != self._wanted(key, row):
                raise Broken(f"torn: {key} shows {contents}")

    def _wanted(self, key, row):
        stored = row.stored
        if stored.deleted:
            return set()
        order = stored.order
        log = self.universe.broker.log((order.topic, order.partition))
        event = self.event(log.at(order.offset))
        assert isinstance(event, DocumentUpserted), key
        text = event.text.replace("\0", "\ufffd")
        return self.universe.pieces(text)

    def _kafka_is_not_ahead(self) -> None:
        # Of what the table ever said: a claim that starts lower writes that back, and a commit
        # that was sent before may still arrive. It names a stable fact, so it only rewinds.
        for key, progress in self.universe.database.state.progress.items():
            self._said[key] = max(self._said.get(key, 0), progress.next_offset)
        for key, offset in self.universe.broker.committed.items():
            if offset > self._said.get(key, -1):
                raise Broken(f"kafka-ahead-of-next_offset: {key} {offset} {self._said}")

    # ---- the end ----

    def check_end(self) -> None:
        """Everything is done: the table is the fold of the log without the dead letters."""
        self.check()
        for partition, record in self.records():
            if not self.is_covered(record):
                raise Broken(f"lost: {record.position} of {partition} has no fate")
