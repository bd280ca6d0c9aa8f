"""
What the facts mean that `doctor` has gathered: good, doubtful or wrong, and what to do.

Pure: facts in, findings out. The bounds have their reasons beside them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from worker.core.vector_index import WRONG, State
from worker.ops.doctor import Finding, Status

# Before 0.8.2 a parallel HNSW build can read and write beyond its memory (CVE-2026-3172).
REFUSED_PGVECTOR = (0, 8, 2)
GOOD_PGVECTOR = (0, 8, 4)
# A letter is its record with some more headers.
LETTER_OVERHEAD_BYTES = 16 * 1024


class TopicFacts(NamedTuple):
    """What the broker says of a topic."""

    name: str
    partitions: int
    replication: int
    max_message_bytes: int | None


def brokers(steps: Sequence[tuple[str, bool, str]]) -> list[Finding]:
    """Judge the steps (`server step`, whether it worked, detail): one broker is enough."""
    failed = {name.split()[0] for name, worked, _ in steps if not worked}
    all_servers = {name.split()[0] for name, _, _ in steps}
    bad = Status.WARN if all_servers - failed else Status.FAIL
    hint = "see kafka.bootstrap_servers and kafka.security_protocol"
    return [
        Finding(f"kafka {name}", Status.OK, detail)
        if worked
        else Finding(f"kafka {name}", bad, detail, hint)
        for name, worked, detail in steps
    ]


def pgvector(version: str | None) -> Finding:
    """Judge the version of the extension."""
    if version is None:
        return Finding(
            "pgvector", Status.FAIL, "the extension is missing", "embedfleet migrate up"
        )
    update = "install a newer pgvector, then: alter extension vector update"
    found = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if found < REFUSED_PGVECTOR:
        detail = f"{version} has CVE-2026-3172; at least 0.8.2 is needed"
        return Finding("pgvector", Status.FAIL, detail, update)
    if found < GOOD_PGVECTOR:
        return Finding("pgvector", Status.WARN, f"{version} is older than 0.8.4", update)
    return Finding("pgvector", Status.OK, version)


def schema(pending: Sequence[str], applied: int) -> Finding:
    """Judge the migrations."""
    if pending:
        missing = ", ".join(pending)
        return Finding(
            "schema", Status.FAIL, f"not applied: {missing}", "embedfleet migrate up"
        )
    return Finding("schema", Status.OK, f"{applied} migrations, all applied")


def document_topic(name: str, facts: TopicFacts | None) -> Finding:
    """Judge a topic that is consumed."""
    if facts is None:
        return Finding(
            f"topic {name}", Status.FAIL, "there is none", "embedfleet topics create"
        )
    detail = f"{facts.partitions} partitions, {facts.replication} replicas"
    if facts.partitions == 1:
        hint = "one worker only can be busy at a time; more partitions let more workers share"
        return Finding(f"topic {name}", Status.WARN, detail, hint)
    return Finding(f"topic {name}", Status.OK, detail)


def dead_letter_topic(
    name: str, facts: TopicFacts | None, documents: Sequence[TopicFacts]
) -> Finding:
    """Judge the dead-letter topic: a letter must fit where its record did."""
    check = f"dead letters {name}"
    if facts is None:
        return Finding(check, Status.FAIL, "there is none", "embedfleet topics create")
    sizes = [one.max_message_bytes for one in documents if one.max_message_bytes is not None]
    limit, needed = facts.max_message_bytes, max(sizes, default=0) + LETTER_OVERHEAD_BYTES
    if limit is not None and limit < needed:
        detail = f"max.message.bytes is {limit}: a letter of the largest record does not fit"
        return Finding(
            check, Status.FAIL, detail, f"set max.message.bytes to at least {needed}"
        )
    return Finding(check, Status.OK, f"{facts.partitions} partitions, up to {limit} bytes")


def collections(names: Sequence[str]) -> Finding:
    """Judge whether there is anything to store into."""
    if names:
        return Finding("collections", Status.OK, ", ".join(names))
    hint = "embedfleet collections create NAME --model MODEL --dimensions N"
    return Finding("collections", Status.WARN, "there are none", hint)


def index(name: str, state: State) -> Finding:
    """Judge a collection's vector index: without it searches are right, and slow."""
    check = f"index {name}"
    if state in WRONG:
        return Finding(check, Status.WARN, state, f"embedfleet index build {name}")
    if state is State.UNWANTED:
        return Finding(check, Status.WARN, state, f"embedfleet index drop {name} --yes")
    return Finding(check, Status.OK, state)


def connections(detail: str, max_connections: int, pool_max: int) -> Finding:
    """Judge whether the server has room for one worker's pool."""
    if pool_max > max_connections:
        hint = "lower database.pool_max, or raise max_connections"
        return Finding("database", Status.WARN, f"{detail}; one worker takes {pool_max}", hint)
    return Finding("database", Status.OK, detail)
