"""Who is told of assignments in tests, and how to read a source without sleeping."""

import asyncio

from worker.adapters.memory_broker import Changes

PATIENCE_SECONDS = 15


class Member:
    """A source with the one who is told of its assignments; begins everything if asked to."""

    def __init__(self, source, *, begin_at=None, drain=None):
        self.source = source
        self.begin_at = begin_at
        self.drain = drain
        self.changes = Changes()
        self.events = []
        self.failures = {}
        self.unreadables = []
        self.number = 0
        self.partitions = frozenset()

    def assigned(self, assignment, partitions):
        self.events.append(("assigned", assignment, partitions))
        self.number, self.partitions = assignment, partitions
        if self.begin_at is not None:
            for partition in partitions:
                assert self.source.begin(assignment, partition, self.begin_at)
        self.changes.announce()

    async def revoked(self):
        self.events.append(("revoked", self.number, self.partitions))
        if self.drain is not None:
            await self.drain()
        self.events.append(("drained", self.number, self.partitions))
        self.changes.announce()

    def failed(self, partition, reason):
        self.failures[partition] = reason
        self.changes.announce()

    def unreadable(self, partition, offset, error):
        self.unreadables.append((partition, offset, error))
        self.changes.announce()

    async def until(self, fact):
        """Wait for a fact while polling nothing, as a worker under back-pressure does."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not fact(self):
                await self.source.poll([])

    async def take(self, enough, wanted=None, singly=frozenset()):
        """Poll until `enough(batches)`; returns the batches."""
        batches = []
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not enough(batches):
                asked = sorted(self.partitions) if wanted is None else wanted
                batches += await self.source.poll(asked, singly)
        return batches

    async def take_records(self, count, wanted=None):
        """Poll until so many records came; returns all that came."""
        batches = await self.take(lambda got: len(records_of(got)) >= count, wanted)
        return records_of(batches)

    async def take_until_offset(self, partition, offset):
        """Poll one partition until everything below an offset was handed out."""
        batches = await self.take(
            lambda got: bool(got) and got[-1].next_offset >= offset, [partition]
        )
        return records_of(batches), batches[-1].next_offset


def records_of(batches):
    return [record for batch in batches for record in batch.records]


def values_of(records):
    return [record.value for record in records]
