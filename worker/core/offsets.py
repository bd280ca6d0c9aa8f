"""
Which offset of a partition may be committed.

Owns one number per partition, the committable offset: every record below it is settled; and
since when each of the others is in flight.
Tracks only the offsets that were polled, so gaps left by compaction and transaction markers
need no care. Never commits, never waits, never reads a clock.

Invariants: it never goes back; it never passes an offset that is in flight; it never passes
what the poll task has handed out (protocol, change 6).
"""

from collections import OrderedDict


class OffsetTracker:
    """
    The in-flight offsets of one assigned partition.

        >>> tracker = OffsetTracker(start=10)
        >>> tracker.track(10, at=0.5), tracker.track(12, at=0.7)
        (None, None)
        >>> tracker.advance(15)  # 13 and 14 are markers
        >>> tracker.complete(12)
        >>> tracker.committable, tracker.oldest_at
        (10, 0.5)
        >>> tracker.complete(10)
        >>> tracker.committable
        15
    """

    def __init__(self, start: int) -> None:
        # An OrderedDict, not a dict: reading the first key of a dict whose head was
        # deleted many times walks the holes.
        self._in_flight: OrderedDict[int, float] = OrderedDict()
        self._next = start
        self.tracked = 0
        self.settled = 0

    def track(self, offset: int, at: float) -> None:
        """Take an offset in flight at this time; offsets come in the order of the log."""
        if offset < self._next:
            raise ValueError(f"offset {offset} is below {self._next}")
        self._in_flight[offset] = at
        self._next = offset + 1
        self.tracked += 1

    def advance(self, next_offset: int) -> None:
        """Take note that everything below this offset was handed out."""
        self._next = max(self._next, next_offset)

    def complete(self, offset: int) -> None:
        """Settle an offset, in any order; settling one twice changes nothing."""
        if offset in self._in_flight:
            del self._in_flight[offset]
            self.settled += 1

    def has(self, offset: int) -> bool:
        """Tell whether an offset is in flight."""
        return offset in self._in_flight

    @property
    def committable(self) -> int:
        """The offset to commit: the lowest that is not settled yet."""
        return next(iter(self._in_flight), self._next)

    @property
    def oldest_at(self) -> float | None:
        """When the lowest offset in flight was taken, None where none is in flight."""
        return next(iter(self._in_flight.values()), None)

    @property
    def handed_out(self) -> int:
        """The offset behind all that the poll task has taken."""
        return self._next

    @property
    def in_flight(self) -> int:
        """How many offsets are tracked and not settled."""
        return len(self._in_flight)
