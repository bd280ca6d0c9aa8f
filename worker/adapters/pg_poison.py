"""
The port `Poisons` on PostgreSQL: the fingerprints of chunks that the provider has refused.

One row a tenant, model and chunk, written without a fence: it says what the provider did, not
what a worker may write, and one that comes late is as true as before.
"""

from collections.abc import Mapping, Sequence

from schemas.dead_letter import Reason
from worker.adapters.dead_letter_text import clean
from worker.adapters.pg_client import Database
from worker.ports import Poison, PoisonKey, Refusal

_KNOWN = """
select p.tenant, p.model, p.chunk_hash, p.reason, p.detail, p.seen_at
from unnest($1::text[], $2::text[], $3::bytea[]) as k (tenant, model, chunk_hash)
join poison_chunk p using (tenant, model, chunk_hash)
"""
# In the order of their keys, as all writers of several rows do it.
_REMEMBER = """
insert into poison_chunk (tenant, model, chunk_hash, reason, detail)
select * from unnest($1::text[], $2::text[], $3::bytea[], $4::text[], $5::text[])
on conflict (tenant, model, chunk_hash) do update set
    reason = excluded.reason, detail = excluded.detail, seen_at = excluded.seen_at
"""
_FORGET = """
with k as materialized (
    select p.tenant, p.model, p.chunk_hash
    from unnest($1::text[], $2::text[], $3::bytea[]) as k (tenant, model, chunk_hash)
    join poison_chunk p using (tenant, model, chunk_hash)
    order by p.tenant, p.model, p.chunk_hash
    for update of p
)
delete from poison_chunk p using k
where (p.tenant, p.model, p.chunk_hash) = (k.tenant, k.model, k.chunk_hash)
"""


class PostgresPoisons:
    """The chunks that the embedding provider has refused for their text."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def known(self, keys: Sequence[PoisonKey]) -> dict[PoisonKey, Poison]:
        """Return those of the chunks that are known to be refused."""
        if not keys:
            return {}
        columns = zip(*set(keys), strict=True)
        async with self._database.connection() as connection:
            rows = await connection.fetch(_KNOWN, *map(list, columns))
        return {
            PoisonKey(tenant, model, chunk_hash): Poison(_reason(reason), detail, seen_at)
            for tenant, model, chunk_hash, reason, detail, seen_at in rows
        }

    async def remember(self, refusals: Mapping[PoisonKey, Refusal]) -> None:
        """Write down what was refused just now, in the place of what was known of it."""
        if not refusals:
            return
        rows = [
            (*key, refusals[key].reason.value, clean(refusals[key].detail))
            for key in sorted(refusals)
        ]
        async with self._database.connection() as connection:
            await connection.execute(_REMEMBER, *map(list, zip(*rows, strict=True)))

    async def forget(self, keys: Sequence[PoisonKey]) -> None:
        """Know nothing of these chunks any more."""
        if not keys:
            return
        async with self._database.connection() as connection:
            await connection.execute(_FORGET, *map(list, zip(*keys, strict=True)))


def _reason(code: str) -> Reason:
    """Return the reason of a code; a newer worker may know more of them."""
    return next((one for one in Reason if one == code), Reason.REJECTED_INPUT)
