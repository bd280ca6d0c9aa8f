"""
PostgreSQL's client: one pool of connections, and its errors in our words.

Owns the pool. Every connection gets its timeouts and its `search_path` when it is made, so
that nothing is ever SET later and the reset between users of a connection costs no round trip.
Every error of asyncpg becomes one of `worker.errors` by its SQLSTATE; what is left is a defect
of ours and passes through. Cancelling a caller ends its transaction before the connection is
used again; whether a commit under way has happened is then unknown.
"""

import asyncio
import logging
import os
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg

from schemas.dead_letter import Facts, Reason
from worker.config import DatabaseOptions
from worker.errors import ConfigError, PermanentError, StoreUnavailable, WorkerError

APPLICATION_NAME = "embedfleet"

logger = logging.getLogger(__name__)

Connection = Any
"""asyncpg has no types of its own."""

# SQLSTATE classes (PostgreSQL manual, appendix A).
_TRANSIENT = frozenset({"08", "25", "40", "53", "55", "57", "58", "72", "XX"})
# 54 is, among others, a key that does not fit into an index; P0 a trigger of the operator's.
_PERMANENT = frozenset({"09", "21", "22", "23", "27", "38", "39", "44", "54", "P0"})

# Identifiers of PostgreSQL have at most 63 bytes; quoted ones with blanks are not told.
_NAME = re.compile(r"[\w$.-]{1,63}")

# A server is another history when it was restored, promoted, or has crashed: with
# `synchronous_commit = off` a crash loses the last commits (protocol, section 7.8).
_HISTORY_FROM_START = "extract(epoch from pg_postmaster_start_time())::text"
_HISTORY = """(
    select concat_ws('/', c.system_identifier, p.timeline_id,
                     extract(epoch from pg_postmaster_start_time()))
    from pg_control_system() c, pg_control_checkpoint() p
)"""
# Every statement of a worker looks rows up by their keys. Left to itself the server makes a
# plan for tables that are still small, scans them, and keeps to it while they grow.
_PLANS = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off"}
_MAY_READ_CONTROL_FILE = """
select has_function_privilege('pg_control_system()', 'execute')
   and has_function_privilege('pg_control_checkpoint()', 'execute')
"""
_FORGETFUL = (
    "synchronous_commit is off: a crash of PostgreSQL would lose rows whose offsets are "
    "committed, and its start time would not tell; set it on for this role"
)
_VECTOR_SCHEMA = """
select n.nspname from pg_extension e join pg_namespace n on n.oid = e.extnamespace
where e.extname = 'vector'
"""


# What asyncpg 0.32 says where a server's farewell has arrived between two statements and the
# next one is sent before the connection is seen to be closed.
_CUT_OFF = "cannot switch to state"


class LockNotAvailable(StoreUnavailable):
    """Another transaction holds the lock for longer than `lock_timeout_seconds`."""


class MissingTable(StoreUnavailable):
    """A table is gone: most often a collection was dropped, and perhaps made anew."""


ERRORS = tuple(
    one.__name__
    for one in (StoreUnavailable, LockNotAvailable, MissingTable, PermanentError, ConfigError)
)
"""What any error can become here."""


def translate(error: Exception) -> WorkerError | None:
    """Return an error of asyncpg, or of the network below it, in our words; None: a defect."""
    if isinstance(error, WorkerError):
        return error
    if isinstance(error, asyncpg.InternalClientError) and _CUT_OFF in str(error):
        return StoreUnavailable("PostgreSQL has ended the connection")
    if isinstance(error, KeyError) and "getpwuid" in str(error):  # asyncpg lets it pass
        return ConfigError("database.url names no user, and who runs this has no name either")
    for classes, ours in _WORDS:
        if isinstance(error, classes):
            return ours(error)
    return None


def _by_sqlstate(error: Any) -> WorkerError:
    state: str = error.sqlstate or ""
    message = f"{error} ({state or 'no SQLSTATE'})"
    if isinstance(error, asyncpg.LockNotAvailableError):
        return LockNotAvailable(message)
    if isinstance(error, asyncpg.UndefinedTableError):
        return MissingTable(message)
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return StoreUnavailable(message)
    if not state or state[:2] in _TRANSIENT:
        return StoreUnavailable(message)
    if state[:2] in _PERMANENT:
        return _refused(state, type(error).__name__, error.constraint_name)
    return ConfigError(f"PostgreSQL refuses: {message}")


