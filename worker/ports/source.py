"""Where records come from, and who is told what the group assigns."""

from collections.abc import Collection as Several
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from worker.core.model import (
    Landmark,
    Partition,
    Record,
)


@dataclass(frozen=True, slots=True)
class PolledBatch:
    """
    Records of one partition in the order of the log, perhaps none.

    `next_offset` is the position after them, also past markers and compacted records: every
    record below it has been handed out.
    """

    partition: Partition
    records: tuple[Record, ...]
    next_offset: int


@dataclass(frozen=True, slots=True)
class BatchSpan:
    """What the header of a record batch says; `timestamp_ms` is the largest."""

    first: int
    last: int
    records: int
    size_bytes: int
    codec: str
    timestamp_ms: int


class Assignments(Protocol):
    """Who is told what the group assigns; the runner."""

    def assigned(self, assignment: int, partitions: frozenset[Partition]) -> None:
        """Take note of an assignment; nothing of it is polled before `Source.begin`."""

    async def revoked(self) -> None:
        """Drain all that is assigned, under the drain deadline, and commit. Never raises."""

    def failed(self, partition: Partition, reason: str) -> None:
        """Take note that a partition cannot be polled; it is paused, the others go on."""

    def unreadable(self, partition: Partition, offset: int, error: str) -> None:
        """Take note that the batch at `offset` is unreadable: paused; all below was polled."""


class Source(Protocol):
    """
    Where records come from: a member of a consumer group.

    `assignment` numbers grow with every assignment of this member; a number that is not the
    newest any more is refused by answering False or nothing.
    """

    async def open(self, assignments: Assignments) -> None:
        """Join the group; returns when joined or when the broker is known to be reachable."""

    async def poll(
        self, wanted: Sequence[Partition], singly: Several[Partition] = frozenset()
    ) -> list[PolledBatch]:
        """
        Return what has arrived for these partitions, in fair order, waiting a short while.

        Of partitions in `singly` at most one record, and no batch behind its own is unpacked.
        With nothing wanted it only keeps the membership alive. Nothing is awaited between
        taking the records from the client and returning them: the caller tracks them at once.

        Raises:
            BrokerUnavailable: this member will never deliver again; one that is merely away is
                waited for.
        """

    async def committed(self, partition: Partition) -> int | None:
        """Return the group's committed offset, None where there is none."""

    async def bounds(self, partition: Partition) -> tuple[int, int]:
        """Return the first offset that is still there and the end (last stable offset)."""

    async def landmark(self, partition: Partition, offset: int) -> Landmark | None:
        """Return the landmark of the record at this offset, None: gone, or not readable."""

    async def topic_ids(self) -> Mapping[str, UUID]:
        """
        Return the ids of our topics: a topic that was created again has another one.

        Without those that are not there now, or whose id the broker does not tell.
        """

    async def batch(self, partition: Partition, offset: int) -> BatchSpan | None:
        """
        Return the span of the batch at this offset, or of the first one behind it, if any.

        From the offset to the end of the span there are no records but those of that batch.

        Raises:
            PermanentError: what stands there does not say for certain where it ends, so
                nothing may be passed; asking again changes nothing.
            BrokerUnavailable: the broker does not answer.
        """

    def begin(self, assignment: int, partition: Partition, offset: int) -> bool:
        """Start polling at an offset; False where the assignment is not the newest any more."""

    def pause(self, partition: Partition) -> None:
        """Stop polling a partition until `begin`; one that is not ours is no error."""

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        """
        Tell the group what is done (an offset is the next one to read).

        Raises:
            FencedError: this member is not in the group (any more).
            BrokerUnavailable: the outcome is unknown.
        """

    async def confirm(self) -> tuple[int, frozenset[Partition]]:
        """Return assignment and partitions after a heartbeat that succeeded after this call."""

    def lag(self, partition: Partition, since: int | None = None) -> int | None:
        """
        Return how many offsets are stable and not polled, None while unknown.

        With `since` those from that offset on, polled or not.
        """

    async def close(self) -> None:
        """Leave the group; `revoked` is not called. Safe to call twice."""
