"""
Sees what happens in a run while it happens, and writes the history that the oracle judges.

An audit trigger notes every change of the tables, in the order of the locks; snapshots are
taken at REPEATABLE READ, the group's offsets are sampled. Reads only: topics, tables, the
proxies' counts. Knows the schema and nothing else of the worker.
"""

import json
from collections import Counter, defaultdict
from contextlib import suppress
from time import monotonic
from typing import Any

import asyncpg
from aiokafka.errors import KafkaError

from tests.chaos.history import (
    Change,
    Chunk,
    Claimed,
    Document,
    History,
    Ledgered,
    Letter,
    Order,
    Progressed,
    Record,
    Row,
    Sample,
    State,
    by_place,
)
from tests.chaos.load import POISON_HEADER
from tests.support.fleet import Fleet

AUDIT = """
create table audit (
    seq bigserial primary key,
    kind text not null,
    op text not null,
    port int default inet_client_port(),
    at timestamptz not null default clock_timestamp(),
    entry jsonb not null
);
create function note() returns trigger language plpgsql as $$
begin
    insert into audit (kind, op, entry) values (
        tg_argv[0], tg_op,
        to_jsonb(case when tg_op = 'DELETE' then old else new end) - 'embedding' - 'content'
    );
    return null;
end $$;
"""
_NOTE = """
create trigger note after insert or update or delete on {table}
for each row execute function note({kind})
"""
# Of claims, progress and ledger those of the fleet's own group: a place is no other group's.
_OURS = """
select * from audit
where op <> 'DELETE' and coalesce(entry->>'grp', $1) = $1
order by seq
"""
AUDITED = ("document", "partition_claim", "partition_progress", "dead_letter")
_ORDER = ("topic", "partition", "offset", "timestamp_ms")
_SAMPLE_SECONDS = 0.25