def _refused(state: str, kind: str, constraint: str | None) -> PermanentError:
    """Say it by codes and names: PostgreSQL's message may quote what was to be written."""
    # A trigger may put anything into the field of the constraint.
    if constraint is not None and not _NAME.fullmatch(constraint):
        constraint = None
    where = f", constraint {constraint}" if constraint else ""
    return PermanentError(
        Reason.REJECTED_BY_STORE,
        f"SQLSTATE {state} ({kind}){where}",
        facts=Facts(sqlstate=state, constraint=constraint),
    )


def _untrusted(error: ssl.SSLCertVerificationError) -> WorkerError:
    return ConfigError(f"PostgreSQL's certificate is not trusted: {error.verify_message}")


def _unanswered(error: Exception) -> WorkerError:
    if isinstance(error, TimeoutError) or not str(error):
        return StoreUnavailable("PostgreSQL (database.url) did not answer in time")
    return StoreUnavailable(f"PostgreSQL (database.url) cannot be reached: {error}")


def _unusable(error: Exception) -> WorkerError:
    return ConfigError(f"database.url cannot work: {error}")


# The first that fits: a certificate that is not trusted is an OSError too.
_WORDS: tuple[tuple[tuple[type[Exception], ...], Callable[[Any], WorkerError]], ...] = (
    ((asyncpg.PostgresError,), _by_sqlstate),
    ((ssl.SSLCertVerificationError,), _untrusted),
    (
        (
            asyncpg.ClientConfigurationError,
            asyncpg.UnsupportedClientFeatureError,
            asyncpg.UnsupportedServerFeatureError,
        ),
        _unusable,
    ),
    (
        (
            OSError,
            TimeoutError,
            asyncpg.ProtocolError,
            asyncpg.OutdatedSchemaCacheError,
            asyncpg.TargetServerAttributeNotMatched,
        ),
        _unanswered,
    ),
)


@contextmanager
def translated(
    connection: Connection = None, errors: Counter[str] | None = None
) -> Iterator[None]:
    """
    Raise asyncpg's errors as ours, and count them.

    An `InterfaceError` means a lost connection, but where there is one that still works: then
    it is a defect.
    """
    try:
        yield
    except Exception as error:
        ours = translate(error)
        if ours is None and isinstance(error, asyncpg.InterfaceError) and _is_lost(connection):
            ours = StoreUnavailable(str(error))
        if ours is None or ours is error:
            raise
        if errors is not None:
            errors[type(ours).__name__] += 1
        raise ours from error


def _is_lost(connection: Connection) -> bool:
    try:
        return connection is None or bool(connection.is_closed())
    except asyncpg.InterfaceError:
        # The pool has taken it back already, because it broke.
        return True


def connect_arguments(options: DatabaseOptions) -> dict[str, Any]:
    """Return what every connection is made with: where, who, and its limits."""
    return {
        "dsn": options.url,
        "timeout": options.connect_timeout_seconds,
        "command_timeout": options.command_timeout_seconds,
        **({"password": password} if (password := _password(options)) else {}),
        "server_settings": {
            "application_name": APPLICATION_NAME,
            "search_path": f'"{options.schema}", public',
            "statement_timeout": _milliseconds(options.statement_timeout_seconds),
            "lock_timeout": _milliseconds(options.lock_timeout_seconds),
            "idle_in_transaction_session_timeout": _milliseconds(
                options.idle_in_transaction_seconds
            ),
            # The protocol is proved for it (section 5), whatever the server's default is.
            "default_transaction_isolation": "read committed",
            # Compiling costs more than our short statements.
            "jit": "off",
        },
    }


@asynccontextmanager
async def unhurried(
    options: DatabaseOptions, application: str = APPLICATION_NAME
) -> AsyncIterator[Connection]:
    """
    Open a connection of its own, without time limits on statements, for the length of a block.

    `lock_timeout` stays: a statement that waits for a lock makes all others wait behind it.
    """
    with translated():
        connection = await asyncpg.connect(**unhurried_arguments(options, application))
        try:
            yield connection
        finally:
            await connection.close(timeout=options.connect_timeout_seconds)


def unhurried_arguments(options: DatabaseOptions, application: str) -> dict[str, Any]:
    """Return what a connection is made with that has no time limits on statements."""
    arguments = connect_arguments(options)
    arguments["server_settings"] |= {"statement_timeout": "0", "application_name": application}
    arguments["command_timeout"] = None
    return arguments


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))


