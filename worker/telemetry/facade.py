"""
The telemetry of one worker: counters, metrics and spans, started and stopped together.

Made by the composition root and passed on; nothing is global, and without `start` nothing is
imported that costs. Where the exports go is said by OpenTelemetry's own variables:
`OTEL_EXPORTER_OTLP_ENDPOINT` (or `..._METRICS_ENDPOINT`, `..._TRACES_ENDPOINT`) switches OTLP
over HTTP on, `OTEL_METRICS_EXPORTER` or `OTEL_TRACES_EXPORTER` "none" off,
`OTEL_SDK_DISABLED` everything. Prometheus text is always there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from worker.errors import ConfigError
from worker.telemetry.counters import Counters
from worker.telemetry.metrics import Metrics, Reading
from worker.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# The SDK drops spans silently when its queue is full; at 2,048 that is a fifth of a second.
SPAN_QUEUE = 16_384
SPAN_BATCH = 512


class Telemetry:
    """What a worker tells about itself; `start` makes one."""

    def __init__(
        self, counters: Counters, metrics: Metrics, spans: TracerProvider | None
    ) -> None:
        self.counters = counters
        self.tracing = Tracing(spans.get_tracer("embedfleet") if spans is not None else None)
        self._metrics = metrics
        self._spans = spans

    @classmethod
    def start(
        cls,
        resource: Mapping[str, str] | None = None,
        *,
        counters: Counters | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Telemetry:
        """
        Start the exports; `resource` says who we are where the environment does not.

        Raises:
            ConfigError: the environment asks for a protocol other than http/protobuf.
        """
        counters = counters if counters is not None else Counters()
        described = _resource(resource or {})
        metrics = Metrics(counters, described, otlp=_is_on("METRICS", environ))
        return cls(counters, metrics, _spans(described) if _is_on("TRACES", environ) else None)

    def observe(self, name: str, callback: Callable[[], Reading]) -> None:
        """Export what `callback` returns: it is asked at every collection, in any thread."""
        self._metrics.observe(name, callback)

    def record(self, name: str, value: float, *attributes: str) -> None:
        """Record one value of a histogram; per request or per batch, never per document."""
        self._metrics.record(name, value, *attributes)

    def provider_request(self, seconds: float, status: str) -> None:
        """Take note of one request to the provider; what `HttpEmbedder` calls `observe`."""
        # A full quota is another matter than all else that a 4xx says.
        is_class = status.isdecimal() and status != "429"
        label = f"{status[0]}xx" if is_class else status
        self.counters.provider_requests_total[label] += 1
        self._metrics.record("api_latency", seconds, label)

    def metrics_text(self) -> bytes:
        """Return everything in Prometheus' text format (`METRICS_CONTENT_TYPE`)."""
        return self._metrics.text()

    def shutdown(self, deadline_seconds: float) -> None:
        """
        Export what is left, for at most this long; blocks, so not on the loop.

        In a thread that cannot keep the process alive: an unreachable collector is retried
        by its exporter for longer than any deadline of ours.
        """
        ending = threading.Thread(
            target=self._end, args=(deadline_seconds,), name="telemetry-shutdown", daemon=True
        )
        ending.start()
        ending.join(deadline_seconds)

    def _end(self, deadline_seconds: float) -> None:
        if self._spans is not None:
            self._spans.shutdown()
        self._metrics.shutdown(deadline_seconds)


def _is_on(signal: str, environ: Mapping[str, str]) -> bool:
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environ.get(f"OTEL_{signal}_EXPORTER", "otlp") == "none":
        return False
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    if not any(environ.get(name) for name in names):
        return False
    for name in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if (protocol := environ.get(name, "http/protobuf")) != "http/protobuf":
            raise ConfigError(f"{name} is {protocol!r}, but only http/protobuf is supported")
    return True


def _resource(ours: Mapping[str, str]) -> Resource:
    """Describe this worker: the environment's words win over ours, ours over the SDK's."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    described = Resource.create({"service.name": "embedfleet", **ours})
    return described.merge(OTELResourceDetector().detect())


def _spans(resource: Resource) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(
        BatchSpanProcessor(
            OTLPSpanExporter(), max_queue_size=SPAN_QUEUE, max_export_batch_size=SPAN_BATCH
        )
    )
    return provider
