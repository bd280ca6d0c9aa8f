"""
What the ledger can hold of a dead letter: it must never fail on what made the record fail.

Pure; shared by the ledger of PostgreSQL and the one in memory.
"""

from dataclasses import replace

from schemas.events import MAX_VERSION
from worker.ports import DeadLetter

# Enough for a sentence of an error; the record itself stands in the dead-letter topic.
_MAX_CHARACTERS = 2_000


def storable(letter: DeadLetter) -> DeadLetter:
    """Return the letter with texts that PostgreSQL takes: no NUL, valid UTF-8, not too long."""
    version = letter.version
    return replace(
        letter,
        stage=clean(letter.stage),
        detail=clean(letter.detail),
        tenant=_clean_optional(letter.tenant),
        collection=_clean_optional(letter.collection),
        document_id=_clean_optional(letter.document_id),
        traceparent=_clean_optional(letter.traceparent),
        version=version if version is not None and 0 <= version <= MAX_VERSION else None,
    )


def clean(text: str) -> str:
    """Return a text as PostgreSQL takes it."""
    valid = text[:_MAX_CHARACTERS].encode("utf-8", "replace").decode()
    return valid.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _clean_optional(text: str | None) -> str | None:
    return None if text is None else clean(text)
