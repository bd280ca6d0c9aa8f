"""
How far a job is, and how long the rest of it takes.

Values that jobs tell whoever watches them. Pure: what time it is is told.
"""

from collections.abc import Callable
from typing import NamedTuple

_SHORT_SECONDS = 2.0
"""A pace of less says nothing."""


class Progress(NamedTuple):
    """
    What a job does, how much of that is done, how long it will still take.

    `share` and `left_seconds` None: not known; `detail` is what there is to say besides.
    """

    doing: str
    share: float | None = None
    left_seconds: float | None = None
    detail: str = ""


Watch = Callable[[Progress], object]
"""Is told how far a job is."""
WatchEach = Callable[[str, Progress], object]
"""Is told what a job works on, a collection or the group, and how far it is with that."""


class Pace(NamedTuple):
    """
    When something was looked at first, and how far it was then.

        >>> Pace(at=10.0, share=0.2).left_seconds(now=20.0, share=0.6)
        10.0
    """

    at: float
    share: float

    def left_seconds(self, now: float, share: float | None) -> float | None:
        """Return how long the rest takes at the pace since then, None where it says nothing."""
        if share is None or share <= self.share or now - self.at < _SHORT_SECONDS:
            return None
        return (now - self.at) * (1 - share) / (share - self.share)
