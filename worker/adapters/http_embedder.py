"""
The port `Embedder` over HTTP: one OpenAI-compatible endpoint.

Owns one pooled session, the key, and the limits of a request: time, size of the answer, no
redirects. One call of `embed` is one request, but for two repeats that cost nothing: on a
pooled connection that the server had closed meanwhile, and to a server that does not know
`encoding_format`. Every body is read within its bound, so that connections are used again.
Never retries otherwise, never limits the rate, never logs a text or the key.

Invariant: what is returned is one finite vector of the right size for each text, in order.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from types import SimpleNamespace
from typing import NamedTuple

import aiohttp
from yarl import URL

from worker.adapters import embedding_errors, embedding_wire
from worker.adapters.embedding_key import EmbeddingKey
from worker.config import EmbeddingOptions
from worker.core.model import Vector
from worker.errors import ConfigError, ProviderUnavailable
from worker.ports import EmbeddingRequest, Offload
from worker.telemetry import current_traceparent, trace_id_of

Observe = Callable[[float, str], None]
"""Told of every request: its seconds, and its status or the code of its failure."""

OK = 200
CONNECT_SECONDS = 5.0  # a SYN that is lost once is sent again after 1 s, twice after 3 s
PIECE_BYTES = 64 * 1024
ERROR_BYTES = 64 * 1024  # the fields we look at come first
BIG_BODY_BYTES = 1024 * 1024  # aiohttp warns of longer `bytes`; files it sends in pieces

FAILURES: tuple[tuple[type[BaseException], str, str], ...] = (
    (aiohttp.ConnectionTimeoutError, "connect_timeout", "no connection in time"),
    (TimeoutError, "timeout", "no answer in time"),
    (aiohttp.ClientSSLError, "tls", "no trusted TLS connection"),
    (aiohttp.ServerFingerprintMismatch, "tls", "no trusted TLS connection"),
    (aiohttp.ClientConnectorError, "connect", "no connection"),
    (aiohttp.ClientConnectionError, "disconnected", "the connection was closed"),
    (aiohttp.ClientPayloadError, "truncated", "the answer broke off"),
    (aiohttp.ClientResponseError, "protocol", "the answer is no HTTP"),
    (aiohttp.RedirectClientError, "protocol", "the answer redirects"),
    (aiohttp.InvalidURL, "address", "embedding.url cannot be used"),
    (aiohttp.NonHttpUrlClientError, "address", "embedding.url cannot be used"),
    (aiohttp.ClientError, "client", "the request failed"),
    (OSError, "disconnected", "the connection broke"),
)
"""The ways in which aiohttp fails, the nearest class first: class, code, words."""


class Answer(NamedTuple):
    """An answer of any status, read within its bound."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class _TooLong(Exception):
    """The answer is longer than allowed."""


