"""
The port `Ledger` on PostgreSQL: the dead letters, the truth for replay.

A row is written `pending` under the fence before its letter is published, so that a zombie
publishes nothing; it becomes `published` after the acknowledgement. Recording it again, after
a crash or a rewind, counts an attempt; it changes the state only where the record fails for
another reason now, of which a letter is to be published.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.dead_letter import parse_replays
from schemas.events import MAX_NAME_BYTES
from worker.adapters.dead_letter_text import storable
from worker.adapters.pg_client import Connection, Database
from worker.adapters.pg_statements import live_claims, order_values
from worker.ports import DeadLetter, LetterPlace, Recorded

# Three names, each byte percent-encoded, and two slashes: a longer key is none of ours.
_MAX_KEY_BYTES = 3 * (3 * MAX_NAME_BYTES) + 2

_RECORD = """
insert into dead_letter as l (
    grp, topic, partition, incarnation, "offset", timestamp_ms, reason, stage, detail,
    tenant, collection, document_id, version,
    origin_topic, origin_partition, origin_offset, origin_timestamp_ms, origin_incarnation,
    traceparent, passes, record_key, replays,
    provider_status, provider_request_id, sqlstate, constraint_name
)
select * from unnest(
    $1::text[], $2::text[], $3::int[], $4::int[], $5::bigint[], $6::bigint[], $7::text[],
    $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::bigint[],
    $14::text[], $15::int[], $16::bigint[], $17::bigint[], $18::int[], $19::text[], $20::int[],
    $21::bytea[], $22::int[], $23::int[], $24::text[], $25::text[], $26::text[]
)
on conflict (grp, topic, partition, incarnation, "offset") do update set
    state = case when l.reason <> excluded.reason then 'pending' else l.state end,
    reason = excluded.reason, stage = excluded.stage, detail = excluded.detail,
    tenant = excluded.tenant, collection = excluded.collection,
    document_id = excluded.document_id, version = excluded.version,
    origin_topic = excluded.origin_topic, origin_partition = excluded.origin_partition,
    origin_offset = excluded.origin_offset,
    origin_timestamp_ms = excluded.origin_timestamp_ms,
    origin_incarnation = excluded.origin_incarnation,
    traceparent = excluded.traceparent, passes = excluded.passes,
    record_key = excluded.record_key, replays = greatest(l.replays, excluded.replays),
    provider_status = excluded.provider_status,
    provider_request_id = excluded.provider_request_id,
    sqlstate = excluded.sqlstate, constraint_name = excluded.constraint_name,
    attempts = l.attempts + 1, last_seen = now()
returning grp, topic, partition, incarnation, "offset", attempts,
    (extract(epoch from first_seen) * 1000)::bigint,
    (extract(epoch from last_seen) * 1000)::bigint,
    state <> 'pending'
"""

_Place = tuple[str, str, int, int, int]
"""The primary key: group, topic, partition, incarnation, offset."""

_MARK_PUBLISHED = """
update dead_letter l set state = 'published'
from unnest($2::text[], $3::int[], $4::bigint[], $5::int[])
     as p (topic, partition, "offset", incarnation)
where l.grp = $1 and l.topic = p.topic and l.partition = p.partition
  and l.incarnation = p.incarnation and l."offset" = p."offset" and l.state = 'pending'
"""


class PostgresLedger:
    """The dead letters as the database knows them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, letters: Sequence[DeadLetter]) -> list[Recorded | None]:
        """Write rows under the fence, pending where a letter is to be published."""
        claims = {letter.claim for letter in letters}
        async with self._database.transaction() as connection:
            live = await live_claims(connection, claims, self._database.history)
            # One row a record, in the order of all writers.
            rows = {_place(letter): _row(letter) for letter in letters if letter.claim in live}
            recorded = await _record(connection, rows) if rows else {}
        return [
            recorded[_place(letter)] if letter.claim in live else None for letter in letters
        ]

    async def mark_published(self, group: str, places: Sequence[LetterPlace]) -> None:
        """Mark rows whose letters the dead-letter topic has acknowledged."""
        if not places:
            return
        columns = zip(*sorted(places), strict=True)
        async with self._database.connection() as connection:
            await connection.execute(_MARK_PUBLISHED, group, *map(list, columns))


async def _record(
    connection: Connection, rows: Mapping[_Place, tuple[Any, ...]]
) -> dict[_Place, Recorded]:
    in_order = [rows[place] for place in sorted(rows)]
    found = await connection.fetch(_RECORD, *map(list, zip(*in_order, strict=True)))
    return {tuple(row[:5]): Recorded(*row[5:]) for row in found}


def _place(letter: DeadLetter) -> _Place:
    """Return the primary key of a letter's row."""
    claim, position = letter.claim, letter.record.position
    return claim.group, *claim.partition, claim.incarnation, position.offset


def _row(letter: DeadLetter) -> tuple[Any, ...]:
    letter, key = storable(letter), letter.record.key
    return (
        *_place(letter),
        letter.record.timestamp_ms,
        letter.reason.value,
        letter.stage,
        letter.detail,
        letter.tenant,
        letter.collection,
        letter.document_id,
        letter.version,
        *order_values(letter.origin),
        letter.traceparent,
        letter.passes,
        key if key is not None and len(key) <= _MAX_KEY_BYTES else None,
        parse_replays(letter.record.headers),
        *letter.facts,
    )
