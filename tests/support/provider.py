"""
A scripted OpenAI-compatible provider on loopback: the one that counts.

It answers `POST /v1/embeddings` over real HTTP with vectors that only text, model and size
decide, counts every text it was paid for, and misbehaves as told: per request (`next`), per
text (`for_text`), or by a function of each call (`script`). It shares no code with the worker,
so that it can be the oracle of what should be stored.

    async with Provider(dimensions=16) as provider:
        provider.next(status(503), ok())        # the next two requests
        provider.for_text("poison", status(400, code="content_filter"))
        provider.latency_seconds = 0.02
        provider.headers = {"x-request-id": "req_1"}    # of every answer
        await provider.in_flight(3)
        assert provider.embedded["text"] == 1
"""

import asyncio
import base64
import hashlib
import json
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from aiohttp import web

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it arrived, with what is needed to answer it."""

    request: web.Request
    provider: "Provider"
    body: dict[str, Any]
    texts: list[str] = field(default_factory=list)

    @property
    def headers(self) -> Mapping[str, str]:
        return self.request.headers

    @property
    def model(self) -> str:
        return str(self.body["model"])

    @property
    def dimensions(self) -> int:
        return int(self.body.get("dimensions", self.provider.dimensions))

    def items(self, encoding_format: str | None = None) -> list[Item]:
        """What a right answer holds; from here on the texts count as paid for."""
        self.provider.embedded.update(self.texts)
        asked = encoding_format or self.body.get("encoding_format")
        encode = as_base64 if asked == "base64" else as_floats
        return [
            {
                "object": "embedding",
                "index": index,
                "embedding": encode(vector_of(text, self.model, self.dimensions)),
            }
            for index, text in enumerate(self.texts)
        ]

    def answer(self, items: list[Item]) -> bytes:
        tokens = sum(len(text) for text in self.texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer = {"object": "list", "model": self.model, "data": items, "usage": usage}
        return json.dumps(answer).encode()


Reply = Callable[[Call], Awaitable[web.StreamResponse]]


def vector_of(text: str, model: str, dimensions: int) -> np.ndarray:
    """The unit vector of a text, little-endian float32."""
    digest = hashlib.shake_128(f"{model}/{text}".encode())
    values = np.frombuffer(digest.digest(2 * dimensions), "<i2").astype("<f4") * 2 + 1
    return (values / np.sqrt(np.dot(values, values))).astype("<f4")


def as_base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.tobytes()).decode()


def as_floats(vector: np.ndarray) -> list[float]:
    return [float(value) for value in vector]


class Provider:
    """The server; `async with` starts and ends it."""

    def __init__(self, dimensions: int = 8, *, key: str | None = None, port: int = 0) -> None:
        self.dimensions = dimensions
        self.key = key
        self.latency_seconds = 0.0
        self.headers: Mapping[str, str] = {}
        self.script: Callable[[Call], Reply | None] | None = None
        self.embedded: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.last_headers: Mapping[str, str] = {}
        self.last_body: dict[str, Any] = {}
        self.requests = 0
        self.running = 0
        self.done = 0
        self.clients: set[object] = set()
        self._port = port
        self._next: deque[Reply] = deque()
        self._texts: dict[str, Reply] = {}
        self._waiting: list[tuple[Callable[[], bool], asyncio.Event]] = []
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """What `embedding.url` is set to."""
        return f"http://127.0.0.1:{self._port}/v1"

    def next(self, *replies: Reply) -> None:
        """Answer the next requests so; after them as ever."""
        self._next.extend(replies)

    def for_text(self, text: str, reply: Reply) -> None:
        """Answer every request that holds this text so."""
        self._texts[text] = reply

    def forget_text(self, text: str) -> None:
        self._texts.pop(text, None)

    async def in_flight(self, count: int) -> None:
        """Wait until at least so many requests are being worked on at once."""
        await self._until(lambda: self.running >= count)

    async def answered(self, count: int) -> None:
        """Wait until so many requests have ended, in whatever way."""
        await self._until(lambda: self.done >= count)

    async def idle(self) -> None:
        """Wait until no request is being worked on."""
        await self._until(lambda: self.running == 0)

    async def start(self) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/embeddings", self._serve)
        app.on_response_prepare.append(self._add_headers)
        # A client that leaves ends the work on its request, as it does behind nginx.
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Stop listening and cut every connection; `start` listens on the same port again."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        self.running += 1
        self.clients.add(request.transport.get_extra_info("peername"))
        self._changed()
        try:
            response = await self._reply(request)
            self.statuses[response.status] += 1
            return response
        finally:
            self.running -= 1
            self.done += 1
            self._changed()

    async def _add_headers(self, _: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(self.headers)

    async def _reply(self, request: web.Request) -> web.StreamResponse:
        self.last_headers = request.headers.copy()
        self.last_body = body = await request.json()
        call = Call(request, self, body, list(body["input"]))
        self.received.update(call.texts)
        if self.latency_seconds:
            await asyncio.sleep(self.latency_seconds)
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return await status(401, code="invalid_api_key")(call)
        return await self._choose(call)(call)

    def _choose(self, call: Call) -> Reply:
        for text in call.texts:
            if text in self._texts:
                return self._texts[text]
        scripted = self.script(call) if self.script is not None else None
        if scripted is not None:
            return scripted
        return self._next.popleft() if self._next else ok()

    async def _until(self, fact: Callable[[], bool]) -> None:
        if not fact():
            event = asyncio.Event()
            self._waiting.append((fact, event))
            await event.wait()

    def _changed(self) -> None:
        for fact, event in self._waiting:
            if fact():
                event.set()
        self._waiting = [waiting for waiting in self._waiting if not waiting[1].is_set()]


def ok() -> Reply:
    """The right answer."""
    return changed(lambda items: items)


def changed(change: Callable[[list[Item]], list[Item]]) -> Reply:
    """A 200 whose items were tampered with."""

    async def reply(call: Call) -> web.StreamResponse:
        return raw(call.answer(change(call.items())))

    return reply


def embedding(value: object) -> Reply:
    """A 200 whose first vector is this value."""
    return changed(lambda items: [{**items[0], "embedding": value}, *items[1:]])


def vector(*values: float) -> Reply:
    """A 200 whose first vector is this one, as base64 (so that NaN can be sent)."""
    return embedding(as_base64(np.array(values, "<f4")))


def body(content: bytes, content_type: str = "application/json") -> Reply:
    """A 200 with exactly this body."""

    async def reply(_: Call) -> web.StreamResponse:
        return raw(content, content_type)

    return reply


def status(
    code_: int,
    message: str = "scripted",
    *,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
    retry_after: str | None = None,
) -> Reply:
    """An error as OpenAI writes it."""
    error = {"error": {"message": message, "type": "scripted", "code": code, "param": param}}
    extra = dict(headers or {})
    if retry_after is not None:
        extra["Retry-After"] = retry_after

    async def reply(_: Call) -> web.StreamResponse:
        return web.json_response(error, status=code_, headers=extra)

    return reply


def error_body(code_: int, content: bytes) -> Reply:
    """An error whose body is exactly this."""

    async def reply(_: Call) -> web.StreamResponse:
        return web.Response(status=code_, body=content)

    return reply


def redirect(location: str, code_: int = 307) -> Reply:
    return status(code_, headers={"Location": location})


def floats_only() -> Reply:
    """A server that answers floats whatever it is asked for."""

    async def reply(call: Call) -> web.StreamResponse:
        return raw(call.answer(call.items("float")))

    return reply


def refuses_encoding_format() -> Reply:
    """A server that knows no `encoding_format`, and answers where it is not sent."""

    async def reply(call: Call) -> web.StreamResponse:
        if "encoding_format" in call.body:
            message = "Unrecognized request argument supplied: encoding_format"
            return await status(400, message, param="encoding_format")(call)
        return await ok()(call)

    return reply


def held(until: asyncio.Event, then: Reply | None = None) -> Reply:
    """Answer once the event is set."""

    async def reply(call: Call) -> web.StreamResponse:
        await until.wait()
        return await (then or ok())(call)

    return reply


def late(seconds: float, then: Reply | None = None) -> Reply:
    """Answer after a while."""

    async def reply(call: Call) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await (then or ok())(call)

    return reply


def disconnect() -> Reply:
    """Close the connection before any byte of an answer."""

    async def reply(call: Call) -> web.StreamResponse:
        call.request.transport.close()
        return web.Response()

    return reply


def half_a_header() -> Reply:
    """Close the connection in the middle of the answer's headers."""

    async def reply(call: Call) -> web.StreamResponse:
        call.items()
        call.request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Le")
        call.request.transport.close()
        return web.Response()

    return reply


