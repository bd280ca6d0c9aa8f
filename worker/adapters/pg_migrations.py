"""
Migrations of the schema: plain SQL in dbmate's format, from the package `schemas`.

Works on one connection of its own under an advisory lock, so that several workers may start
it at once; a migration and its row in `schema_migrations` are one transaction, unless the file
says `transaction:false`. dbmate reads the same files and the same table. Never goes down.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, NamedTuple

from worker.adapters.pg_client import Connection, unhurried
from worker.config import DatabaseOptions
from worker.errors import ConfigError

# Any number, the same for all workers: also `create extension` must not race.
_LOCK = 7_203_685_221
_FILE = re.compile(r"(\d+)_(\w+)\.sql")
_SECTION = re.compile(r"^--\s*migrate:(up|down)([^\n]*)\n", re.MULTILINE)
_TABLE = "create table if not exists schema_migrations (version varchar(128) primary key)"


class MigrationStatus(NamedTuple):
    """A migration, and whether it has been applied."""

    version: str
    name: str
    applied: bool


@dataclass(frozen=True, slots=True)
class Migration:
    """A migration file, read."""

    version: str
    name: str
    up: str
    down: str
    in_transaction: bool


def read_migrations(folder: Traversable | None = None) -> list[Migration]:
    """Return the migrations of a folder, in the order of their versions."""
    folder = files("schemas") / "sql" if folder is None else folder
    named = ((_FILE.fullmatch(file.name), file) for file in folder.iterdir())
    found = [
        _parse(match[1], match[2], file.read_text(encoding="utf-8"))
        for match, file in named
        if match
    ]
    return sorted(found, key=lambda migration: migration.version)


def _parse(version: str, name: str, text: str) -> Migration:
    _, *parts = _SECTION.split(text)
    sections = {
        parts[start]: (parts[start + 1], parts[start + 2]) for start in range(0, len(parts), 3)
    }
    if "up" not in sections:
        raise ConfigError(f"the migration {version}_{name} has no line '-- migrate:up'")
    up_options, up = sections["up"]
    return Migration(
        version=version,
        name=name,
        up=up,
        down=sections.get("down", ("", ""))[1],
        in_transaction="transaction:false" not in up_options,
    )


class Migrations:
    """The migrations of one schema."""

    def __init__(
        self, options: DatabaseOptions, migrations: Iterable[Migration] | None = None
    ) -> None:
        self._options = options
        self._migrations = read_migrations() if migrations is None else list(migrations)

    async def up(self) -> list[str]:
        """Apply what is not applied yet; return the versions of that."""
        async with unhurried(self._options) as connection:
            await self._lock(connection)
            await self._create_schema(connection)
            await connection.execute(_TABLE)
            applied = await self._applied(connection)
            pending = [found for found in self._migrations if found.version not in applied]
            for migration in pending:
                await self._apply(connection, migration)
        return [migration.version for migration in pending]

    async def status(self) -> list[MigrationStatus]:
        """Return all migrations in order; changes nothing."""
        async with unhurried(self._options) as connection:
            applied = await self._applied(connection)
        return [
            MigrationStatus(found.version, found.name, found.version in applied)
            for found in self._migrations
        ]

    async def drop(self) -> None:
        """Remove the schema with all that is in it."""
        async with unhurried(self._options) as connection:
            await self._lock(connection)
            await connection.execute(f'drop schema if exists "{self._options.schema}" cascade')

    async def _lock(self, connection: Connection) -> None:
        # Another worker's migrations may take longer than a lock should be waited for.
        await connection.execute(
            "select set_config('lock_timeout', '0', false);"
            f"select pg_advisory_lock({_LOCK});"
            "reset lock_timeout"
        )

    async def _create_schema(self, connection: Connection) -> None:
        # `create schema if not exists` needs the privilege to create, also where it exists.
        schema = self._options.schema
        exists = "select exists (select from pg_namespace where nspname = $1)"
        if not await connection.fetchval(exists, schema):
            await connection.execute(f'create schema "{schema}"')

    async def _applied(self, connection: Connection) -> set[str]:
        table = await connection.fetchval(
            "select to_regclass($1)", f'"{self._options.schema}".schema_migrations'
        )
        if table is None:
            return set()
        rows: list[Any] = await connection.fetch("select version from schema_migrations")
        return {row["version"] for row in rows}

    async def _apply(self, connection: Connection, migration: Migration) -> None:
        record = "insert into schema_migrations (version) values ($1)"
        if migration.in_transaction:
            async with connection.transaction():
                await connection.execute(migration.up)
                await connection.execute(record, migration.version)
        else:
            # Such a statement waits for the transactions of others, and holds nobody up.
            await connection.execute("set lock_timeout = 0")
            await connection.execute(migration.up)
            await connection.execute("reset lock_timeout")
            await connection.execute(record, migration.version)
