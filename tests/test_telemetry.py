"""Counters, metrics and spans: what is exported is what was counted, and costs what it may."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import opentelemetry.metrics
import opentelemetry.trace
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client.parser import text_string_to_metric_families

from schemas.dead_letter import Reason
from tests.support.collector import running_collector
from tests.support.exposition import feed
from worker.errors import ConfigError
from worker.telemetry import (
    INSTRUMENTS,
    Buckets,
    Counters,
    Kind,
    Telemetry,
    Tracing,
    current_traceparent,
    span_context_of,
    trace_id_of,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{SPAN}-01"
UNSAMPLED = f"00-{TRACE}-{SPAN}-00"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    started = Telemetry.start()
    yield started
    started.shutdown(5)


def samples(telemetry: Telemetry) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = telemetry.metrics_text().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def sample(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return samples(telemetry).get((name, frozenset(labels.items())))


class TestInstruments:
    def test_every_counter_has_its_row_and_what_others_count_is_not_counted_twice(self) -> None:
        rows = {row.name for row in INSTRUMENTS if row.kind in {Kind.COUNTER, Kind.BUCKETS}}
        counted_elsewhere = {
            "provider_tokens_total",
            "blockers_ended",
            "store_errors",
            "vector_cache_hits",
            "vector_cache_misses",
        }
        assert rows - counted_elsewhere == set(vars(Counters()))

    def test_names_are_unique_and_meanings_are_sentences(self) -> None:
        assert len({row.name for row in INSTRUMENTS}) == len(INSTRUMENTS)
        assert all(row.meaning.endswith(".") for row in INSTRUMENTS)

    def test_the_metrics_that_were_asked_for_are_there(self) -> None:
        asked = {
            "queue_depth",
            "active_connections",
            "api_latency",
            "pgvector_write_throughput",
        }
        assert asked <= {row.name for row in INSTRUMENTS}

    def test_prometheus_names_are_as_the_table_says(self, telemetry: Telemetry) -> None:
        for row in INSTRUMENTS:
            feed(telemetry, row)
        exported = {name for name, _ in samples(telemetry)}
        for row in INSTRUMENTS:
            is_histogram = row.kind in {Kind.HISTOGRAM, Kind.BUCKETS}
            assert row.prometheus_name + ("_bucket" if is_histogram else "") in exported
        ours = {name for name in exported if name.startswith("embedfleet_")}
        bare = {
            name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
            for name in ours
        }
        assert bare == {row.prometheus_name for row in INSTRUMENTS}  # fmt: skip


class TestMetrics:
    def test_counters_are_read_when_somebody_asks(self, telemetry: Telemetry) -> None:
        assert sample(telemetry, "embedfleet_retries_total") == 0
        telemetry.counters.retries += 3
        telemetry.counters.outcomes["stored", ""] += 2
        telemetry.counters.outcomes["deadlettered", "oversize"] += 1
        assert sample(telemetry, "embedfleet_retries_total") == 3
        name = "embedfleet_outcomes_total"
        assert sample(telemetry, name, kind="stored", reason="") == 2
        assert sample(telemetry, name, kind="deadlettered", reason="oversize") == 1

    def test_letters_of_every_reason_are_counted_from_0_on(self, telemetry: Telemetry) -> None:
        counts = {
            reason: sample(
                telemetry, "embedfleet_outcomes_total", kind="deadlettered", reason=reason.value
            )
            for reason in Reason
        }
        assert counts == dict.fromkeys(Reason, 0)

    def test_memory_and_collections_of_the_process_are_told(self, telemetry: Telemetry) -> None:
        assert (sample(telemetry, "process_resident_memory_bytes") or 0) > 1e6
        generations = ("0", "1", "2")
        assert all(
            sample(telemetry, "python_gc_collections_total", generation=one) is not None
            for one in generations
        )

    def test_gauges_are_pulled_and_the_last_callback_wins(self, telemetry: Telemetry) -> None:
        telemetry.observe("queue_depth", lambda: 1)
        telemetry.observe("queue_depth", lambda: 7)
        telemetry.observe("lag", lambda: {("documents", "3"): 12})
        telemetry.observe("active_connections", lambda: {"provider": 4})
        assert sample(telemetry, "embedfleet_queue_depth") == 7
        assert sample(telemetry, "embedfleet_lag", topic="documents", partition="3") == 12
        assert sample(telemetry, "embedfleet_active_connections", target="provider") == 4

    def test_freshness_counts_each_document_in_its_bucket(self, telemetry: Telemetry) -> None:
        for seconds in (0.01, 0.05, 0.2, 40, 1e9):
            telemetry.counters.freshness.record(seconds)
        name = "embedfleet_freshness_seconds"
        assert sample(telemetry, name + "_bucket", le="0.05") == 2
        assert sample(telemetry, name + "_bucket", le="0.25") == 3
        assert sample(telemetry, name + "_bucket", le="30.0") == 3
        assert sample(telemetry, name + "_bucket", le="60.0") == 4
        assert sample(telemetry, name + "_bucket", le="+Inf") == 5
        assert sample(telemetry, name + "_count") == 5
        assert sample(telemetry, name + "_sum") == pytest.approx(1e9 + 40.26)

    def test_requests_to_the_provider_are_timed_by_class(self, telemetry: Telemetry) -> None:
        outcomes = ((0.2, "200"), (0.3, "200"), (5.0, "timeout"), (0.1, "429"), (0.1, "404"))
        for seconds, outcome in outcomes:
            telemetry.provider_request(seconds, outcome)
        count = "embedfleet_api_latency_seconds_count"
        assert sample(telemetry, count, status="2xx") == 2
        assert sample(telemetry, count, status="429") == 1
        assert sample(telemetry, count, status="4xx") == 1
        assert sample(telemetry, count, status="timeout") == 1
        requests = "embedfleet_provider_requests_total"
        assert sample(telemetry, requests, status="2xx") == 2

    def test_a_histogram_takes_its_attributes_or_refuses(self, telemetry: Telemetry) -> None:
        with pytest.raises(ValueError, match="zip"):
            telemetry.record("api_latency", 1.0)

    def test_the_process_itself_is_measured(self, telemetry: Telemetry) -> None:
        assert sample(telemetry, "process_resident_memory_bytes") > 0

    def test_two_workers_in_one_process_do_not_mix(self, telemetry: Telemetry) -> None:
        other = Telemetry.start()
        telemetry.counters.retries += 1
        assert sample(other, "embedfleet_retries_total") == 0
        other.shutdown(5)

    def test_nothing_is_registered_globally(self, telemetry: Telemetry) -> None:
        meters = type(opentelemetry.metrics.get_meter_provider()).__name__
        tracers = type(opentelemetry.trace.get_tracer_provider()).__name__
        assert meters == "_ProxyMeterProvider"
        assert tracers == "ProxyTracerProvider"

    def test_importing_costs_no_sdk(self) -> None:
        code = (
            "import sys, worker.telemetry\n"
            "heavy = ('opentelemetry.sdk', 'opentelemetry.exporter', 'prometheus_client',"
            " 'structlog', 'requests')\n"
            "assert not [name for name in sys.modules if name.startswith(heavy)]"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

    @given(st.lists(st.floats(0, 1e6)))
    def test_buckets_count_every_value_once(self, values: list[float]) -> None:
        buckets = Buckets((0.1, 1.0, 10.0))
        for value in values:
            buckets.record(value)
        assert sum(buckets.counts) == len(values)
        assert buckets.counts[0] == sum(value <= 0.1 for value in values)
        assert buckets.counts[-1] == sum(value > 10.0 for value in values)


class TestExport:
    def test_otlp_gets_exponential_histograms_and_our_own(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
        with running_collector() as collector:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
            telemetry = Telemetry.start(
                {"service.instance.id": "one", "service.name": "not me"}
            )
            telemetry.provider_request(0.25, "200")
            telemetry.counters.freshness.record(2)
            telemetry.observe("queue_depth", lambda: 5)
            assert sample(telemetry, "embedfleet_queue_depth") == 5
            with telemetry.tracing.batch_span("store", [SAMPLED]):
                pass
            telemetry.shutdown(10)
        resource = collector.metrics[-1].resource_metrics[0]
        described = {item.key: item.value.string_value for item in resource.resource.attributes}
        assert described["service.name"] == "ours"
        assert described["service.instance.id"] == "one"
        found = {metric.name: metric for metric in resource.scope_metrics[0].metrics}
        assert found["embedfleet.api_latency"].WhichOneof("data") == "exponential_histogram"
        (freshness,) = found["embedfleet.freshness"].histogram.data_points
        assert freshness.count == 1
        assert sum(freshness.bucket_counts) == 1
        assert found["embedfleet.queue_depth"].gauge.data_points[0].as_int == 5
        (span,) = collector.traces[0].resource_spans[0].scope_spans[0].spans
        assert (span.name, span.links[0].trace_id.hex()) == ("store", TRACE)

    def test_a_name_of_ours_is_used_where_the_environment_has_none(
        self, telemetry: Telemetry
    ) -> None:
        name = frozenset({("service_name", "embedfleet")})
        info = [labels for metric, labels in samples(telemetry) if metric == "target_info"]
        assert name <= info[0]

    def test_without_an_endpoint_no_span_is_made(self, telemetry: Telemetry) -> None:
        with telemetry.tracing.batch_span("store", [SAMPLED]) as span:
            assert not span.is_recording()
            assert current_traceparent() is None

    @pytest.mark.parametrize("name", ["OTEL_METRICS_EXPORTER", "OTEL_TRACES_EXPORTER"])
    def test_none_switches_one_signal_off(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, "none")
        with running_collector() as collector:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
            telemetry = Telemetry.start()
            with telemetry.tracing.batch_span("store"):
                pass
            telemetry.shutdown(10)
        assert bool(collector.metrics) == (name != "OTEL_METRICS_EXPORTER")
        assert bool(collector.traces) == (name != "OTEL_TRACES_EXPORTER")

    def test_a_disabled_sdk_exports_nothing_and_breaks_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        with running_collector() as collector:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
            telemetry = Telemetry.start()
            telemetry.observe("queue_depth", lambda: 5)
            telemetry.provider_request(0.25, "200")
            assert sample(telemetry, "embedfleet_queue_depth") is None
            telemetry.shutdown(10)
        assert collector.metrics == collector.traces == []

    @pytest.mark.parametrize(
        "name", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"]
    )
    def test_another_protocol_is_refused_at_start(self, name: str) -> None:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", name: "grpc"}
        with pytest.raises(ConfigError, match=name):
            Telemetry.start(environ=environ | {"OTEL_METRICS_EXPORTER": "none"})

    def test_shutdown_ends_at_its_deadline_though_nobody_answers(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        silent = threading.Event()
        with running_collector(silent) as collector:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
            telemetry = Telemetry.start()
            with telemetry.tracing.batch_span("store"):
                pass
            started = time.monotonic()
            telemetry.shutdown(0.2)
            assert time.monotonic() - started < 5
            assert collector.traces == []
            silent.set()
            for thread in threading.enumerate():
                if thread.name == "telemetry-shutdown":
                    thread.join(10)


class TestTracing:
    @pytest.fixture
    def exporter(self) -> InMemorySpanExporter:
        return InMemorySpanExporter()

    @pytest.fixture
    def tracing(self, exporter: InMemorySpanExporter) -> Iterator[Tracing]:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        yield Tracing(provider.get_tracer("test"))
        provider.shutdown()

    def test_a_batch_is_one_span_with_a_link_to_each_sampled_trace(
        self, tracing: Tracing, exporter: InMemorySpanExporter
    ) -> None:
        with tracing.batch_span("store", [SAMPLED, None, "nonsense", SAMPLED, UNSAMPLED]):
            pass
        (span,) = exporter.get_finished_spans()
        assert span.parent is None
        assert [link.context.trace_flags.sampled for link in span.links] == [True]
        assert {f"{link.context.trace_id:032x}" for link in span.links} == {TRACE}

    def test_links_are_bounded(self, tracing: Tracing, exporter: InMemorySpanExporter) -> None:
        with tracing.batch_span("store", (f"00-{n:032x}-{SPAN}-01" for n in range(1, 1000))):
            pass
        assert len(exporter.get_finished_spans()[0].links) == 128

    def test_what_happens_inside_is_below_the_batch(self, tracing: Tracing) -> None:
        with tracing.batch_span("embed") as span:
            context = span_context_of(current_traceparent())
            assert context.span_id == span.get_span_context().span_id

    def test_a_failed_batch_names_the_error_but_not_its_message(
        self, tracing: Tracing, exporter: InMemorySpanExporter
    ) -> None:
        with pytest.raises(ValueError, match="canary"), tracing.batch_span("store"):
            raise ValueError("canary")
        (span,) = exporter.get_finished_spans()
        assert span.attributes["error.type"] == "ValueError"
        assert span.status.status_code is StatusCode.ERROR
        assert "canary" not in span.to_json()

    @given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 255))
    def test_a_traceparent_is_read_back(self, trace: int, span: int, flags: int) -> None:
        traceparent = f"00-{trace:032x}-{span:016x}-{flags:02x}"
        assert trace_id_of(traceparent) == f"{trace:032x}"
        context = span_context_of(traceparent)
        assert (context.trace_id, context.span_id, context.is_remote) == (trace, span, True)
        assert context.trace_flags.sampled == bool(flags & 1)

    @pytest.mark.parametrize(
        "traceparent",
        [
            None,
            "",
            SAMPLED + "\n",
            SAMPLED + "-more",
            SAMPLED[:-1],
            "ff" + SAMPLED[2:],
            SAMPLED.upper(),
            f"00-{'0' * 32}-{SPAN}-01",
            f"00-{TRACE}-{'0' * 16}-01",
            "01" + SAMPLED[2:] + "-evil\r\nX: y",
        ],
    )
    def test_what_is_no_traceparent_has_no_trace(self, traceparent: str | None) -> None:
        assert trace_id_of(traceparent) is None
        assert span_context_of(traceparent) is None

    def test_later_versions_may_append_fields(self) -> None:
        assert trace_id_of("01" + SAMPLED[2:] + "-more") == TRACE
