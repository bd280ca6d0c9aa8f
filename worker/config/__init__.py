"""
Every setting: type, bound, default and reason in the one line that is used.

The same frozen dataclasses become flags, `EMBEDFLEET_*` variables, TOML keys and the table of
the README. A component takes its own options, never all `Settings`. Secrets are references
(the name of a variable, or a file), never values. Relations between settings are checked
where they are defined, with the reason.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from worker.config.about import about
from worker.config.index import IndexBuildOptions
from worker.config.kafka import KafkaOptions
from worker.errors import ConfigError

__all__ = [
    "BreakerOptions",
    "DatabaseOptions",
    "DeadLetterOptions",
    "DialectName",
    "EmbeddingOptions",
    "IndexBuildOptions",
    "IngestOptions",
    "KafkaOptions",
    "QueueOptions",
    "RetryOptions",
    "Settings",
    "TelemetryOptions",
    "VersionClock",
    "about",
]

# fmt: off
DialectName = Literal[
    "openai", "azure", "mistral", "voyage", "jina",
    "tei", "vllm", "ollama", "litellm", "generic",
]
# fmt: on
VersionClock = Literal["none", "seconds", "milliseconds", "microseconds"]


@dataclass(frozen=True, kw_only=True)
class DatabaseOptions:
    """PostgreSQL with pgvector: where, and how many connections."""

    url: Annotated[
        str, about("postgresql://user@host:port/name; DATABASE_URL is accepted too.")
    ] = "postgresql://localhost/embedfleet"
    password_variable: Annotated[
        str | None, about("Name of the variable that holds the password.")
    ] = None
    password_file: Annotated[Path | None, about("File that holds the password.")] = None
    schema: Annotated[
        str, Meta(pattern="^[a-z_][a-z0-9_]{0,62}$", description="Schema of all tables.")
    ] = "embedfleet"
    pool_min: Annotated[
        int, about("Connections kept open: a codec per connection costs 12 ms.", ge=1, le=1000)
    ] = 10
    pool_max: Annotated[
        int, about("Connections at most; fleet size x this <= max_connections.", ge=2, le=1000)
    ] = 50
    pool_max_queries: Annotated[int, about("Queries before a connection is renewed.", ge=1)] = (
        50_000
    )
    pool_inactive_seconds: Annotated[
        float, about("Idle connections above the minimum are closed after this.", gt=0)
    ] = 300
    statement_timeout_seconds: Annotated[
        float, about("Server-side limit of one statement.", gt=0)
    ] = 30
    lock_timeout_seconds: Annotated[
        float, about("Server-side limit of one lock wait.", gt=0)
    ] = 5
    idle_in_transaction_seconds: Annotated[
        float, about("The server ends a frozen worker's transaction after this.", gt=0)
    ] = 10
    command_timeout_seconds: Annotated[
        float, about("Client-side limit of one statement, above the server's.", gt=0)
    ] = 40
    connect_timeout_seconds: Annotated[
        float, about("Limit of one connection attempt.", gt=0)
    ] = 10

    def __post_init__(self) -> None:
        """Refuse a pool or timeouts that contradict each other."""
        if self.pool_min > self.pool_max:
            raise ConfigError("database.pool_min must not exceed database.pool_max")
        if self.statement_timeout_seconds >= self.command_timeout_seconds:
            raise ConfigError(
                "database.command_timeout_seconds must exceed "
                "database.statement_timeout_seconds, or the client gives up on statements "
                "that the server still runs"
            )
        if self.lock_timeout_seconds > self.statement_timeout_seconds:
            raise ConfigError(
                "database.lock_timeout_seconds must not exceed "
                "database.statement_timeout_seconds"
            )


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions:
    """The embedding provider: an OpenAI-compatible endpoint."""

    url: Annotated[str, about("Up to and with /v1; OPENAI_BASE_URL is accepted too.")] = (
        "https://api.openai.com/v1"
    )
    dialect: Annotated[
        DialectName, about("Whose fields, limits and errors to expect of it.")
    ] = "openai"
    api_key_variable: Annotated[
        str | None, about("Name of the variable that holds the key; none set: no key is sent.")
    ] = "OPENAI_API_KEY"
    api_key_file: Annotated[Path | None, about("File that holds the key, read on change.")] = (
        None
    )
    auth: Annotated[
        Literal["key", "client_credentials", "service_account"],
        about("Send the key, or a token for it: it is a client's secret, or a JSON key file."),
    ] = "key"
    token_url: Annotated[
        str | None, about("OAuth2 token endpoint; none: the one that the JSON key file names.")
    ] = None
    token_scope: Annotated[str | None, about("Scope to ask a token for.")] = None
    client_id: Annotated[
        str | None, about("OAuth2 client; of a service account the subject, if one is wanted.")
    ] = None
    requests_per_minute: Annotated[
        int | None, about("The provider's quota of requests, for this worker.", ge=1)
    ] = None
    tokens_per_minute: Annotated[
        int | None, about("The provider's quota of tokens, for this worker.", ge=1)
    ] = None
    concurrency: Annotated[
        int,
        about("Requests in flight at most; aligned with the provider's quota.", ge=1, le=200),
    ] = 50
    connections: Annotated[int, about("Pooled connections at most.", ge=1)] = 200
    connections_per_host: Annotated[int, about("... of them to one host.", ge=1)] = 50
    dns_cache_seconds: Annotated[int, about("How long a looked-up address is kept.", ge=0)] = (
        300
    )
    timeout_seconds: Annotated[float, about("Limit of one request.", gt=0)] = 30
    max_inputs: Annotated[int, about("Texts per request at most.", ge=1, le=2048)] = 128
    max_request_tokens: Annotated[
        int, about("Tokens per request at most, estimated as bytes / 3.", ge=1)
    ] = 100_000
    max_request_bytes: Annotated[
        int, about("Bytes of text per request at most.", ge=1024, le=1024 * 1024)
    ] = 512 * 1024
    max_answer_bytes: Annotated[int, about("A longer answer is refused.", ge=1024)] = (
        64 * 1024 * 1024
    )
    send_dimensions: Annotated[
        bool, about("Ask the provider for the collection's dimensions.")
    ] = False
    cache_bytes: Annotated[
        int, about("Vectors paid for are kept until stored, up to this.", ge=0)
    ] = 32 * 1024 * 1024

    def __post_init__(self) -> None:
        """Refuse a semaphore that would queue inside the connection pool."""
        if self.concurrency > self.connections_per_host:
            raise ConfigError(
                "embedding.concurrency must not exceed embedding.connections_per_host, "
                "or requests wait for connections where no time limit sees them"
            )
        if self.connections_per_host > self.connections:
            raise ConfigError(
                "embedding.connections_per_host must not exceed embedding.connections"
            )
        if self.auth == "client_credentials" and not (self.token_url and self.client_id):
            raise ConfigError(
                "embedding.auth client_credentials needs embedding.token_url and "
                "embedding.client_id"
            )


@dataclass(frozen=True, kw_only=True)
class RetryOptions:
    """How a failed embedding request is tried again."""

    max_attempts: Annotated[
        int, about("Tries of one request before its documents are tried alone.", ge=1, le=10)
    ] = 5
    base_seconds: Annotated[float, about("First back-off; full jitter below it.", gt=0)] = 0.1
    cap_seconds: Annotated[float, about("Longest back-off.", gt=0)] = 10
    throttle_base_seconds: Annotated[float, about("First back-off after a 429.", gt=0)] = 1
    throttle_cap_seconds: Annotated[float, about("Longest back-off after a 429.", gt=0)] = 60

    def __post_init__(self) -> None:
        """Refuse caps below their bases."""
        if self.base_seconds > self.cap_seconds:
            raise ConfigError("retry.base_seconds must not exceed retry.cap_seconds")
        if self.throttle_base_seconds > self.throttle_cap_seconds:
            raise ConfigError(
                "retry.throttle_base_seconds must not exceed retry.throttle_cap_seconds"
            )


@dataclass(frozen=True, kw_only=True)
class BreakerOptions:
    """When the provider is left alone, and for how long."""

    failure_rate: Annotated[
        float, about("Share of failed calls that opens the breaker.", gt=0, le=1)
    ] = 0.5
    min_calls: Annotated[
        int, about("Fewer calls in the window say nothing about the rate.", ge=1)
    ] = 20
    window_seconds: Annotated[float, about("Calls that ended in it count.", gt=0)] = 10
    min_open_seconds: Annotated[
        float, about("First open time; it doubles with each failed probe.", gt=0)
    ] = 0.1
    max_open_seconds: Annotated[float, about("Longest open time.", gt=0)] = 5
    jitter: Annotated[
        Literal["equal", "full"],
        about("Of the open time: half and anything up to the other half, or anything."),
    ] = "equal"
    park_seconds: Annotated[
        float,
        about("Open time where key, quota, model or address are wrong.", gt=0),
    ] = 30
    park_hint_seconds: Annotated[
        float, about("A provider that asks to wait for longer is left alone until then.", ge=0)
    ] = 120

    def __post_init__(self) -> None:
        """Refuse a first open time above the longest."""
        if self.min_open_seconds > self.max_open_seconds:
            raise ConfigError(
                "breaker.min_open_seconds must not exceed breaker.max_open_seconds"
            )


@dataclass(frozen=True, kw_only=True)
class QueueOptions:
    """What a worker holds at most: back-pressure to Kafka beyond it."""

    max_documents: Annotated[int, about("Waiting and in flight together.", ge=1)] = 5_000
    max_bytes: Annotated[int, about("Waiting and in flight together, in bytes.", ge=1024)] = (
        64 * 1024 * 1024
    )
    max_in_flight: Annotated[
        int,
        about(
            "Documents worked on at once (an eighth more of tenants that have few); the rest "
            "waits, fairly by tenant.",
            ge=1,
        ),
    ] = 512
    quantum_bytes: Annotated[
        int, about("What one tenant may send before the next one's turn.", ge=1)
    ] = 64 * 1024

    def __post_init__(self) -> None:
        """Refuse more in flight than the queue holds."""
        if self.max_in_flight > self.max_documents:
            raise ConfigError("queue.max_in_flight must not exceed queue.max_documents")


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """What is accepted, and how long one document may take."""

    max_text_bytes: Annotated[int, about("Longer texts are dead-lettered.", ge=1)] = (
        4 * 1024 * 1024
    )
    nul: Annotated[
        Literal["replace", "dead_letter"], about("What a U+0000 in a text gets.")
    ] = "replace"
    version_clock: Annotated[
        VersionClock,
        about("Versions are times in this unit: 5 minutes ahead of the record is too far."),
    ] = "none"
    document_timeout_seconds: Annotated[
        float, about("A pass without a new vector for longer is queued again.", gt=0)
    ] = 300
    unknown_collection_grace_seconds: Annotated[
        float, about("How long an unknown collection is looked up again.", ge=0)
    ] = 60
    prepare_batch_documents: Annotated[int, about("Documents per look-up.", ge=1)] = 128
    prepare_slots: Annotated[int, about("Look-ups at once.", ge=1)] = 2
    store_batch_documents: Annotated[
        int, about("Documents per transaction: 100 make 10x the rate of one.", ge=1, le=1000)
    ] = 128
    store_batch_bytes: Annotated[int, about("Text and vectors per transaction.", ge=1024)] = (
        8 * 1024 * 1024
    )
    store_slots: Annotated[int, about("Transactions at once.", ge=1)] = 4
    internal_error: Annotated[
        Literal["stop", "dead_letter"],
        about("What a defect of ours gets: a stopped worker, or a dead letter."),
    ] = "stop"
    cpu_threads: Annotated[int, about("Threads that chunk and hash, off the loop.", ge=1)] = 2


@dataclass(frozen=True, kw_only=True)
class DeadLetterOptions:
    """When a partition is held, because a flood of dead letters is an outage in disguise."""

    max_share: Annotated[
        float, about("A partition is held above this share of dead letters.", gt=0, le=1)
    ] = 0.05
    sample_records: Annotated[
        int, about("... of so many last records; fewer say nothing.", ge=1)
    ] = 1_000
    window_seconds: Annotated[
        float, about("... that ended in this time; older ones say nothing.", gt=0)
    ] = 60
    probe_records: Annotated[
        int, about("Records that are let through to see whether it is over.", ge=1)
    ] = 50
    probe_seconds: Annotated[
        float, about("How long a partition is held before each probe.", gt=0)
    ] = 60


@dataclass(frozen=True, kw_only=True)
class TelemetryOptions:
    """Logs, the admin port and what helps in staging."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], about("Least level.")
    ] = "info"
    log_format: Annotated[Literal["json", "console"], about("JSON lines, or for people.")] = (
        "json"
    )
    admin_host: Annotated[
        str,
        about("Where /livez, /readyz, /metrics, /state, /scale listen; `::` is everywhere."),
    ] = "127.0.0.1"
    admin_port: Annotated[
        int | None, about("None: no admin port. 0: any free one.", ge=0, le=65_535)
    ] = 9464
    loop_lag_alarm_seconds: Annotated[
        float, about("Sustained lag of the event loop that is logged.", gt=0)
    ] = 0.05
    stall_seconds: Annotated[
        float, about("A loop silent for longer gets its stack dumped.", gt=0)
    ] = 1.0
    scale_drain_seconds: Annotated[
        float,
        about("`GET /scale` asks for workers that settle what waits within this.", gt=0),
    ] = 300
    progress_seconds: Annotated[
        float, about("Lag without progress for longer: the consumer is made anew.", gt=0)
    ] = 60
    debug_loop: Annotated[bool, about("asyncio debug mode; 20x slower tasks.")] = False
    tracemalloc: Annotated[bool, about("Log where memory grows; slow.")] = False


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a worker and of the commands around it."""

    kafka: KafkaOptions = field(default_factory=KafkaOptions)
    database: DatabaseOptions = field(default_factory=DatabaseOptions)
    embedding: EmbeddingOptions = field(default_factory=EmbeddingOptions)
    retry: RetryOptions = field(default_factory=RetryOptions)
    breaker: BreakerOptions = field(default_factory=BreakerOptions)
    queue: QueueOptions = field(default_factory=QueueOptions)
    ingest: IngestOptions = field(default_factory=IngestOptions)
    dead_letters: DeadLetterOptions = field(default_factory=DeadLetterOptions)
    index: IndexBuildOptions = field(default_factory=IndexBuildOptions)
    telemetry: TelemetryOptions = field(default_factory=TelemetryOptions)
    startup_timeout_seconds: Annotated[
        float, about("How long an unreachable broker or database is waited for.", gt=0)
    ] = 60
