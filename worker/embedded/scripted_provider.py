"""
The scripted provider of a benchmark: a process of its own that costs little and counts all.

    python -m worker.embedded.scripted_provider --latency 0.03 --requests-per-minute 6000

It prints where it listens, answers `POST /v1/embeddings` as OpenAI does (base64 or floats,
usage, 429 with Retry-After beyond the quota) and `GET /stats`. Vectors depend on the text
alone, so that a verifier knows which one belongs to a text (`Pool.vector`): they are put
together from encoded pieces, since encoding one anew would cost more than the rest of the
answer. Measured: about 100 us of CPU a request and 10 us an input; a protocol written by hand
instead of aiohttp's server takes 60 us less a request.
"""

import argparse
import asyncio
import math
import random
import signal
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple
from zlib import crc32

import msgspec
import numpy as np
import uvloop
from aiohttp import web

from worker.embedded.ports import HOST

SEED = 1
CLUSTERS = 64
MEMBERS = 16
PIECES = 4
SPREAD = 0.5  # two texts of a cluster: a cosine of about 1 / (1 + 0.5 ** 2) = 0.8; else 0
FLOAT_DIGITS = 8

MAX_BODY_BYTES = 64 * 1024 * 1024
CHARACTERS_PER_TOKEN = 4


class Piece(NamedTuple):
    """Some dimensions of a vector: as they are, and as an answer holds them."""

    values: np.ndarray
    base64: bytes
    floats: bytes


class Pool:
    """
    The vector of every text, as a function of the text alone.

    Vectors lie in clusters, as those of real texts do: an HNSW index takes three times as long
    to insert what has no structure. A vector is a cluster's `PIECES` pieces, each of one of its
    `MEMBERS`, so that among 100,000 texts hardly any two are alike, which would cost less in an
    index than they should. Every piece has its share of the length, so the whole has length 1.
    """

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        # Three floats are 12 bytes, and these 16 characters of base64 without padding: such
        # pieces make one base64 text when they are joined.
        step = dimensions // PIECES // 3 * 3
        borders = [*range(0, PIECES * step, step), dimensions] if step else [0, dimensions]
        vectors = _clustered(dimensions)
        self._pieces = [
            [_pieces(cluster[:, start:end], dimensions) for cluster in vectors]
            for start, end in pairwise(borders)
        ]

    def vector(self, text: str) -> np.ndarray:
        """Return the unit vector of a text, little-endian float32."""
        return np.concatenate([piece.values for piece in self._of(text)])

    def base64(self, text: str) -> list[bytes]:
        """Return the JSON of the vector where `encoding_format` is base64, to be joined."""
        return [b'"', *(piece.base64 for piece in self._of(text)), b'"']

    def floats(self, text: str) -> list[bytes]:
        """Return the JSON of the vector as a list of floats, to be joined."""
        return [b"[", b",".join([piece.floats for piece in self._of(text)]), b"]"]

    def _of(self, text: str) -> list[Piece]:
        number, cluster = divmod(crc32(text.encode()), CLUSTERS)
        found = []
        for clusters in self._pieces:
            number, member = divmod(number, MEMBERS)
            found.append(clusters[cluster][member])
        return found


def _clustered(dimensions: int) -> np.ndarray:
    """Return vectors by cluster and member."""
    chance = np.random.default_rng(SEED)
    centres = chance.normal(size=(CLUSTERS, 1, dimensions))
    return centres + SPREAD * chance.normal(size=(CLUSTERS, MEMBERS, dimensions))


def _pieces(rows: np.ndarray, dimensions: int) -> list[Piece]:
    length = math.sqrt(rows.shape[1] / dimensions)
    scaled = rows * (length / np.linalg.norm(rows, axis=1, keepdims=True))
    # Rounded first, so that base64 and the shorter text say exactly the same float32.
    rounded = np.round(scaled, FLOAT_DIGITS)
    return [
        Piece(values, b64encode(values.tobytes()), msgspec.json.encode(row.tolist())[1:-1])
        for row, values in zip(rounded, rounded.astype("<f4"), strict=True)
    ]


class Bucket:
    """What may be taken of a quota: it fills steadily, and holds a second's worth at most."""

    def __init__(self, per_minute: float, now: float) -> None:
        self._per_second = per_minute / 60
        self._most = max(1.0, self._per_second)
        self._level, self._at = self._most, now

    def wait_seconds(self, amount: float, now: float) -> float:
        """Return how long it takes until so much may be taken, 0 where it may be now."""
        self._level = min(self._most, self._level + (now - self._at) * self._per_second)
        self._at = now
        # What is more than it ever holds may be taken where it is full, and is owed then.
        return max(0.0, (min(amount, self._most) - self._level) / self._per_second)

    def take(self, amount: float) -> None:
        """Take it, once there is nothing to wait for."""
        self._level -= amount


class Quota:
    """How much is answered in a minute, in requests and tokens; None: any number."""

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._requests = _bucket(requests_per_minute, clock())
        self._tokens = _bucket(tokens_per_minute, clock())

    def refuse_seconds(self, tokens: int) -> float:
        """Take a request of so many tokens and return 0, or return when to come again."""
        now, wait = self._clock(), 0.0
        asked = [
            (bucket, amount)
            for bucket, amount in ((self._requests, 1), (self._tokens, tokens))
            if bucket is not None
        ]
        for bucket, amount in asked:
            wait = max(wait, bucket.wait_seconds(amount, now))
        if wait == 0:
            for bucket, amount in asked:
                bucket.take(amount)
        return wait


