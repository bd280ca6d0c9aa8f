"""
A local embedding provider that speaks OpenAI's protocol.

Run it with `python -m worker.embedded.embedding_server`. It owns a model and counts what it was
asked for (`GET /stats`), so that the cost of a run can be told: how many inputs were embedded,
and how many of them more than once. Errors look like OpenAI's. It listens on loopback, knows no
keys, and never truncates a text.
"""

import argparse
import asyncio
import base64
import hashlib
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, Protocol

import msgspec
from aiohttp import web

from worker.embedded.wordllama_model import DIMENSIONS, NAME, Embedded, Vectors, WordLlamaModel

MAX_INPUTS = 2048
MAX_TOKENS = 8192
MAX_BODY_BYTES = 16 * 1024 * 1024

Route = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Model(Protocol):
    """What computes the vectors."""

    def embed(self, texts: Sequence[str], dimensions: int) -> Embedded:
        """Return one vector a text, and the tokens of each."""


class EmbeddingsRequest(msgspec.Struct):
    """The body of `POST /v1/embeddings`."""

    input: str | list[str]
    model: str
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int = DIMENSIONS[-1]
    user: str | None = None


class Stats(msgspec.Struct):
    """What was asked since the start; only answered requests count as requests."""

    requests: int = 0
    refused: int = 0
    inputs: int = 0
    tokens: int = 0
    distinct_inputs: int | None = None
    most_often: int | None = None


class ApiError(Exception):
    """An error as OpenAI's clients know it."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class EmbeddingApi:
    """The routes over one model. `count_texts` remembers a hash of every text embedded."""

    def __init__(self, model: Model, *, count_texts: bool = False) -> None:
        self._model = model
        self._stats = Stats()
        self._texts: Counter[bytes] | None = Counter() if count_texts else None

    def application(self) -> web.Application:
        """Return an application to serve."""
        application = web.Application(
            middlewares=[self._answer_errors], client_max_size=MAX_BODY_BYTES
        )
        application.add_routes(
            [
                web.post("/v1/embeddings", self.embeddings),
                web.get("/v1/models", self.models),
                web.get("/health", self.health),
                web.get("/stats", self.stats),
            ]
        )
        return application

    async def embeddings(self, request: web.Request) -> web.Response:
        """Embed one text or several."""
        asked = _decode(await request.read())
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        _check(asked, texts)
        embedded = await asyncio.to_thread(self._model.embed, texts, asked.dimensions)
        for index, tokens in enumerate(embedded.tokens):
            if tokens > MAX_TOKENS:
                raise ApiError(
                    400,
                    f"input {index} has {tokens} tokens; this model's maximum is {MAX_TOKENS}",
                    "context_length_exceeded",
                )
        self._count(texts, sum(embedded.tokens))
        return _json(_answer(asked, embedded))

    async def models(self, _: web.Request) -> web.Response:
        """List the one model there is."""
        model = {"id": NAME, "object": "model", "created": 0, "owned_by": "wordllama"}
        return _json({"object": "list", "data": [model]})

    async def health(self, _: web.Request) -> web.Response:
        """Say that the model is loaded."""
        return _json({"status": "ok"})

    async def stats(self, _: web.Request) -> web.Response:
        """Tell what was asked so far."""
        if self._texts is not None:
            self._stats.distinct_inputs = len(self._texts)
            self._stats.most_often = max(self._texts.values(), default=0)
        return _json(self._stats)

    def _count(self, texts: Sequence[str], tokens: int) -> None:
        self._stats.requests += 1
        self._stats.inputs += len(texts)
        self._stats.tokens += tokens
        if self._texts is not None:
            self._texts.update(hashlib.sha256(text.encode()).digest() for text in texts)

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Route) -> web.StreamResponse:
        try:
            return await handler(request)
        except ApiError as error:
            status, message, code = error.status, str(error), error.code
        except web.HTTPException as error:  # 404, 405, 413 of aiohttp itself
            status, message, code = error.status, error.reason, None
        self._stats.refused += 1
        body = {
            "message": message,
            "type": "invalid_request_error",
            "param": None,
            "code": code,
        }
        return _json({"error": body}, status)


def _decode(body: bytes) -> EmbeddingsRequest:
    try:
        return msgspec.json.decode(body, type=EmbeddingsRequest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the request is not understood: {error}") from error


def _check(asked: EmbeddingsRequest, texts: Sequence[str]) -> None:
    if asked.model != NAME:
        raise ApiError(404, f"the model {asked.model!r} does not exist", "model_not_found")
    if asked.dimensions not in DIMENSIONS:
        raise ApiError(400, f"dimensions must be one of {DIMENSIONS}", "invalid_dimensions")
    if not 1 <= len(texts) <= MAX_INPUTS:
        raise ApiError(400, f"input must hold 1 to {MAX_INPUTS} texts")
    if not all(texts):
        raise ApiError(400, "input cannot be an empty string")


def _answer(asked: EmbeddingsRequest, embedded: Embedded) -> dict[str, object]:
    encode = _base64 if asked.encoding_format == "base64" else _floats
    data = [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(encode(embedded.vectors))
    ]
    tokens = sum(embedded.tokens)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": NAME, "usage": usage}


def _base64(vectors: Vectors) -> list[str]:
    return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]


def _floats(vectors: Vectors) -> list[list[float]]:
    return list(vectors.tolist())


def _json(body: object, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body), status=status, content_type="application/json"
    )


def main() -> None:
    """Serve until told to end; the first line printed is the URL to use."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[1])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument(
        "--count-texts", action="store_true", help="tell repeated ones in /stats"
    )
    options = parser.parse_args()
    api = EmbeddingApi(WordLlamaModel(), count_texts=options.count_texts)
    listener = socket.create_server((options.host, options.port))
    host, port = listener.getsockname()[:2]
    sys.stdout.write(f"http://{host}:{port}/v1\n")
    sys.stdout.flush()
    web.run_app(api.application(), sock=listener, print=None, access_log=None)


if __name__ == "__main__":
    main()
