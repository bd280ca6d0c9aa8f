"""
The ledger of dead letters, for operators: which there are, and what was done with them.

Reads selections, groups and counts. Writes dispositions only, each on the condition that the
row still is what the decision was made from, so that two operators, or a worker that stores a
newer version meanwhile, do not undo each other. Workers write the rows themselves (`pg_ledger`)
and resolve them (`pg_resolution`).
"""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, Literal, NamedTuple

from schemas.dead_letter import Facts
from worker.adapters.pg_client import Database
from worker.adapters.pg_statements import order_of
from worker.core.letters import Letter, Selection, State
from worker.core.model import DocumentKey, Order, Position

_COLUMNS = """
l.grp, l.topic, l.partition, l."offset", l.incarnation, l.timestamp_ms, l.state, l.reason,
l.stage, l.detail, l.fingerprint, l.tenant, l.collection, l.document_id, l.version,
l.origin_topic, l.origin_partition, l.origin_offset, l.origin_timestamp_ms,
l.origin_incarnation, l.record_key, l.traceparent, l.passes, l.attempts, l.replays,
l.first_seen, l.last_seen, l.state_changed_at,
l.provider_status, l.provider_request_id, l.sqlstate, l.constraint_name
"""
_SELECTED = """
l.grp = $1
and ($2::text[] is null or l.state = any($2))
and ($3::text[] is null or l.reason = any($3))
and ($4::text is null or l.fingerprint = $4)
and ($5::text is null or l.tenant = $5)
and ($6::text is null or l.collection = $6)
and ($7::text is null or l.document_id = $7)
and ($8::bytea is null or l.record_key = $8)
and ($9::timestamptz is null or l.first_seen >= $9)
and ($10::timestamptz is null or l.first_seen < $10)
and ($11::text[] is null or exists (
    select from unnest($11::text[], $12::int[], $13::bigint[]) as p (topic, partition, "offset")
    where p.topic = l.topic and p.partition = l.partition and p."offset" = l."offset"
      -- A position says no incarnation: the newest topic of that name is meant.
      and l.incarnation = (
          select max(n.incarnation) from dead_letter n
          where n.grp = l.grp and n.topic = l.topic and n.partition = l.partition
            and n."offset" = l."offset"
      )
))
"""
_SELECT = f"""
select {_COLUMNS} from dead_letter l where {_SELECTED}
order by l.topic, l.partition, l.incarnation, l."offset"
limit $14
"""  # noqa: S608 - built of constants of this module
_GROUPS = f"""
select l.reason, l.fingerprint, count(*) as letters,
       count(distinct l.tenant) as tenants, min(l.first_seen) as first_seen,
       max(l.last_seen) as last_seen,
       (array_agg({{sample}} order by l.last_seen desc, l."offset" desc))[1] as sample,
       (array_agg(l.stage order by l.last_seen desc, l."offset" desc))[1] as stage,
       (array_agg(l.detail order by l.last_seen desc, l."offset" desc))[1] as detail
from dead_letter l where {_SELECTED}
group by l.reason, l.fingerprint
order by letters desc, l.reason, l.fingerprint
""".format(sample="concat_ws('/', l.topic, l.partition, l.\"offset\")")  # noqa: S608
_BY = {
    "reason": "l.reason",
    "tenant": "l.tenant",
    "day": "(l.first_seen at time zone 'UTC')::date",
}
_STATS = f"""
select {{by}}, count(*) as letters,
       {", ".join(f"count(*) filter (where l.state = '{state}') as {state}" for state in State)}
from dead_letter l where {_SELECTED}
group by {{group}} order by {{group}}
"""  # noqa: S608 - built of constants of this module
_DISCARD = f"""
update dead_letter l set state = 'discarded', state_changed_at = clock_timestamp()
where {_SELECTED}
"""  # noqa: S608 - built of constants of this module
_THIS = """
where grp = $1 and topic = $2 and partition = $3 and incarnation = $4 and "offset" = $5
"""
# What a replay says about a record that could not be read before lets a success resolve it.
_BEGIN_REPLAY = f"""
update dead_letter set
    replays = replays + 1, state_changed_at = clock_timestamp(),
    tenant = coalesce(tenant, $8), collection = coalesce(collection, $9),
    document_id = coalesce(document_id, $10), version = coalesce(version, $11)
{_THIS} and replays = $6 and state = $7
returning true
"""  # noqa: S608 - built of constants of this module
_MOVE = f"""
update dead_letter set state = $6, state_changed_at = clock_timestamp()
{_THIS} and state = $7
"""  # noqa: S608 - built of constants of this module

