"""
How many texts go into one request to the provider.

Owns the three limits that providers put on a request (inputs, tokens, bytes) and the estimate
of tokens: counting them costs more than all other work on a text. Never reorders a queue and
never looks beyond the first item that does not fit, so the oldest never starves.

Invariants: a request is within all limits, unless it is one item that alone is not.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PackLimits:
    """What one request may hold at most."""

    max_inputs: int
    max_tokens: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Weight:
    """What an item adds to a request; an item may be several texts that stay together."""

    count: int
    tokens: int
    bytes: int


def estimate_tokens(text: str) -> int:
    """
    Return the bytes of a text divided by 3, rounded up.

    That is above what byte-level BPE makes of prose (4 bytes a token in English, 3 bytes a
    character and about one token in Chinese), which leaves the head-room a packed request
    needs; dense code or base64 can exceed it, and no text can exceed its bytes.

        >>> estimate_tokens("four words of English"), estimate_tokens("漢字")
        (7, 2)
    """
    size = len(text) if text.isascii() else len(text.encode())
    return -(-size // 3)


def take(weights: Iterable[Weight], limits: PackLimits) -> int:
    """
    Return how many items from the head of a queue make one request.

    At least one, where there is one: an item that alone is above a limit goes alone, and the
    provider decides. Reads one item more than it takes.

        >>> queue = [Weight(1, 300, 900), Weight(1, 500, 1500), Weight(1, 300, 900)]
        >>> take(queue, PackLimits(max_inputs=128, max_tokens=1000, max_bytes=10_000))
        2
    """
    taken = count = tokens = size = 0
    for weight in weights:
        count += weight.count
        tokens += weight.tokens
        size += weight.bytes
        fits = (
            count <= limits.max_inputs
            and tokens <= limits.max_tokens
            and size <= limits.max_bytes
        )
        if taken and not fits:
            break
        taken += 1
    return taken
