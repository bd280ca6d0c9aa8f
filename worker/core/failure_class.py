"""
The classes of failures of an embedding provider, by what the worker does about each.

Owns the names and the reactions in words, which the README prints; `core.taxonomy` tells which
failure is of which class.
"""

from enum import StrEnum


class FailureClass(StrEnum):
    """What kind of failure it is: by what happens next."""

    CONTENT = "content"
    THROTTLE = "throttle"
    QUOTA = "quota"
    TRANSIENT = "transient"
    AUTH = "auth"
    FORBIDDEN = "forbidden"
    CONFIG = "config"
    BAD_OUTPUT = "bad_output"

    @property
    def reaction(self) -> str:
        """What the worker does about it."""
        return _REACTIONS[self]


_REACTIONS = {
    FailureClass.CONTENT: (
        "Asks again for parts of the request until the text is found; its document alone is "
        "dead-lettered, for the reason beside the class, and the text is not asked for again "
        "before it or the model changes, or the letter is replayed."
    ),
    FailureClass.THROTTLE: (
        "Waits as long as the provider asks, and sends less at once; costs a document no "
        "attempt."
    ),
    FailureClass.QUOTA: (
        "Pauses and raises an alarm; nothing is dead-lettered. Goes on by itself once the "
        "account is funded."
    ),
    FailureClass.TRANSIENT: (
        "Tries again after a growing wait, up to `retry.max_attempts`. While the provider "
        "answers nobody, it pauses and nothing is dead-lettered."
    ),
    FailureClass.AUTH: (
        "Reads the key or fetches a token anew and asks once more; then as config, for all "
        "models."
    ),
    FailureClass.FORBIDDEN: (
        "Asks once more, then for parts of the request; a document is dead-lettered as "
        "`rejected_input` only while others are answered, since a firewall may forbid a text. "
        "Twice in a row and nobody answered between: as config."
    ),
    FailureClass.CONFIG: (
        "Leaves the model alone and raises an alarm that names what to check; nothing is "
        "dead-lettered. Goes on by itself once it is repaired."
    ),
    FailureClass.BAD_OUTPUT: (
        "Never stores it. Asks once more, then for parts of the request, for a single text "
        "up to `retry.max_attempts` times; its document is dead-lettered as "
        "`provider_bad_output` only while others get good answers."
    ),
}