def _password(options: DatabaseOptions) -> Callable[[], str] | None:
    # asyncpg asks again for each new connection: a rotated password needs no restart.
    file, variable = options.password_file, options.password_variable
    if file is not None:

        def read() -> str:
            try:
                return file.read_text(encoding="utf-8").rstrip("\r\n")
            except OSError as error:
                raise ConfigError(
                    f"database.password_file {file} cannot be read: {error.strerror}"
                ) from error

        return read
    if variable is not None:

        def look_up() -> str:
            try:
                return os.environ[variable]
            except KeyError:
                raise ConfigError(
                    f"database.password_variable names {variable}, which is not set"
                ) from None

        return look_up
    return None


class Database:
    """
    A pool of connections to one schema.

    `history` is an SQL expression that names the server's history: system identifier,
    timeline and start; `errors` counts what failed, by the class of the error.
    """

    def __init__(self, pool: Any, options: DatabaseOptions, history: str) -> None:
        self._pool = pool
        self._acquire_timeout_seconds = options.command_timeout_seconds
        self.options = options
        self.history = history
        self.errors = Counter(dict.fromkeys(ERRORS, 0))

    @classmethod
    async def open(cls, options: DatabaseOptions) -> "Database":
        """
        Connect.

        Raises:
            StoreUnavailable: nobody answers.
            ConfigError: refused, forgetful, or the extension `vector` is missing.
        """
        arguments = connect_arguments(options)
        arguments["server_settings"] |= _PLANS
        with translated():
            pool = await asyncpg.create_pool(
                **arguments,
                min_size=options.pool_min,
                max_size=options.pool_max,
                max_queries=options.pool_max_queries,
                max_inactive_connection_lifetime=options.pool_inactive_seconds,
                init=_set_up,
                reset=_nothing_to_reset,
            )
            if await pool.fetchval("show synchronous_commit") == "off":
                await pool.close()
                raise ConfigError(_FORGETFUL)
            if await pool.fetchval(_MAY_READ_CONTROL_FILE):
                return cls(pool, options, _HISTORY)
        logger.warning(
            "the role may not call pg_control_system() and pg_control_checkpoint(): "
            "a restored database is recognised by the server's start alone"
        )
        return cls(pool, options, _HISTORY_FROM_START)

    @property
    def active_connections(self) -> int:
        """How many connections are in use."""
        return int(self._pool.get_size() - self._pool.get_idle_size())

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Take a connection, and raise what happens on it in our words."""
        with translated(errors=self.errors):
            connection = await self._pool.acquire(timeout=self._acquire_timeout_seconds)
        try:
            with translated(connection, self.errors):
                yield connection
        finally:
            with translated(errors=self.errors):
                await self._pool.release(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Take a connection with a transaction (READ COMMITTED) that ends with the block."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def name(self) -> str:
        """Return what tells this schema from all others: server, database and schema."""
        # Replicas and what is promoted of them have the identifier of their primary.
        server = "(select system_identifier from pg_control_system())"
        known = server if self.history == _HISTORY else "null"
        async with self.connection() as connection:
            name: str = await connection.fetchval(
                f"select concat_ws('/', {known}, current_database(), $1::text)",
                self.options.schema,
            )
        return name

    async def close(self, *, deadline_seconds: float = 5) -> None:
        """Close the connections; those still in use after the deadline are cut."""
        # pool.close() waits for ever for a connection that is not given back.
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._pool.close()
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._pool.terminate()


async def _set_up(connection: Connection) -> None:
    try:
        await set_codecs(connection)
    except BaseException:
        # asyncpg 0.32 would close it in order, and wait for a silent server beyond all limits.
        connection.terminate()
        raise


async def set_codecs(connection: Connection) -> None:
    """
    Let vectors come and go as pgvector's bytes.

    Raises:
        ConfigError: the extension is missing.
    """
    schema = await connection.fetchval(_VECTOR_SCHEMA)
    if schema is None:
        raise ConfigError("the extension 'vector' is missing: run the migrations first")
    for name in ("vector", "halfvec"):
        # Identity: `pgvector_format.wire` has made the bytes of a whole call at once.
        await connection.set_type_codec(
            name, schema=schema, encoder=bytes, decoder=bytes, format="binary"
        )


async def _nothing_to_reset(_: Connection) -> None:
    """Skip the round trip of the reset: nothing is ever SET on these connections."""