class Witness:
    """Watches one fleet; `History` is made of it at the end."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.samples: list[Sample] = []
        self.states: set[State] = set()
        self.snapshots = self.sampled = 0
        self.seconds = 0.0
        self.workers: dict[int, str] = {}
        self._tables: dict[str, str] = {}

    async def install(self) -> None:
        """Put the triggers on the tables; before the first worker starts."""
        sql = self._fleet.sql
        await sql.execute(AUDIT)
        rows = await sql.fetch("select name, id, generation from collection")
        self._tables = {row["name"]: f"chunk_{row['id']}_{row['generation']}" for row in rows}
        for kind in AUDITED:
            await sql.execute(_NOTE.format(table=kind, kind=kind))
        for table in self._tables.values():
            await sql.execute(_NOTE.format(table=table, kind="chunk"))

    async def run(self) -> None:
        """Look again and again; whoever is away is looked at later."""
        began = monotonic()
        while True:
            self.seconds = monotonic() - began
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, KafkaError):
                await self._look_on()
            await self._fleet.pass_time(_SAMPLE_SECONDS)

    async def _look_on(self) -> None:
        connection = await self._fleet.session()
        try:
            while True:
                await self.sample(connection)
                await self.look(connection)
                await self._fleet.pass_time(_SAMPLE_SECONDS)
        finally:
            connection.terminate()

    async def sample(self, connection: Any) -> None:
        """Ask Kafka first: what it was told before must be in the audit by then."""
        committed = await self._fleet.committed()
        seq = await connection.fetchval("select coalesce(max(seq), 0) from audit")
        self.samples.append(
            Sample(seq, {(one.topic, one.partition): at for one, at in committed.items()})
        )
        self.sampled += 1

    async def look(self, connection: Any) -> None:
        """Take a snapshot of all documents, chunk texts included."""
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            rows = await connection.fetch("select * from document")
            chunks: defaultdict[Document, list[tuple[int, str]]] = defaultdict(list)
            for collection, table in self._tables.items():
                found = await connection.fetch(f"select tenant, id, seq, content from {table}")
                for tenant, name, *placed in found:
                    chunks[Document(tenant, collection, name)].append(tuple(placed))
        known = {_document(row): _row(row) for row in rows}
        self.states.update(
            State(name, known.get(name), by_place(chunks.get(name, ())))
            for name in {*known, *chunks}
        )
        self.snapshots += 1

    async def operations(self) -> Counter[str]:
        """How often rows were written, by kind and operation."""
        rows = await self._fleet.sql.fetch("select kind, op, count(*) from audit group by 1, 2")
        return Counter({f"{row['kind']} {row['op']}": row["count"] for row in rows})

    async def history(self) -> History:
        """Read topics and tables, and put everything together."""
        sql = self._fleet.sql
        await self.sample(sql)
        await self.look(sql)
        history = History(
            samples=self.samples,
            states=self.states,
            workers=self.workers,
            records=[_record(one) for one in await self._fleet.records()],
            letters=[_letter(one) for one in await self._all_letters()],
            rows={
                _document(row): _row(row) for row in await sql.fetch("select * from document")
            },
            chunks=await self._chunks(),
            ends=await self._stable_ends(),
            embedded=Counter(self._fleet.provider.embedded),
        )
        history.embedded.pop("dimensions", None)
        for row in await sql.fetch(_OURS, self._fleet.kafka.group):
            _audited(history, row, json.loads(row["entry"]))
        return history

    async def _all_letters(self) -> list[Any]:
        return await self._fleet.records(self._fleet.dead_letter_topic)

    async def _stable_ends(self) -> dict[tuple[str, int], int]:
        ends = await self._fleet.ends()
        return {(one.topic, one.partition): end for one, end in ends.items()}

    async def _chunks(self) -> list[Chunk]:
        return [
            Chunk(
                Document(row["tenant"], collection, row["id"]),
                row["seq"],
                row["content"],
                tuple(row["vector"]),
            )
            for collection, table in self._tables.items()
            for row in await self._fleet.sql.fetch(
                f"select tenant, id, seq, content, embedding::real[] as vector from {table}"
            )
        ]


def _audited(history: History, row: Any, entry: Any) -> None:
    seq, port = row["seq"], row["port"]
    match row["kind"]:
        case "document":
            change = Change(seq, _document(entry), _row(entry), port, row["at"])
            history.changes.append(change)
        case "partition_claim":
            # Its row is made with epoch 0, and claimed after that.
            if entry["epoch"]:
                place = entry["topic"], entry["partition"]
                history.claims.append(Claimed(seq, place, entry["epoch"], port))
        case "partition_progress":
            place = entry["topic"], entry["partition"]
            history.progress.append(Progressed(seq, place, entry["next_offset"]))
        case "dead_letter":
            place = entry["topic"], entry["partition"]
            history.ledger.append(Ledgered(seq, place, entry["offset"], entry["state"], port))


def _document(row: Any) -> Document:
    return Document(row["tenant"], row["collection"], row["id"])


def _row(row: Any) -> Row:
    return Row(row["version"], _order(row, "order"), _order(row, "barrier"), row["deleted"])


def _order(row: Any, prefix: str) -> Order | None:
    values = [row[f"{prefix}_{name}"] for name in _ORDER]
    return None if values[0] is None else Order(*values)


def _record(record: Any) -> Record:
    poison = dict(record.headers).get(POISON_HEADER)
    place = Order(record.topic, record.partition, record.offset, record.timestamp)
    return Record(place, record.key, record.value, poison.decode() if poison else None)


def _letter(record: Any) -> Letter:
    headers = dict(record.headers)  # of two of one name the last one, which is the envelope's
    place = (
        headers[f"embedfleet.{name}"].decode() for name in ("topic", "partition", "offset")
    )
    topic, partition, offset = place
    return Letter(topic, int(partition), int(offset), headers["embedfleet.reason"].decode())
