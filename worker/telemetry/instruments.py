"""
Every instrument of a worker, as data: the one table that code, README and dashboards share.

A row's name is that of its attribute of `Counters`, where it has one; exported it carries the
prefix `embedfleet.`, in Prometheus with underscores, the unit and `_total`, as its exporter
writes them. Attributes are few and bounded: never a document, never a tenant.
"""

from dataclasses import dataclass
from enum import Enum

PREFIX = "embedfleet."


class Kind(Enum):
    """How an instrument is fed."""

    COUNTER = "counter"
    """Read from the attribute of `Counters`, or by the callback of `Telemetry.observe`."""
    GAUGE = "gauge"
    """Read by the callback that `Telemetry.observe` was given."""
    HISTOGRAM = "histogram"
    """Recorded once per request or per batch: 6 us each."""
    BUCKETS = "buckets"
    """A histogram as well, counted in plain integers (`Buckets`): 0.5 us each."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """One row: what it is called, what it means, and by what it is divided."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    attributes: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        """The name in OpenTelemetry."""
        return PREFIX + self.name

    @property
    def prometheus_name(self) -> str:
        """The name in Prometheus, as queries write it (of a histogram, without `_bucket`)."""
        name = self.full_name.replace(".", "_").removesuffix("_total")
        unit = {"s": "_seconds", "By": "_bytes"}.get(self.unit, "")
        name = name.removesuffix(unit) + unit
        return name + "_total" if self.kind is Kind.COUNTER else name


def _counter(name: str, unit: str, meaning: str, *attributes: str) -> Instrument:
    return Instrument(name, Kind.COUNTER, unit, meaning, attributes)


def _gauge(name: str, unit: str, meaning: str, *attributes: str) -> Instrument:
    return Instrument(name, Kind.GAUGE, unit, meaning, attributes)


# From a cached answer on a local server to the limit of a request, and one beyond.
LATENCY_SECONDS = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60,
)  # fmt: skip
# A good event takes a second; a day is an outage that somebody has to explain.
FRESHNESS_SECONDS = (
    0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 21_600, 86_400,
)  # fmt: skip
# Below 5 ms is the timer itself; above 1 s the watchdog dumps a stack.
LOOP_LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)

INSTRUMENTS: tuple[Instrument, ...] = (
    _gauge("queue_depth", "{document}", "Documents taken from Kafka and not settled."),
    _gauge("queue_bytes", "By", "What they take in memory, roughly."),
    _gauge(
        "in_flight", "{document}", "Documents being worked on; the others of the queue wait."
    ),
    _gauge("active_connections", "{connection}", "Connections in use.", "target"),
    _gauge(
        "lag",
        "{record}",
        "Stable records not polled yet; of a held partition, not settled.",
        "topic",
        "partition",
    ),
    _gauge("assigned_partitions", "{partition}", "Partitions that this worker owns."),
    _gauge(
        "paused_partitions", "{partition}", "... of them not polled, by what they do.", "phase"
    ),
    _gauge(
        "oldest_in_flight",
        "s",
        "Age of the oldest record that is polled and not settled; 0: there is none.",
        "topic",
        "partition",
    ),
    _gauge("breaker_open", "1", "1 while the provider is left alone for a model.", "model"),
    _gauge("vector_cache_bytes", "By", "Vectors paid for and not stored yet."),
    Instrument(
        "api_latency",
        Kind.HISTOGRAM,
        "s",
        "One request to the provider; its p99 is the alarm of the provider's health.",
        ("status",),
        LATENCY_SECONDS,
    ),
    Instrument(
        "store_latency",
        Kind.HISTOGRAM,
        "s",
        "One write transaction, from its first statement to the end of its commit.",
        (),
        LATENCY_SECONDS,
    ),
    Instrument(
        "freshness",
        Kind.BUCKETS,
        "s",
        "From the event to its being searchable, each document.",
        (),
        FRESHNESS_SECONDS,
    ),
    Instrument(
        "event_loop_lag",
        Kind.BUCKETS,
        "s",
        "How much later than asked the event loop wakes a timer.",
        (),
        LOOP_LAG_SECONDS,
    ),
    _counter("documents_total", "{document}", "Documents settled by any outcome."),
    _counter("outcomes", "{document}", "... by outcome and reason.", "kind", "reason"),
    _counter("chunks_embedded_total", "{chunk}", "Chunks whose vectors were bought."),
    _counter(
        "chunks_kept_total", "{chunk}", "Chunks that an edit left alone: not bought again."
    ),
    _counter(
        "pgvector_write_throughput",
        "{row}",
        "Rows written; the throughput is the rate of it.",
    ),
    _counter(
        "provider_requests_total",
        "{request}",
        "Requests to the provider, by class of the answer; 429 is one of its own.",
        "status",
    ),
    _counter("provider_tokens_total", "{token}", "Tokens the provider says it charged."),
    _counter("retries", "{request}", "Requests sent again after a failure."),
    _counter("requeues", "{document}", "Documents put back at the head of their key."),
    _counter("commits", "{commit}", "Offsets committed to Kafka, calls."),
    _counter("rebalances", "{rebalance}", "Assignments received from the group."),
    _counter("claims", "{claim}", "Partitions claimed in the database."),
    _counter(
        "blockers_ended", "{session}", "Database sessions ended because they held a claim."
    ),
    _counter("fenced", "{write}", "Writes refused because another worker owns the partition."),
    _counter(
        "store_errors", "{error}", "What PostgreSQL failed at, refused or left open.", "error"
    ),
    _counter("poll_errors", "{error}", "Partitions that could not be polled, each time."),
    _counter("nul_replaced", "{character}", "U+0000 in texts and metadata, replaced."),
    _counter("vector_cache_hits", "{chunk}", "Vectors found in the cache: not bought again."),
    _counter("vector_cache_misses", "{chunk}", "Vectors looked for there in vain."),
)

BY_NAME = {instrument.name: instrument for instrument in INSTRUMENTS}
