"""
The port `Embedder` over HTTP: one endpoint that speaks a dialect of OpenAI's API.

Owns one pooled session, the key, and the limits of a request: time, size of the answer, no
redirects. One call of `embed` is one request, but for three repeats that cost nothing: on a
pooled connection that the server had closed meanwhile, to a server that does not know
`encoding_format`, and with a renewed key or token to one that refused the last. Every body is
read within its bound, so that connections are used again. Never retries otherwise, never
limits the rate, never logs a text or the key.

Invariant: what is returned is one finite vector of the right size for each text, in order.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from types import SimpleNamespace
from typing import NamedTuple, Protocol

import aiohttp
from yarl import URL

from worker.adapters import embedding_errors, embedding_wire
from worker.adapters.bearer_tokens import BearerTokens
from worker.adapters.embedding_key import EmbeddingKey
from worker.adapters.http_failures import OK, TooLong, failure_of
from worker.config import EmbeddingOptions
from worker.core.dialects import DIALECTS, bearer
from worker.core.model import Vector
from worker.core.packing import PackLimits
from worker.errors import ConfigError, ProviderUnavailable
from worker.ports import EmbeddingRequest, Offload
from worker.telemetry import current_traceparent, trace_id_of

Observe = Callable[[float, str], None]
"""Told of every request: its seconds, and its status or the code of its failure."""

Listen = Callable[[Mapping[str, str]], None]
"""Told the headers of every answer of any status, once they have come."""

UNAUTHORIZED = 401
CONNECT_SECONDS = 5.0  # a SYN that is lost once is sent again after 1 s, twice after 3 s
PIECE_BYTES = 64 * 1024
ERROR_BYTES = 64 * 1024  # the fields we look at come first
BIG_BODY_BYTES = 1024 * 1024  # aiohttp warns of longer `bytes`; files it sends in pieces


class Answer(NamedTuple):
    """An answer of any status, read within its bound."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Credentials(Protocol):
    """Where the key or the token comes from that a request carries."""

    async def current(self) -> str | None:
        """Return what to send, None where nothing is."""

    async def renewed(self, refused: str | None) -> str | None:
        """Return what to send instead of what was refused; the same where nothing is newer."""

    async def close(self) -> None:
        """Release what it holds."""


