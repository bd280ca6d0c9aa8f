"""
A worker at work, watched by the real tools through the files that users deploy.

Kafka and PostgreSQL are real, the provider is scripted; Prometheus and the Collector read our
configuration, with the addresses of this machine in it. The load is such that everything there
is to see happens: edits, deletes, refusals, letters, a full quota, an outage.
"""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import yaml
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from schemas.publisher import Publisher
from tests.manifests import tools
from tests.support import watching
from tests.support.fleet import Fleet, delete, upsert
from tests.support.kafka import KafkaServer, topics
from tests.support.postgres import PostgresServer
from tests.support.provider import Call, status
from tests.support.worker_process import WorkerProcess
from worker.config import DatabaseOptions, KafkaOptions
from worker.embedded.ports import HOST, ReservedPort
from worker.telemetry import trace_id_of

LONG = "\n\n".join(f"Paragraph {number} says {number * 'more '}." for number in range(30))
LETTERS = {"content_filter", "undecodable"}
"""The reasons of the letters that `publish_everything` makes."""


@dataclass
class Prometheus:
    """A Prometheus with our alerts that scrapes the worker and the Collector every second."""

    url: str
    session: aiohttp.ClientSession

    async def ask(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of its API; raises what it complains of."""
        async with self.session.get(f"{self.url}/api/v1/{path}", params=parameters) as answer:
            said = await answer.json()
        if said["status"] != "success":
            raise ValueError(said["error"])
        return said["data"]

    async def series(self, expr: str) -> list[Any]:
        """Return what a query answers now."""
        found = await self.ask("query", query=expr)
        return found["result"] if found["resultType"] == "vector" else [found["result"]]


class Ports:
    """Free ports of loopback by what they are for, kept until a server takes them."""

    def __init__(self) -> None:
        self._reserved: dict[str, ReservedPort] = {}

    def at(self, name: str) -> str:
        """Return host and port of a name."""
        return f"{HOST}:{self._reserved.setdefault(name, ReservedPort()).number}"

    def port(self, name: str) -> str:
        """Return the port alone."""
        return self.at(name).rpartition(":")[2]

    def free(self) -> None:
        """Let servers have them."""
        for reserved in self._reserved.values():
            reserved.release()


class Watched:
    """The worker, its watchers, and what was published to it under a trace of ours."""

    def __init__(self, folder: Path, fleet: Fleet, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.fleet = fleet
        self.ports = Ports()
        self.collector_log = folder / "otelcol.log"
        self.trace = ""
        self.told_provider: set[str | None] = set()
        self.prometheus: Prometheus | None = None
        self.worker: WorkerProcess | None = None
        self._stack = stack

    async def start(self) -> None:
        """Start the watchers that are here, and the worker between them."""
        if tools.find("otelcol"):
            await self._start_collector()
        self.worker = await self.fleet.start(**self._environment())
        await self.worker.works_on(3)
        if tools.find("prometheus"):
            await self._start_prometheus()

    async def publish_everything(self) -> None:
        """Let everything happen that there is to see, but for what a database does not do."""
        fleet = self.fleet
        fleet.provider.for_text("refused", status(400, code="content_filter"))
        await fleet.publish([upsert("long", 1, LONG), upsert("gone", 1, "soon gone")])
        await fleet.settled()
        fleet.provider.next(status(429, retry_after="0.1"), status(503), status(404))
        await fleet.publish(
            [
                upsert("long", 2, LONG + "\n\nAnd one more."),
                delete("gone", 2),
                upsert("nul", 1, "a\0b"),
                upsert("refused", 1, "refused"),
                (b"acme/articles/malformed", b"{"),
                *(upsert(f"d{number}", 1, f"text {number}") for number in range(40)),
            ]
        )
        await self.publish_traced("handbook")
        await fleet.settled()

    async def publish_traced(self, document: str) -> None:
        """Publish a document under a span of our own, as an instrumented service does."""
        resource = Resource.create({"service.name": "publisher"})
        spans = TracerProvider(resource=resource, shutdown_on_exit=False)
        if tools.find("otelcol"):
            exporter = OTLPSpanExporter(f"http://{self.ports.at('otlp-http')}/v1/traces")
            spans.add_span_processor(SimpleSpanProcessor(exporter))
        text = f"{document}, traced"
        self.fleet.provider.script = partial(self._look, text)
        servers = self.fleet.kafka.bootstrap_servers
        async with Publisher(servers, self.fleet.topic) as publisher:
            with spans.get_tracer("test").start_as_current_span("publish") as span:
                self.trace = f"{span.get_span_context().trace_id:032x}"
                await publisher.upsert("acme", "articles", document, version=1, text=text)
        spans.shutdown()

    def _look(self, text: str, call: Call) -> None:
        """Take note of the trace in which the provider is asked for a text."""
        if text in call.texts:
            self.told_provider.add(trace_id_of(call.headers.get("traceparent")))

    async def _start_collector(self) -> None:
        at = self.ports.at
        own = f"prometheus: {{host: {HOST}, port: {self.ports.port('otelcol')}}}"
        given = [
            f"receivers::otlp::protocols::http::endpoint: {at('otlp-http')}",
            f"receivers::otlp::protocols::grpc::endpoint: {at('otlp-grpc')}",
            "exporters::debug::verbosity: detailed",
            f"service::telemetry::metrics::readers: [pull: {{exporter: {{{own}}}}}]",
        ]
        if tools.find("jaeger"):
            await self._start_jaeger()
            given += [
                f"exporters::otlp_http/backend::endpoint: http://{at('jaeger-otlp')}",
                "service::pipelines::traces::exporters: [debug, otlp_http/backend]",
            ]
        files = [str(watching.COLLECTOR), *(f"yaml:{one}" for one in given)]
        self.ports.free()
        await self._stack.enter_async_context(
            tools.serving(
                "otelcol",
                [f"--config={one}" for one in files],
                self.collector_log,
                f"http://{at('otelcol')}/metrics",
            )
        )

    async def _start_jaeger(self) -> None:
        listeners = {
            "admin.http": "jaeger-admin",
            "query.http-server": "jaeger",
            "query.grpc-server": "jaeger-grpc",
            "collector.otlp.http": "jaeger-otlp",
            "collector.otlp.grpc": "jaeger-otlp-grpc",
            "collector.http-server": "jaeger-own",
            "collector.grpc-server": "jaeger-own-grpc",
        }
        arguments = [
            f"--{option}.host-port={self.ports.at(name)}" for option, name in listeners.items()
        ]
        self.ports.free()
        await self._stack.enter_async_context(
            tools.serving(
                "jaeger",
                arguments,
                self.folder / "jaeger.log",
                f"http://{self.ports.at('jaeger-admin')}/",
                COLLECTOR_OTLP_ENABLED="true",
            )
        )

    def _environment(self) -> dict[str, str]:
        named = {
            "EMBEDFLEET_TELEMETRY_ADMIN_PORT": self.ports.port("worker"),
            "OTEL_SDK_DISABLED": "false",
        }
        self.ports.free()
        if not tools.find("otelcol"):
            return named
        return named | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{self.ports.at('otlp-http')}",
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }

    async def _start_prometheus(self) -> None:
        at = self.ports.at
        config = watching.load(watching.PROMETHEUS)
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(watching.FOLDER / name) for name in config["rule_files"]]
        here = {"embedfleet": "worker", "otel-collector": "otelcol", "prometheus": "prometheus"}
        for job in config["scrape_configs"]:
            job.pop("dns_sd_configs", None)
            job["static_configs"] = [{"targets": [at(here[job["job_name"]])]}]
        config_file = self.folder / "prometheus.yaml"
        config_file.write_text(yaml.safe_dump(config), encoding="utf-8")
        url = f"http://{at('prometheus')}"
        arguments = [
            f"--config.file={config_file}",
            f"--storage.tsdb.path={self.folder / 'prometheus'}",
            f"--web.listen-address={at('prometheus')}",
        ]
        self.ports.free()
        await self._stack.enter_async_context(
            tools.serving(
                "prometheus", arguments, self.folder / "prometheus.log", f"{url}/-/ready"
            )
        )
        session = await self._stack.enter_async_context(aiohttp.ClientSession())
        self.prometheus = Prometheus(url, session)
        # What is counted before the first scrape has not grown since.
        await self.fleet.until(partial(self.prometheus.series, 'up{job="embedfleet"} == 1'))

    async def found_by_jaeger(self) -> list[Any]:
        """Return the traces of workers that Jaeger has."""
        url = f"http://{self.ports.at('jaeger')}/api/traces"
        parameters = {"service": "embedfleet", "limit": "1000"}
        async with (
            aiohttp.ClientSession() as session,
            session.get(url, params=parameters) as answer,
        ):
            return json.loads(await answer.text())["data"]


@asynccontextmanager
async def watched(
    folder: Path, kafka: KafkaServer, postgres: PostgresServer
) -> AsyncIterator[Watched]:
    """Run a worker of a fleet of its own, and what watches it."""
    async with topics(kafka.bootstrap_servers) as made:
        name = uuid4().hex[:12]
        fleet = Fleet(
            kafka=KafkaOptions(
                bootstrap_servers=kafka.bootstrap_servers, group=f"group-{name}"
            ),
            database=DatabaseOptions(
                url=postgres.url, schema=f"test_{name}", pool_min=1, pool_max=10
            ),
            topic=await made.create(partitions=3),
            dead_letter_topic=await made.create(),
            folder=folder,
        )
        async with fleet, AsyncExitStack() as stack:
            run = Watched(folder, fleet, stack)
            await run.start()
            yield run
