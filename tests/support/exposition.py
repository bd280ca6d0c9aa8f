"""What a worker's `/metrics` can show: every metric and its labels, from a real export."""

from collections import Counter
from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families

from worker.telemetry import INSTRUMENTS, Buckets, Instrument, Kind, Telemetry

# What Prometheus adds to whatever it scrapes; `namespace` on Kubernetes.
SCRAPE_LABELS = frozenset({"job", "instance", "namespace"})


def feed(telemetry: Telemetry, row: Instrument) -> None:
    """Let an instrument have one value."""
    labels = ("x",) * len(row.attributes)
    counted = getattr(telemetry.counters, row.name, None)
    if row.kind is Kind.HISTOGRAM:
        telemetry.record(row.name, 1, *labels)
    elif isinstance(counted, Buckets):
        counted.record(1)
    elif isinstance(counted, Counter):
        counted[labels] += 1
    elif counted is None:
        telemetry.observe(row.name, lambda: {labels: 1})


def exported() -> dict[str, set[str]]:
    """Return metric -> labels, as Prometheus keeps what it scrapes of a worker that did all."""
    telemetry = Telemetry.start(environ={})
    try:
        for row in INSTRUMENTS:
            feed(telemetry, row)
        return shown(telemetry.metrics_text().decode())
    finally:
        telemetry.shutdown(5)


def shown(text: str) -> dict[str, set[str]]:
    """Return metric -> labels of a text in Prometheus' format."""
    found: dict[str, set[str]] = {}
    for name, labels in _samples(text):
        found.setdefault(name, set(SCRAPE_LABELS)).update(labels)
    return found


def _samples(text: str) -> Iterable[tuple[str, Iterable[str]]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels
