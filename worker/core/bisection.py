"""
Which inputs of a refused request are to blame.

Owns the parts of one request that are still in question. A refused part is cut in two, and
both are sent again, at once if the caller likes; a part of one that is refused is poison.
Never sends, never guesses: every verdict is an answer of the provider, so a request that was
only too large as a whole has no poison.

Invariants: every other input is in exactly one accepted part, so neighbours are bought once;
k poisons in n inputs cost at most 2k * log2(n/k) + 2k requests more.
"""


class Bisection:
    """
    The search for the poison in a request of `size` inputs that was refused.

        >>> search = Bisection(3)
        >>> search.take()
        [range(0, 2), range(2, 3)]
        >>> search.refused(range(0, 2))
        >>> search.accepted(range(2, 3))
        >>> search.take()
        [range(0, 1), range(1, 2)]
        >>> search.accepted(range(0, 1))
        >>> search.refused(range(1, 2))
        >>> search.is_done, search.poison
        (True, {1})
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError("a request has at least one input")
        self.poison: set[int] = set()
        self._to_send: list[range] = []
        self._in_flight: set[range] = set()
        self._blame(range(size))

    def take(self) -> list[range]:
        """Return the parts to send now, each once."""
        parts, self._to_send = self._to_send, []
        self._in_flight.update(parts)
        return parts

    def accepted(self, part: range) -> None:
        """Take note that a part was answered, or failed in a way that blames no input."""
        self._end(part)

    def refused(self, part: range) -> None:
        """Take note that a part holds at least one poison."""
        self._end(part)
        self._blame(part)

    @property
    def is_done(self) -> bool:
        """Whether nothing is in question any more."""
        return not self._to_send and not self._in_flight

    def _end(self, part: range) -> None:
        if part not in self._in_flight:
            raise ValueError(f"{part} is not in flight")
        self._in_flight.remove(part)

    def _blame(self, part: range) -> None:
        if len(part) == 1:
            self.poison.add(part.start)
        else:
            self._to_send += halves(part)


def halves(part: range) -> tuple[range, range]:
    """
    Cut a part of two or more at the largest power of two below its size.

    Not in the middle: parts of odd sizes make the tree so uneven that it breaks the bound
    (2 in 10 cost 14; a test computes it).
    """
    cut = 1 << ((len(part) - 1).bit_length() - 1)
    return part[:cut], part[cut:]
