"""
Versions that are times, and whether one of them has not come yet.

A publisher whose clock is ahead gives a document a version that no later change overtakes, so
such an event is refused before anything of it is done. Only where the configuration says that
versions are times, and in which unit: else they are numbers that mean nothing here. Never
reads a clock.
"""

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


def refuse_future(event: Event, clock: VersionClock, now_seconds: float) -> None:
    """
    Refuse an event whose version is further ahead of our clock than clocks differ.

        >>> from schemas.events import ScopeDeleted
        >>> refuse_future(ScopeDeleted(tenant="acme", version=2_000), "seconds", 1_700.0)
        >>> refuse_future(ScopeDeleted(tenant="acme", version=2_001), "seconds", 1_700.0)
        Traceback (most recent call last):
            ...
        schemas.bounds.Undecodable: version_in_future: the version is 301 s ahead of our clock

    Raises:
        Undecodable: with the reason `version_in_future`.
    """
    per_second = _PER_SECOND.get(clock)
    if per_second is None or isinstance(event, Tombstone):
        return
    ahead_seconds = event.version / per_second - now_seconds
    if ahead_seconds > MOST_AHEAD_SECONDS:
        detail = f"the version is {ahead_seconds:.0f} s ahead of our clock"
        raise Undecodable(Reason.VERSION_IN_FUTURE, detail)
