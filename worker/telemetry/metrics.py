"""
Where the instruments are exported: Prometheus text on request, OTLP where it is configured.

Owns a provider and a registry of its own; nothing is registered globally. Counters are read
when somebody collects, by callbacks; only requests and transactions are recorded one by one.
The plain-integer histograms (`Buckets`) are added to what the SDK has collected, since
OpenTelemetry has no observable histogram and a `record` per document would cost 6 us.

Prometheus gets explicit buckets, OTLP exponential ones: the Prometheus exporter cannot
translate those.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry.metrics import CallbackOptions, Histogram, Observation

from worker.telemetry.instruments import BY_NAME, INSTRUMENTS, Instrument, Kind

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import Metric, MetricReader, MetricsData
    from opentelemetry.sdk.resources import Resource
    from prometheus_client import CollectorRegistry

    from worker.telemetry.counters import Buckets, Counters

Number = int | float
Reading = Number | Mapping[str, Number] | Mapping[tuple[str, ...], Number]
"""A number, or one for each combination of the instrument's attributes, in their order."""


class Metrics:
    """All instruments of one worker, and the readers that export them."""

    def __init__(self, counters: Counters, resource: Resource, *, otlp: bool) -> None:
        # Imported here: the SDK and its exporters cost every command half a second else.
        from opentelemetry.sdk.metrics import MeterProvider
        from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector

        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._provider = MeterProvider(
            metric_readers=_readers(self._registry, counters, otlp=otlp),
            resource=resource,
            shutdown_on_exit=False,  # `shutdown` has a deadline, an exit handler has none
        )
        self._meter = self._provider.get_meter("embedfleet")
        self._callbacks: dict[str, Callable[[], Reading]] = {}
        self._histograms = {
            instrument.name: self._histogram(instrument)
            for instrument in INSTRUMENTS
            if instrument.kind is Kind.HISTOGRAM
        }
        for instrument in INSTRUMENTS:
            if instrument.kind is Kind.COUNTER and hasattr(counters, instrument.name):
                self.observe(instrument.name, partial(getattr, counters, instrument.name))

    def observe(self, name: str, callback: Callable[[], Reading]) -> None:
        """
        Export what the callback returns, whenever somebody collects; the last callback wins.

        It is called by the exporter's thread too: it returns a number, or a dict made anew.
        """
        instrument = BY_NAME[name]
        is_new = name not in self._callbacks
        self._callbacks[name] = callback
        if not is_new:
            return
        create = (
            self._meter.create_observable_counter
            if instrument.kind is Kind.COUNTER
            else self._meter.create_observable_gauge
        )
        create(
            instrument.full_name,
            callbacks=[partial(self._observations, instrument)],
            unit=instrument.unit,
            description=instrument.meaning,
        )

    def record(self, name: str, value: float, *attributes: str) -> None:
        """Record one value of a histogram, with its attributes in their order."""
        names = BY_NAME[name].attributes
        self._histograms[name].record(value, dict(zip(names, attributes, strict=True)))

    def text(self) -> bytes:
        """Return everything in Prometheus' text format 0.0.4."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)

    def shutdown(self, deadline_seconds: float) -> None:
        """Export once more and stop; blocks, so not on the loop."""
        self._provider.shutdown(timeout_millis=deadline_seconds * 1000)

    def _histogram(self, instrument: Instrument) -> Histogram:
        return self._meter.create_histogram(
            instrument.full_name,
            unit=instrument.unit,
            description=instrument.meaning,
            explicit_bucket_boundaries_advisory=[float(bound) for bound in instrument.bounds],
        )

    def _observations(
        self, instrument: Instrument, _: CallbackOptions
    ) -> Iterable[Observation]:
        reading = self._callbacks[instrument.name]()
        if isinstance(reading, int | float):
            return [Observation(reading)]
        # `list` of a dict is one step of the interpreter; the loop may be adding to it.
        return [
            Observation(value, dict(zip(instrument.attributes, _parts(key), strict=True)))
            for key, value in list(reading.items())
        ]


def _parts(key: str | Sequence[str]) -> Sequence[str]:
    return (key,) if isinstance(key, str) else key


def _readers(
    registry: CollectorRegistry, counters: Counters, *, otlp: bool
) -> list[MetricReader]:
    from opentelemetry.exporter.prometheus import PrometheusMetricReader

    plain = _PlainHistograms(counters)

    class Prometheus(PrometheusMetricReader):
        """Adds the histograms of plain integers."""

        def _receive_metrics(
            self, metrics_data: MetricsData, *args: Any, **kwargs: Any
        ) -> None:
            super()._receive_metrics(plain.added_to(metrics_data), *args, **kwargs)

    prometheus = Prometheus(registry=registry, scope_info_enabled=False)
    return [prometheus, _otlp_reader(plain)] if otlp else [prometheus]


def _otlp_reader(plain: _PlainHistograms) -> MetricReader:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import Histogram as HistogramInstrument
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation

    class Otlp(PeriodicExportingMetricReader):
        """Adds the histograms of plain integers."""

        def _receive_metrics(
            self, metrics_data: MetricsData, *args: Any, **kwargs: Any
        ) -> None:
            super()._receive_metrics(plain.added_to(metrics_data), *args, **kwargs)

    return Otlp(
        OTLPMetricExporter(
            preferred_aggregation={HistogramInstrument: ExponentialBucketHistogramAggregation()}
        )
    )


class _PlainHistograms:
    """The `Buckets` of the counters, as the SDK would have collected them."""

    def __init__(self, counters: Counters) -> None:
        self._started_ns = time.time_ns()
        self._buckets: dict[Instrument, Buckets] = {
            instrument: getattr(counters, instrument.name)
            for instrument in INSTRUMENTS
            if instrument.kind is Kind.BUCKETS
        }

    def added_to(self, data: MetricsData) -> MetricsData:
        """Return what was collected, with these besides."""
        resource, *resources = data.resource_metrics
        scope, *scopes = resource.scope_metrics
        added = [self._metric(row, buckets) for row, buckets in self._buckets.items()]
        scope = replace(scope, metrics=[*scope.metrics, *added])
        resource = replace(resource, scope_metrics=[scope, *scopes])
        return replace(data, resource_metrics=[resource, *resources])

    def _metric(self, instrument: Instrument, buckets: Buckets) -> Metric:
        from opentelemetry.sdk.metrics import export

        counts = tuple(buckets.counts)
        point = export.HistogramDataPoint(
            attributes={},
            start_time_unix_nano=self._started_ns,
            time_unix_nano=time.time_ns(),
            count=sum(counts),
            sum=buckets.sum,
            bucket_counts=counts,
            explicit_bounds=buckets.bounds,
            min=None,  # type: ignore[arg-type]  # optional in the protocol, and not tracked
            max=None,  # type: ignore[arg-type]
        )
        return export.Metric(
            instrument.full_name,
            instrument.meaning,
            instrument.unit,
            export.Histogram([point], export.AggregationTemporality.CUMULATIVE),
        )