By = Literal["reason", "tenant", "day"]


class Group(NamedTuple):
    """Letters of one cause, and the newest of them as a sample."""

    reason: str
    fingerprint: str
    letters: int
    tenants: int
    first_seen: datetime
    last_seen: datetime
    sample: str
    stage: str
    detail: str


class Count(NamedTuple):
    """How many letters there are of something, in all and by state."""

    of: dict[str, str | date | None]
    letters: int
    states: dict[State, int]


class PostgresDeadLetters:
    """The dead letters of a group, to be worked on."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def select(self, selection: Selection, limit: int | None = None) -> list[Letter]:
        """Return letters in the order of the log."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_SELECT, *_arguments(selection), limit)
        return [_letter(row) for row in rows]

    async def groups(self, selection: Selection) -> list[Group]:
        """Return letters by reason and fingerprint, the largest group first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_GROUPS, *_arguments(selection))
        return [Group(**dict(row)) for row in rows]

    async def stats(self, selection: Selection, by: Sequence[By]) -> list[Count]:
        """Return counts for each value of `by`."""
        columns = ", ".join(f"{_BY[name]} as {name}" for name in by)
        numbers = ", ".join(str(number) for number, _ in enumerate(by, 1))
        statement = _STATS.format(by=columns, group=numbers)
        async with self._database.connection() as connection:
            rows = await connection.fetch(statement, *_arguments(selection))
        return [
            Count(
                of={name: row[name] for name in by},
                letters=row["letters"],
                states={state: row[state] for state in State},
            )
            for row in rows
        ]

    async def discard(self, selection: Selection) -> int:
        """Give letters up; returns how many."""
        async with self._database.connection() as connection:
            answer: str = await connection.execute(_DISCARD, *_arguments(selection))
        return int(answer.rpartition(" ")[2])

    async def begin_replay(
        self, letter: Letter, document: DocumentKey | None, version: int | None
    ) -> bool:
        """Count a replay before it is sent; False where the letter is not the same any more."""
        names = (None, None, None) if document is None else document
        async with self._database.connection() as connection:
            counted = await connection.fetchval(
                _BEGIN_REPLAY, *_place(letter), letter.replays, letter.state, *names, version
            )
        return counted is not None

    async def move(self, letter: Letter, state: State) -> None:
        """Put a letter into another state, where it still is in the one it was read in."""
        async with self._database.connection() as connection:
            await connection.execute(_MOVE, *_place(letter), state, letter.state)


def _arguments(selection: Selection) -> tuple[Any, ...]:
    positions = selection.positions
    columns = zip(*positions, strict=True) if positions else (None, None, None)
    return (
        selection.group,
        list(selection.states) or None,
        list(selection.reasons) or None,
        selection.fingerprint,
        selection.tenant,
        selection.collection,
        selection.document,
        selection.key,
        selection.since,
        selection.until,
        *(column if column is None else list(column) for column in columns),
    )


def _place(letter: Letter) -> tuple[str, str, int, int, int]:
    return letter.group, *letter.partition, letter.incarnation, letter.position.offset


def _letter(row: Any) -> Letter:
    position = Position(row["topic"], row["partition"], row["offset"])
    own = Order(*position, row["timestamp_ms"], row["incarnation"])
    return Letter(
        group=row["grp"],
        position=position,
        incarnation=row["incarnation"],
        timestamp_ms=row["timestamp_ms"],
        state=State(row["state"]),
        reason=row["reason"],
        stage=row["stage"],
        detail=row["detail"],
        fingerprint=row["fingerprint"],
        tenant=row["tenant"],
        collection=row["collection"],
        document_id=row["document_id"],
        version=row["version"],
        origin=order_of(row, "origin") or own,
        key=row["record_key"],
        traceparent=row["traceparent"],
        passes=row["passes"],
        attempts=row["attempts"],
        replays=row["replays"],
        first_seen=row["first_seen"],
        last_seen=row["last_seen"],
        facts=Facts(
            provider_status=row["provider_status"],
            provider_request_id=row["provider_request_id"],
            sqlstate=row["sqlstate"],
            constraint=row["constraint_name"],
        ),
        state_changed_at=row["state_changed_at"],
    )
