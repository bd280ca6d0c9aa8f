"""
What telemetry costs a document: the calls of a worker under load, with exports on and off.

The spans, histograms and counters of a hundred documents with two chunks each, as the pipeline
makes them (`pipeline/store`, `pipeline/buy`, `adapters/http_embedder`), sent to a collector of
another process. The exporter's thread is part of the cost. Of the traces a tenth is sampled, as
where many documents are published.
"""

import asyncio
import os
import random
import time
from unittest.mock import patch

from tests.bench.servers import Provider
from worker.telemetry import Telemetry, Tracing

DOCUMENTS, CHUNKS = 100, 2
REQUESTS = 2
BATCHES = 300
SAMPLED = 0.1
_SECONDS_OF_ALL = 5.0


async def telemetry_us() -> float:
    """Return the CPU microseconds that a document's share of telemetry takes."""
    async with Provider() as provider:
        return await asyncio.to_thread(_measured, provider.url.removesuffix("/v1"))


def _measured(collector: str) -> float:
    told = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector, "OTEL_SDK_DISABLED": "false"}
    with patch.dict(os.environ, told):
        telemetry = Telemetry.start()
    chance = random.Random(1)
    parents = [_traceparent(chance) for _ in range(DOCUMENTS)]
    began = time.process_time()
    _work(None, Tracing(), parents)
    off = time.process_time() - began
    began = time.process_time()
    _work(telemetry, telemetry.tracing, parents)
    telemetry.shutdown(_SECONDS_OF_ALL)
    on = time.process_time() - began
    return (on - off) / (BATCHES * DOCUMENTS) * 1e6


def _work(telemetry: Telemetry | None, tracing: Tracing, parents: list[str]) -> None:
    part = len(parents) // REQUESTS
    for _ in range(BATCHES):
        for start in range(0, len(parents), part):
            asked = parents[start : start + part]
            with tracing.batch_span("embeddings", asked, {"chunks": CHUNKS * len(asked)}):
                if telemetry is not None:
                    telemetry.provider_request(0.03, "200")
        with tracing.batch_span("store", parents, {"documents": len(parents)}):
            pass
        if telemetry is not None:
            telemetry.record("store_latency", 0.02)


def _traceparent(chance: random.Random) -> str:
    sampled = int(chance.random() < SAMPLED)
    trace, span = chance.getrandbits(128) | 1, chance.getrandbits(64) | 1
    return f"00-{trace:032x}-{span:016x}-{sampled:02x}"