class HttpEmbedder:
    """
    A client of `POST {url}/embeddings`.

    `errors` counts what failed by status or code; `bytes_in` is what was read of bodies.
    """

    def __init__(
        self,
        options: EmbeddingOptions,
        *,
        observe: Observe | None = None,
        offload: Offload = asyncio.to_thread,
        clock: Callable[[], float] = time.monotonic,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """
        Check the address; nothing is connected before the first request.

        Raises:
            ConfigError: the address is no plain http(s) URL.
        """
        self._options = options
        self._url = _endpoint(options.url)
        self._key = EmbeddingKey(options, environ)
        self._observe = observe
        self._offload = offload
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._closed = False
        self._asks_base64 = True
        self.requests = 0
        self.inputs = 0
        self.tokens = 0
        self.bytes_in = 0
        self.errors: Counter[str] = Counter()

    @property
    def active_connections(self) -> int:
        """How many connections carry a request now, or are being opened for one."""
        connector = self._session.connector if self._session is not None else None
        # aiohttp has no public count; a canary test watches this attribute.
        return len(connector._acquired) if connector is not None else 0  # noqa: SLF001

    async def embed(self, request: EmbeddingRequest) -> list[Vector]:
        """
        Return one vector a text, in order.

        Raises:
            RejectedInput: the server refuses at least one of the texts.
            RateLimited: the server asks for patience.
            ProviderUnavailable: no answer, or none that can be used.
        """
        if not request.texts:
            return []
        answer = await self._answer(request)
        self.bytes_in += len(answer.content)
        if answer.status != OK:
            self.errors[str(answer.status)] += 1
            raise embedding_errors.classify(*answer, datetime.now(UTC).timestamp())
        return await self._decoded(answer.content, request)

    async def close(self) -> None:
        """Close the connections; what is in flight fails."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _answer(self, request: EmbeddingRequest) -> Answer:
        """Ask for base64 (17 times cheaper to decode), for floats where that is unknown."""
        asked_base64 = self._asks_base64
        answer = await self._send(request, base64=asked_base64)
        if asked_base64 and embedding_errors.refuses(
            "encoding_format", answer.status, answer.content
        ):
            answer = await self._send(request, base64=False)
            # Remembered only where it helped: the complaint may quote a document.
            self._asks_base64 = self._asks_base64 and answer.status != OK
        return answer

    async def _decoded(self, content: bytes, request: EmbeddingRequest) -> list[Vector]:
        count, dimensions = len(request.texts), request.dimensions
        decode = partial(embedding_wire.decode, content, count, dimensions)
        found: embedding_wire.Embeddings
        try:
            if embedding_wire.is_slow_to_decode(content):
                found = await self._offload(decode)
            else:
                found = decode()
        except ProviderUnavailable:
            self.errors["wrong_answer"] += 1
            raise
        self.inputs += count
        self.tokens += found.tokens
        return found.vectors

    async def _send(self, request: EmbeddingRequest, *, base64: bool) -> Answer:
        content = embedding_wire.encode(
            embedding_wire.RequestBody(
                model=request.model,
                input=request.texts,
                encoding_format="base64" if base64 else None,
                dimensions=request.dimensions if self._options.send_dimensions else None,
            )
        )
        headers = self._headers(request)
        try:
            return await self._exchange(content, headers)
        except _TooLong as error:
            raise ProviderUnavailable(
                f"the answer is longer than embedding.max_answer_bytes "
                f"({self._options.max_answer_bytes})",
                status=OK,
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._unavailable(error) from error

    async def _exchange(self, content: bytes, headers: dict[str, str]) -> Answer:
        first = SimpleNamespace(reused=False)
        try:
            return await self._attempt(content, headers, first)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            # RFC 9112 9.3.1: the server closed an idle connection while the request was on its
            # way, and read none of it. aiohttp repeats that by itself, but not for a POST. What
            # of an answer had come is in `message` instead of a string.
            has_begun = not isinstance(getattr(error, "message", ""), str)
            if not first.reused or has_begun:
                raise
        return await self._attempt(content, headers, SimpleNamespace())

    async def _attempt(
        self, content: bytes, headers: dict[str, str], facts: SimpleNamespace
    ) -> Answer:
        self.requests += 1
        started, outcome = self._clock(), "cancelled"
        try:
            async with asyncio.timeout(self._options.timeout_seconds):
                answer = await self._post(content, headers, facts)
            outcome = str(answer.status)
            return answer  # noqa: TRY300  what fails above is counted below
        except (aiohttp.ClientError, OSError, _TooLong) as error:
            outcome = _failure(error)[0]
            self.errors[outcome] += 1
            raise
        finally:
            if self._observe is not None:
                self._observe(self._clock() - started, outcome)

    async def _post(
        self, content: bytes, headers: dict[str, str], facts: SimpleNamespace
    ) -> Answer:
        data = content if len(content) < BIG_BODY_BYTES else BytesIO(content)
        async with self._opened().post(
            self._url,
            data=data,
            headers=headers,
            allow_redirects=False,
            trace_request_ctx=facts,
        ) as response:
            return Answer(response.status, response.headers, await self._read(response))

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """Read a body within its bound; of an error only its beginning."""
        is_error = response.status != OK
        limit = ERROR_BYTES if is_error else self._options.max_answer_bytes
        too_long = (response.content_length or 0) > limit
        pieces: list[bytes] = []
        size = 0
        while not too_long and (piece := await response.content.read(PIECE_BYTES)):
            pieces.append(piece)
            size += len(piece)
            too_long = size > limit
        if too_long:
            response.close()
        if too_long and not is_error:
            raise _TooLong
        return b"".join(pieces)

    def _opened(self) -> aiohttp.ClientSession:
        if self._closed:
            raise ProviderUnavailable("the embedder is closed")
        if self._session is None:
            options = self._options
            trace = aiohttp.TraceConfig()
            trace.on_connection_reuseconn.append(_note_reuse)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=options.connections,
                    limit_per_host=options.connections_per_host,
                    ttl_dns_cache=options.dns_cache_seconds,
                ),
                # No total: it would count the wait for a pooled connection.
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    connect=options.timeout_seconds,
                    sock_connect=min(CONNECT_SECONDS, options.timeout_seconds),
                    sock_read=options.timeout_seconds,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                trace_configs=[trace],
            )
        return self._session

    def _headers(self, request: EmbeddingRequest) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            # Base64 floats hardly compress: unpacking a 32-vector answer costs 830 us.
            "Accept-Encoding": "identity",
            "User-Agent": "embedfleet",
        }
        if (key := self._key.read()) is not None:
            headers["Authorization"] = f"Bearer {key}"
        sent = (one for one in request.traceparents if trace_id_of(one) is not None)
        if (traceparent := next(sent, None) or current_traceparent()) is not None:
            headers["traceparent"] = traceparent
        return headers

    def _unavailable(self, error: Exception) -> ProviderUnavailable:
        if isinstance(error, aiohttp.ClientConnectorError) and self._session is not None:
            # A cached address may be that of a server which is gone.
            connector = self._session.connector
            if isinstance(connector, aiohttp.TCPConnector):
                connector.clear_dns_cache()
        words = _failure(error)[1]
        where = f"{self._url.host}:{self._url.port}"
        return ProviderUnavailable(f"{words}: {where} ({type(error).__name__})")


def _failure(error: BaseException) -> tuple[str, str]:
    for error_class, code, words in FAILURES:
        if isinstance(error, error_class):
            return code, words
    return "too_long", "the answer is too long"


def _endpoint(address: str) -> URL:
    try:
        url = URL(address)
        path = url.path.rstrip("/") + "/embeddings"
    except ValueError as error:
        raise ConfigError("embedding.url is no URL") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise ConfigError("embedding.url must begin with http:// or https:// and name a host")
    if url.user is not None or url.password is not None:
        raise ConfigError(
            "embedding.url must hold no credentials: the key belongs into the variable or file "
            "that embedding.api_key_variable or embedding.api_key_file names"
        )
    return url.with_path(path, keep_query=True)


async def _note_reuse(
    _session: aiohttp.ClientSession,
    context: SimpleNamespace,
    _: aiohttp.TraceConnectionReuseconnParams,
) -> None:
    context.trace_request_ctx.reused = True
