"""
A connection of its own that reads for as long as it takes: it is silence that is bounded.

Its transaction ends with it, so it is for what only reads.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from worker.adapters.pg_client import Connection, translated, unhurried_arguments
from worker.config import DatabaseOptions


class PatientReader:
    """One connection; its calls wait for each other."""

    def __init__(self, connection: Connection, patience_seconds: float) -> None:
        self._connection = connection
        self._patience_seconds = patience_seconds
        self._turn = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, options: DatabaseOptions, application: str, settings: Mapping[str, str]
    ) -> "AsyncIterator[PatientReader]":
        """
        Connect, with some of the server's settings changed, and disconnect after the block.

        What the block raises is not translated: it may be about files.

        Raises:
            StoreUnavailable: nobody answers.
            ConfigError: refused.
        """
        arguments = unhurried_arguments(options, application)
        arguments["server_settings"] |= settings
        with translated():
            connection = await asyncpg.connect(**arguments)
        try:
            yield cls(connection, options.command_timeout_seconds)
            with translated(connection):
                await connection.close(timeout=options.connect_timeout_seconds)
        finally:
            # In the middle of a COPY it cannot be closed in order.
            connection.terminate()

    async def execute(self, statements: str) -> None:
        """Run some statements."""
        async with self._call():
            await self._connection.execute(statements)

    async def fetch(self, query: str, *arguments: Any) -> list[Any]:
        """Return the rows of a query."""
        async with self._call():
            rows: list[Any] = await self._connection.fetch(query, *arguments)
        return rows

    async def copy(
        self, query: str, *arguments: Any, take: Callable[[bytes], Awaitable[None]]
    ) -> int:
        """
        Hand out the rows of a query as a binary COPY stream; return how many they were.

        The server waits for `take`, for as long as that takes.
        """
        now = asyncio.get_running_loop().time
        async with self._call() as silence:

            async def output(data: bytes) -> None:
                silence.reschedule(None)
                await take(data)
                silence.reschedule(now() + self._patience_seconds)

            status: str = await self._connection.copy_from_query(
                query, *arguments, output=output, format="binary"
            )
        return int(status.rpartition(" ")[2])

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[asyncio.Timeout]:
        async with self._turn:
            with translated(self._connection):
                async with asyncio.timeout(self._patience_seconds) as silence:
                    yield silence
