"""
What should be shown, computed from the records alone by code that is not the worker's.

Each function takes records as aiokafka polls them. The rules are those of the event contract:
the highest version stands; of equal ones the later; what is in the dead-letter topic does not
count; a scope delete reaches every version that is not higher than its own.
"""

import json
from collections import defaultdict
from dataclasses import dataclass

PREFIX = "embedfleet."


@dataclass(frozen=True)
class Letter:
    """A dead letter: the original record, and what the headers behind it say."""

    reason: str
    position: tuple[str, int, int]
    key: bytes | None
    value: bytes | None
    originals: tuple[tuple[str, bytes], ...]
    envelope: dict[str, str]


def letter_of(record) -> Letter:
    names = [name for name, _ in record.headers]
    start = len(names) - 1 - names[::-1].index(f"{PREFIX}reason")
    envelope = {
        name.removeprefix(PREFIX): value.decode() for name, value in record.headers[start:]
    }
    place = envelope["topic"], int(envelope["partition"]), int(envelope["offset"])
    return Letter(
        reason=envelope["reason"],
        position=place,
        key=record.key,
        value=record.value,
        originals=tuple(record.headers[:start]),
        envelope=envelope,
    )


def fold(records, letters=(), collection="articles") -> dict[str, tuple[int, str]]:
    """Return document -> (version, text) of all that is to be shown of a collection."""
    dead = {letter.position for letter in letters}
    newest, scopes = {}, defaultdict(lambda: -1)
    for record in records:
        if (record.topic, record.partition, record.offset) in dead:
            continue
        event = json.loads(record.value)
        if event.get("collection", collection) != collection:
            continue
        if event["type"] == "delete_scope":
            scopes[event["tenant"]] = max(scopes[event["tenant"]], event["version"])
            continue
        place = record.timestamp, record.topic, record.partition, record.offset
        key = event["tenant"], event["id"]
        newest[key] = max(
            newest.get(key, (-1, (), None)), (event["version"], place, event.get("text"))
        )
    return {
        document: (version, text)
        for (tenant, document), (version, _, text) in newest.items()
        if text is not None and version > scopes[tenant]
    }