def truncated(share: float = 0.5) -> Reply:
    """Announce the whole right answer, send a part of it, close the connection."""

    async def reply(call: Call) -> web.StreamResponse:
        content = call.answer(call.items())
        response = web.StreamResponse(headers={"Content-Length": str(len(content))})
        await response.prepare(call.request)
        await response.write(content[: int(len(content) * share)])
        call.request.transport.close()
        return response

    return reply


def aborted() -> Reply:
    """Send the beginning of a body without a length, then reset the connection."""

    async def reply(call: Call) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(call.request)
        await response.write(call.answer(call.items())[:50])
        call.request.transport.abort()
        return response

    return reply


def announced(length: int) -> Reply:
    """Announce a body of this length and send nothing of it."""

    async def reply(call: Call) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(length)})
        await response.prepare(call.request)
        await asyncio.Event().wait()
        return response

    return reply


def endless(piece: bytes = b" " * 1024, pause_seconds: float = 0.0) -> Reply:
    """Send a body without an end or a length; with a pause it is slow as well."""

    async def reply(call: Call) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(call.request)
        while True:
            await response.write(piece)
            await asyncio.sleep(pause_seconds)

    return reply


def raw(content: bytes, content_type: str = "application/json") -> web.Response:
    return web.Response(body=content, content_type=content_type)
