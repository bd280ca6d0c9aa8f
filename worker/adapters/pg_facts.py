"""
What `doctor` asks a PostgreSQL server about itself.

One connection and no pool, so that it works without the extension and without migrations.
"""

from typing import NamedTuple

import asyncpg

from worker.adapters.pg_client import connect_arguments, translated
from worker.config import DatabaseOptions

_FACTS = """
select current_setting('server_version') as server,
       current_setting('max_connections')::int as max_connections,
       (select extversion from pg_extension where extname = 'vector') as vector
"""


class ServerFacts(NamedTuple):
    """Versions; `vector` is that of pgvector, None where the extension is missing."""

    server: str
    max_connections: int
    vector: str | None


async def server_facts(options: DatabaseOptions) -> ServerFacts:
    """
    Ask.

    Raises:
        StoreUnavailable: nobody answers.
        ConfigError: we are refused.
    """
    with translated():
        connection = await asyncpg.connect(**connect_arguments(options))
        try:
            return ServerFacts(**dict(await connection.fetchrow(_FACTS)))
        finally:
            await connection.close(timeout=options.connect_timeout_seconds)
