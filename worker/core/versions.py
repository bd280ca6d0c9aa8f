"""
Versions that are times, and whether one of them has not come yet.

A publisher whose clock is ahead gives a document a version that no later change overtakes, so
such an event is refused before anything of it is done. Only where the configuration says that
versions are times, and in which unit: else they are numbers that mean nothing here.

A version is held against the time of its own record, never against a clock of ours: whoever
reads the record, and whenever, refuses it or none does. That is the broker's clock on topics
with `message.timestamp.type=LogAppendTime`, elsewhere the producer's.
"""

from collections.abc import Iterable

from schemas.bounds import Undecodable
from schemas.dead_letter import Reason
from schemas.events import Event, Tombstone
from worker.config import VersionClock

MOST_AHEAD_SECONDS = 300
"""Clocks that are kept by NTP differ by far less; Kerberos bears the same five minutes."""

_PER_SECOND: dict[VersionClock, int] = {
    "seconds": 1,
    "milliseconds": 1_000,
    "microseconds": 1_000_000,
}


def refuse_future(event: Event, clock: VersionClock, times_ms: Iterable[int]) -> None:
    """
    Refuse an event whose version is further ahead of its record than clocks differ.

    `times_ms` are the record's timestamp and that of the origin which a replay claims: the
    earliest counts. A negative one is none, as of old producers.

        >>> from schemas.events import ScopeDeleted
        >>> refuse_future(ScopeDeleted(tenant="acme", version=2_000), "seconds", [1_700_000])
        >>> refuse_future(ScopeDeleted(tenant="acme", version=2_001), "seconds", [1_700_000])
        Traceback (most recent call last):
            ...
        schemas.bounds.Undecodable: version_in_future: the version is 301 s ahead of its record

    Raises:
        Undecodable: with the reason `version_in_future`.
    """
    per_second = _PER_SECOND.get(clock)
    known_ms = [time_ms for time_ms in times_ms if time_ms >= 0]
    if per_second is None or isinstance(event, Tombstone) or not known_ms:
        return
    ahead_seconds = event.version / per_second - min(known_ms) / 1000
    if ahead_seconds > MOST_AHEAD_SECONDS:
        detail = f"the version is {ahead_seconds:.0f} s ahead of its record"
        raise Undecodable(Reason.VERSION_IN_FUTURE, detail, event)