class HttpEmbedder:
    """
    A client of `POST {url}/embeddings`.

    `limits` is what one request may hold, by the settings and by the API; who packs requests
    keeps to it. `errors` counts what failed by status or code; `bytes_in` is what was read of
    bodies.
    """

    def __init__(
        self,
        options: EmbeddingOptions,
        *,
        observe: Observe | None = None,
        listen: Listen | None = None,
        offload: Offload = asyncio.to_thread,
        clock: Callable[[], float] = time.monotonic,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """
        Check the address; nothing is connected before the first request.

        Raises:
            ConfigError: an address is none that requests and secrets can be sent to.
        """
        self._options = options
        self._dialect = DIALECTS[options.dialect]
        self._url = _endpoint(options.url, self._dialect.path)
        self._credentials = _credentials(options, environ, clock, offload)
        self.limits = self._dialect.bound(
            PackLimits(
                max_inputs=options.max_inputs,
                max_tokens=options.max_request_tokens,
                max_bytes=options.max_request_bytes,
            )
        )
        self._observe = observe
        self._listen = listen
        self._offload = offload
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._closed = False
        self._asks_base64 = self._dialect.encoding is not None
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
            now = datetime.now(UTC).timestamp()
            raise embedding_errors.error_of(self._options.dialect, *answer, now)
        return await self._decoded(answer, request)

    async def close(self) -> None:
        """Close the connections; what is in flight fails."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        await self._credentials.close()

    async def _answer(self, request: EmbeddingRequest) -> Answer:
        """Ask for base64 (17 times cheaper to decode), for floats where that is unknown."""
        encoding = self._dialect.encoding if self._asks_base64 else None
        answer = await self._authorized(request, base64=encoding is not None)
        if encoding and embedding_errors.refuses(encoding, answer.status, answer.content):
            answer = await self._authorized(request, base64=False)
            # Remembered only where it helped: the complaint may quote a document.
            self._asks_base64 = self._asks_base64 and answer.status != OK
        return answer

    async def _decoded(self, answer: Answer, request: EmbeddingRequest) -> list[Vector]:
        count, dimensions = len(request.texts), request.dimensions
        decode = partial(embedding_wire.decode, answer.content, count, dimensions)
        found: embedding_wire.Embeddings
        try:
            if embedding_wire.is_slow_to_decode(answer.content):
                found = await self._offload(decode)
            else:
                found = decode()
        except ProviderUnavailable as error:
            self.errors["wrong_answer"] += 1
            error.request_id = embedding_errors.request_id(answer.headers)
            raise
        self.inputs += count
        self.tokens += found.tokens
        return found.vectors

    async def _authorized(self, request: EmbeddingRequest, *, base64: bool) -> Answer:
        """Send a request; once more where the key or token had just been replaced."""
        body = self._dialect.body(
            request.model,
            request.texts,
            input_type=request.input_type,
            dimensions=request.dimensions if self._options.send_dimensions else None,
            encoding="base64" if base64 else None,
        )
        content = embedding_wire.encode(body)
        key = await self._credentials.current()
        answer = await self._send(content, self._headers(request, key))
        if answer.status != UNAUTHORIZED:
            return answer
        renewed = await self._credentials.renewed(key)
        if renewed == key:
            return answer
        return await self._send(content, self._headers(request, renewed))

    async def _send(self, content: bytes, headers: dict[str, str]) -> Answer:
        seen = SimpleNamespace(reused=False, status=None, headers={})
        try:
            return await self._exchange(content, headers, seen)
        except (aiohttp.ClientError, OSError, TooLong) as error:
            raise self._unavailable(error, seen) from error

    async def _exchange(
        self, content: bytes, headers: dict[str, str], seen: SimpleNamespace
    ) -> Answer:
        try:
            return await self._attempt(content, headers, seen)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            # RFC 9112 9.3.1: the server closed an idle connection while the request was on its
            # way, and read none of it. aiohttp repeats that by itself, but not for a POST. What
            # of an answer had come is in `message` instead of a string.
            has_begun = not isinstance(getattr(error, "message", ""), str)
            if not seen.reused or has_begun:
                raise
        return await self._attempt(content, headers, seen)

    async def _attempt(
        self, content: bytes, headers: dict[str, str], seen: SimpleNamespace
    ) -> Answer:
        self.requests += 1
        started, outcome = self._clock(), "cancelled"
        try:
            async with asyncio.timeout(self._options.timeout_seconds):
                answer = await self._post(content, headers, seen)
            outcome = str(answer.status)
            return answer  # noqa: TRY300  what fails above is counted below
        except (aiohttp.ClientError, OSError, TooLong) as error:
            outcome = failure_of(error, seen.status)[0]
            self.errors[outcome] += 1
            raise
        finally:
            if self._observe is not None:
                self._observe(self._clock() - started, outcome)

    async def _post(
        self, content: bytes, headers: dict[str, str], seen: SimpleNamespace
    ) -> Answer:
        data = content if len(content) < BIG_BODY_BYTES else BytesIO(content)
        async with self._opened().post(
            self._url,
            data=data,
            headers=headers,
            allow_redirects=False,
            trace_request_ctx=seen,
        ) as response:
            seen.status, seen.headers = response.status, response.headers
            if self._listen is not None:
                self._listen(response.headers)
            return Answer(response.status, response.headers, await self._read(response))

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """Read a body within its bound; of an error only its beginning."""
        is_error = response.status != OK
        limit = ERROR_BYTES if is_error else self._options.max_answer_bytes
        too_long = (response.content_length or 0) > limit
        pieces: list[bytes] = []
        size = 0
        # The status of an error tells more than that its body broke off.
        with suppress(*((aiohttp.ClientPayloadError,) if is_error else ())):
            while not too_long and (piece := await response.content.read(PIECE_BYTES)):
                pieces.append(piece)
                size += len(piece)
                too_long = size > limit
        if too_long:
            response.close()
        if too_long and not is_error:
            raise TooLong
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

    def _headers(self, request: EmbeddingRequest, key: str | None) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            # Base64 floats hardly compress: unpacking a 32-vector answer costs 830 us.
            "Accept-Encoding": "identity",
            "User-Agent": "embedfleet",
        }
        if key is not None:
            is_token = self._options.auth != "key"
            name, value = bearer(key) if is_token else self._dialect.authorization(key)
            headers[name] = value
        sent = (one for one in request.traceparents if trace_id_of(one) is not None)
        if (traceparent := next(sent, None) or current_traceparent()) is not None:
            headers["traceparent"] = traceparent
        return headers

    def _unavailable(self, error: Exception, seen: SimpleNamespace) -> ProviderUnavailable:
        if isinstance(error, aiohttp.ClientConnectorError) and self._session is not None:
            # A cached address may be that of a server which is gone.
            connector = self._session.connector
            if isinstance(connector, aiohttp.TCPConnector):
                connector.clear_dns_cache()
        code, words = failure_of(error, seen.status)
        if isinstance(error, TooLong):
            limit = self._options.max_answer_bytes
            words = f"the answer is longer than embedding.max_answer_bytes ({limit})"
            return embedding_errors.failure(code, words, seen.headers)
        where = f"{self._url.host}:{self._url.port}"
        words = f"{words}: {where} ({type(error).__name__})"
        return embedding_errors.failure(code, words, seen.headers)


def _credentials(
    options: EmbeddingOptions,
    environ: Mapping[str, str],
    clock: Callable[[], float],
    offload: Offload,
) -> Credentials:
    if options.auth == "key":
        return EmbeddingKey(options, environ)
    # A JSON key file has lines; what is sent of it is checked where it is made.
    secret = EmbeddingKey(options, environ, check=lambda value, _: value.strip())
    return BearerTokens(options, secret, clock=clock, offload=offload)


def _endpoint(address: str, end: str) -> URL:
    try:
        url = URL(address)
        path = url.path.rstrip("/") + end
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