def _bucket(per_minute: float | None, now: float) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute, now)


@dataclass
class Stats:
    """What was asked and answered; inputs and tokens are those that were paid for."""

    requests: int = 0
    inputs: int = 0
    tokens: int = 0
    refused: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    distinct: set[int] = field(default_factory=set)

    def paid(self, texts: Sequence[str], tokens: int) -> None:
        """Count what is answered."""
        self.inputs += len(texts)
        self.tokens += tokens
        self.distinct.update(map(hash, texts))

    def as_json(self) -> dict[str, int]:
        """Return what `GET /stats` answers."""
        return {
            "requests": self.requests,
            "inputs": self.inputs,
            "tokens": self.tokens,
            "status_429": self.refused,
            "max_in_flight": self.max_in_flight,
            "distinct_inputs": len(self.distinct),
            "repeated_inputs": self.inputs - len(self.distinct),
        }


class _Question(msgspec.Struct):
    input: str | list[str]
    model: str
    encoding_format: str = "float"
    dimensions: int | None = None


_QUESTION = msgspec.json.Decoder(_Question)


class ScriptedProvider:
    """
    The server; `started` makes it listen.

    A request takes `latency_seconds`, give or take `jitter_seconds`, whatever it holds.
    """

    def __init__(
        self,
        pool: Pool,
        quota: Quota,
        *,
        latency_seconds: float = 0.0,
        jitter_seconds: float = 0.0,
    ) -> None:
        self.stats = Stats()
        self._pool = pool
        self._quota = quota
        self._least_seconds = max(0.0, latency_seconds - jitter_seconds)
        self._most_seconds = latency_seconds + jitter_seconds
        self._chance = random.Random(SEED)  # noqa: S311 - a script, no secret

    async def started(self, port: int) -> tuple[web.AppRunner, str]:
        """Listen, and return what ends it and the address of the API."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/v1/embeddings", self._embeddings)
        app.router.add_get("/health", self._health)
        app.router.add_get("/stats", self._stats)
        for signal_name in ("traces", "metrics"):
            app.router.add_post(f"/v1/{signal_name}", self._collect)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, HOST, port).start()
        return runner, f"http://{HOST}:{runner.addresses[0][1]}/v1"

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _stats(self, _: web.Request) -> web.Response:
        return web.json_response(self.stats.as_json())

    async def _collect(self, request: web.Request) -> web.Response:
        """Take what an exporter sends, as an OpenTelemetry collector would."""
        await request.read()
        return web.Response(content_type="application/x-protobuf")

    async def _embeddings(self, request: web.Request) -> web.Response:
        self.stats.requests += 1
        try:
            question = _QUESTION.decode(await request.read())
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _error(400, str(error))
        if question.dimensions not in (None, self._pool.dimensions):
            return _error(400, f"the model has {self._pool.dimensions} dimensions")
        texts = [question.input] if isinstance(question.input, str) else question.input
        tokens = sum(len(text) // CHARACTERS_PER_TOKEN + 1 for text in texts)
        if wait := self._quota.refuse_seconds(tokens):
            self.stats.refused += 1
            return _error(429, "beyond the quota", {"Retry-After": str(math.ceil(wait))})
        self.stats.paid(texts, tokens)
        await self._latency()
        body = answer(
            self._pool,
            texts,
            model=question.model,
            base64=question.encoding_format == "base64",
            tokens=tokens,
        )
        return web.Response(body=body, content_type="application/json")

    async def _latency(self) -> None:
        self.stats.in_flight += 1
        self.stats.max_in_flight = max(self.stats.max_in_flight, self.stats.in_flight)
        try:
            await asyncio.sleep(self._chance.uniform(self._least_seconds, self._most_seconds))
        finally:
            self.stats.in_flight -= 1


def answer(pool: Pool, texts: Sequence[str], *, model: str, base64: bool, tokens: int) -> bytes:
    """Return the body of a right answer."""
    encode = pool.base64 if base64 else pool.floats
    parts = [b'{"object":"list","data":[']
    for index, text in enumerate(texts):
        before = b"," if index else b""
        parts.append(b'%b{"object":"embedding","index":%d,"embedding":' % (before, index))
        parts += encode(text)
        parts.append(b"}")
    usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (tokens, tokens)
    parts.append(b'],"model":%b,"usage":%b}' % (msgspec.json.encode(model), usage))
    return b"".join(parts)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    body = {"error": {"message": message, "type": "scripted", "code": None, "param": None}}
    return web.json_response(body, status=status, headers=headers)


async def serve(options: argparse.Namespace) -> None:
    """Serve until a signal comes."""
    provider = ScriptedProvider(
        Pool(options.dimensions),
        Quota(options.requests_per_minute, options.tokens_per_minute),
        latency_seconds=options.latency,
        jitter_seconds=options.jitter,
    )
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    runner, url = await provider.started(options.port)
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()
    await told.wait()
    await runner.cleanup()


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        prog="scripted_provider", description="A scripted provider."
    )
    parser.add_argument("--port", type=int, default=0, help="0: any; it is printed")
    parser.add_argument("--latency", type=float, default=0.03, help="seconds a request takes")
    parser.add_argument("--jitter", type=float, default=0.0, help="seconds, more or less")
    parser.add_argument("--requests-per-minute", type=float, help="none: no quota")
    parser.add_argument("--tokens-per-minute", type=float, help="none: no quota")
    parser.add_argument("--dimensions", type=int, default=1536)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    uvloop.run(serve(parsed()))
