"""
The fate of every event, from the topic, the database and the dead-letter topic alone.

Shares no code with the worker: consumers and SQL of its own, and the written contract. Each
event has one fate: carried (its version and position are in the row or the tombstone),
superseded by a later one, or dead letter; what has none is lost. A replay stands where its dead
letter first stood. What is stored is compared with what was published, text by text.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

POLL_MS = 500
NAMED = {"tenant", "id", "version"}

_ROWS = """
select tenant, id, version, order_partition, order_offset, deleted from document
"""
_TEXTS = """
select tenant, document_id, string_agg(content, '' order by seq) as text
from "{view}" group by tenant, document_id
"""


class Row(NamedTuple):
    """What the table says about a document."""

    version: int
    partition: int
    offset: int
    deleted: bool


class Name(NamedTuple):
    """What names a document in the demonstration's one collection."""

    tenant: str
    id: str


@dataclass
class Ledger:
    """The books of one demonstration; they balance where nothing is lost, torn or too much."""

    published: int
    events: int = 0
    carried: int = 0
    replayed: int = 0
    superseded: int = 0
    dead_letters: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    @property
    def balances(self) -> bool:
        """Whether every event has one fate and the table holds nothing else."""
        fates = self.carried + self.superseded + self.dead_letters
        wrong = self.lost or self.torn or self.strangers
        return self.published == self.events == fates and not wrong


async def read_topic(bootstrap_servers: str, topic: str) -> list[Any]:
    """Return all records of a topic, by a consumer of its own."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap_servers,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        parts = await _partitions(bootstrap_servers, topic)
        consumer.assign(parts)
        ends = await consumer.end_offsets(parts)
        records: list[Any] = []
        while any([await consumer.position(part) < ends[part] for part in parts]):
            batches = await consumer.getmany(*parts, timeout_ms=POLL_MS)
            records += [record for batch in batches.values() for record in batch]
        return records
    finally:
        await consumer.stop()


async def _partitions(bootstrap_servers: str, topic: str) -> list[TopicPartition]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        (described,) = await admin.describe_topics([topic])
    finally:
        await admin.close()
    return [TopicPartition(topic, part["partition"]) for part in described["partitions"]]


class Sides(NamedTuple):
    """Where the three sides of the books are: two topics, and a connection with a view."""

    bootstrap_servers: str
    topic: str
    dead_letter_topic: str
    database: Any
    view: str


async def balance(sides: Sides, *, published: int) -> Ledger:
    """Read all three sides and book every event; `published` is how many there must be."""
    records = await read_topic(sides.bootstrap_servers, sides.topic)
    letters = _letters(await read_topic(sides.bootstrap_servers, sides.dead_letter_topic))
    rows = await _rows(sides.database)
    ledger = Ledger(published, events=len(records))
    texts: dict[Name, str] = {}
    for record in records:
        _book(ledger, record, letters, rows, texts)
    ledger.strangers += [str(name) for name in rows.keys() - _named(records)]
    shown = await sides.database.fetch(_TEXTS.format(view=sides.view))
    _compare(ledger, texts, {Name(row[0], row[1]): row[2] for row in shown})
    return ledger


async def connect(url: str, schema: str) -> Any:
    """Open a connection that sees the tables."""
    return await asyncpg.connect(url, server_settings={"search_path": f'"{schema}", public'})


def _letters(records: Iterable[Any]) -> dict[tuple[int, int], str]:
    """Return position -> reason; a letter that was sent twice counts once."""
    letters: dict[tuple[int, int], str] = {}
    for record in records:
        headers = dict(record.headers)
        position = int(headers["embedfleet.partition"]), int(headers["embedfleet.offset"])
        letters[position] = headers["embedfleet.reason"].decode()
    return letters


async def _rows(database: Any) -> dict[Name, Row]:
    rows = await database.fetch(_ROWS)
    return {Name(row[0], row[1]): Row(*row[2:]) for row in rows}


def _event(record: Any) -> dict[str, Any]:
    try:
        event = json.loads(record.value)
    except ValueError:
        return {}
    return event if isinstance(event, dict) and event.keys() >= NAMED else {}


def _origin(record: Any) -> tuple[int, int] | None:
    """Return where a replayed record first stood, None of any other."""
    headers = dict(record.headers)
    if "embedfleet.origin.offset" not in headers:
        return None
    return int(headers["embedfleet.origin.partition"]), int(headers["embedfleet.origin.offset"])


def _named(records: Iterable[Any]) -> set[Name]:
    events = filter(None, map(_event, records))
    return {Name(event["tenant"], event["id"]) for event in events}


def _book(
    ledger: Ledger,
    record: Any,
    letters: dict[tuple[int, int], str],
    rows: dict[Name, Row],
    texts: dict[Name, str],
) -> None:
    position = record.partition, record.offset
    place = _origin(record) or position
    event = _event(record)
    row = rows.get(Name(event["tenant"], event["id"])) if event else None
    if position in letters:
        ledger.dead_letters += 1
        ledger.reasons[letters[position]] += 1
    elif row is None or place not in (position, *letters):
        ledger.lost.append(f"partition {position[0]} offset {position[1]}")
    elif (row.partition, row.offset) == place and row.version == event["version"]:
        ledger.carried += 1
        ledger.replayed += place != position
        if not row.deleted:
            texts[Name(event["tenant"], event["id"])] = event["text"]
    elif (row.version, row.offset) > (event["version"], place[1]):
        ledger.superseded += 1
    else:
        ledger.lost.append(f"partition {position[0]} offset {position[1]}")


def _compare(ledger: Ledger, texts: dict[Name, str], shown: dict[Name, str]) -> None:
    """Compare what is shown with what was published, but for white space between chunks."""
    for name, text in texts.items():
        if _letters_of(shown.get(name, "")) != _letters_of(text):
            ledger.torn.append(str(name))
    ledger.strangers += [str(name) for name in shown.keys() - texts.keys()]


def _letters_of(text: str) -> str:
    return "".join(text.split())
