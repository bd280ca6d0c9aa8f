"""
Why a record is in the dead-letter topic: the codes are a contract with the replay tool.

A dead letter carries the original key, value and headers byte for byte; what the worker
adds stands in headers of its own, all with the prefix `embedfleet.`.
"""

from enum import StrEnum


class Reason(StrEnum):
    """The stable code of one way in which a record cannot pass."""

    UNDECODABLE = "undecodable"
    """The value is no JSON, no UTF-8, or nested too deeply."""
    INVALID_SCHEMA = "invalid_schema"
    """JSON, but not an event: a field is missing, out of bounds or of another type."""
    UNKNOWN_TYPE = "unknown_type"
    """An event of a type that this version does not know."""
    OVERSIZE = "oversize"
    """The text, the metadata or the record is larger than configured."""
    MISSING_KEY = "missing_key"
    """The record has no key, so its order among its document's records is unknown."""
    INVALID_KEY = "invalid_key"
    """The key is not `tenant/collection/id`, percent-encoded."""
    KEY_MISMATCH = "key_mismatch"
    """The key names another document than the value."""
    NUL_CHARACTER = "nul_character"
    """The text holds U+0000 and the worker is configured to refuse it."""
    UNKNOWN_COLLECTION = "unknown_collection"
    """No such collection, also after the time of grace."""
    REJECTED_INPUT = "rejected_input"
    """The embedding provider refuses the text."""
    PROVIDER_BAD_OUTPUT = "provider_bad_output"
    """The embedding provider gives no usable vector for this text, but for others."""
    RETRIES_EXHAUSTED = "retries_exhausted"
    """The embedding provider fails for this document, but answers others."""
    DEADLINE_EXCEEDED = "deadline_exceeded"
    """The document took longer than its deadline, five times, while others passed."""
    REJECTED_BY_STORE = "rejected_by_store"
    """PostgreSQL refuses the values (SQLSTATE classes 22 and 23)."""
    INTERNAL_ERROR = "internal_error"
    """A defect of the worker; only where it is configured not to stop."""
