"""
Imitations of the embedding APIs on loopback: what each takes, answers and refuses.

An imitation knows the fields of its API and refuses others where the API does, wants the key
where it is documented, tells documents from queries where the API does, refuses what is above
its limits with its own error, and never cuts a text short unless it was left on. `ERRORS` are
the documented errors of each API, with what they must mean. It shares no code with the worker.

A token is a word here. Where each shape comes from stands beside it: the provider's page and
the month in which it was read.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from aiohttp import web

from schemas.dead_letter import Reason
from tests.support.provider import as_base64, as_floats, vector_of
from worker.errors import (
    Forbidden,
    ProviderMisconfigured,
    ProviderUnavailable,
    QuotaExhausted,
    RateLimited,
    RejectedInput,
)

Body = dict[str, Any]
OPENAI_FIELDS = frozenset({"model", "input", "encoding_format", "dimensions", "user"})
KEY = "the-key-of-the-test"


class Refusal(NamedTuple):
    """An error answer."""

    status: int
    body: object
    headers: dict[str, str] = {}  # noqa: RUF012  nobody changes it


def openai_error(
    status: int, message: str, kind: str = "invalid_request_error", **more: object
) -> Refusal:
    error = {"message": message, "type": kind, "param": None, "code": None, **more}
    return Refusal(status, {"error": error})


def detail(status: int, text: object) -> Refusal:
    return Refusal(status, {"detail": text})


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One API: its fields, its limits, and what it answers to who does not keep to them."""

    fields: frozenset[str] = OPENAI_FIELDS
    unknown_field: Callable[[str], Refusal] | None = None
    key_header: str = "Authorization"
    key_form: str = "Bearer {}"
    unauthorized: Refusal
    max_inputs: int | None = None
    too_many: Refusal | None = None
    max_input_tokens: int = 8192
    too_long: Refusal
    max_tokens: int | None = None
    too_much: Refusal | None = None
    cuts_unless: str | None = None
    dimensions: str = "dimensions"
    encoding: str = "encoding_format"
    side: Callable[[Body], str] = field(default=lambda _: "")
    usage: tuple[str, ...] = ("prompt_tokens", "total_tokens")
    ignores_encoding: bool = False


def extra_forbidden(name: str) -> Refusal:
    return detail(422, [{"type": "extra_forbidden", "loc": ["body", name], "msg": "no"}])


def voyage_side(body: Body) -> str:
    return {None: "", "document": "for retrieval: ", "query": "to retrieve: "}[
        body.get("input_type")
    ]


def jina_side(body: Body) -> str:
    return {None: "", "retrieval.passage": "passage: ", "retrieval.query": "query: "}[
        body.get("task")
    ]


TOO_LONG = openai_error(
    400, "This model's maximum context length is 8192 tokens, however you requested 9000 tokens"
)
WRONG_KEY = openai_error(401, "Incorrect API key provided: the-wr**", code="invalid_api_key")

SHAPES: dict[str, Shape] = {
    # OpenAI, API reference, "Create embeddings" and "Error codes", 2026-07.
    "openai": Shape(
        unauthorized=WRONG_KEY,
        unknown_field=lambda name: openai_error(
            400, f"Unrecognized request argument supplied: {name}"
        ),
        max_inputs=2048,
        too_many=openai_error(400, "[] is too long - 'input'", param="input"),
        too_long=TOO_LONG,
        max_tokens=300_000,
        too_much=openai_error(
            400,
            "Requested 300001 tokens, max 300000 tokens per request",
            "max_tokens_per_request",
            code="max_tokens_per_request",
        ),
    ),
    # Microsoft Learn, "Azure OpenAI v1 API", 2026-07.
    "azure": Shape(
        key_header="api-key",
        key_form="{}",
        unauthorized=Refusal(
            401, {"error": {"code": "401", "message": "Access denied due to invalid key."}}
        ),
        max_inputs=2048,
        too_many=openai_error(400, "Too many inputs. The max number of inputs is 2048."),
        too_long=TOO_LONG,
    ),
    # Mistral, API reference, "Embeddings", 2026-07; its error 3210, 2026-05.
    "mistral": Shape(
        fields=frozenset(
            {"model", "input", "encoding_format", "output_dimension", "output_dtype"}
        ),
        dimensions="output_dimension",
        unknown_field=lambda name: Refusal(
            422, {"object": "error", "message": extra_forbidden(name).body}
        ),
        unauthorized=detail(401, "Unauthorized"),
        max_inputs=256,
        too_many=Refusal(
            400,
            {
                "object": "error",
                "message": "Too many inputs in request, split into more batches.",
                "type": "invalid_request_batch",
                "param": None,
                "code": "3210",
            },
        ),
        too_long=Refusal(
            400, {"object": "error", "message": "Input is too long.", "code": "3051"}
        ),
        max_tokens=16_384,
        too_much=Refusal(
            400,
            {
                "object": "error",
                "message": "Too many tokens in batch. Max is 16384 got 17555",
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            },
        ),
    ),
    # Voyage AI, "Text embeddings" and "Error codes", 2026-07.
    "voyage": Shape(
        fields=frozenset(
            {
                *("model", "input", "input_type", "truncation"),
                *("output_dimension", "output_dtype", "encoding_format"),
            }
        ),
        dimensions="output_dimension",
        unknown_field=lambda name: detail(
            400, f"Argument '{name}' is not supported by our API"
        ),
        unauthorized=detail(401, "Provided API key is invalid."),
        max_inputs=1000,
        too_many=detail(400, "The batch size limit is 1000. Your batch size is 1001."),
        max_input_tokens=32_000,
        too_long=detail(400, "Request to model 'm' failed. The example at index 0 is too long"),
        max_tokens=120_000,
        too_much=detail(
            400,
            "Request to model 'm' failed. The max allowed tokens per submitted batch is "
            "120000. Your batch has 121138 tokens after truncation.",
        ),
        cuts_unless="truncation",
        side=voyage_side,
        usage=("total_tokens",),
    ),
    # Jina AI, "Embeddings API", 2026-07; the limit of inputs as its error has it, 2025-11.
    "jina": Shape(
        fields=frozenset(
            {
                *("model", "input", "task", "dimensions", "embedding_type"),
                *("truncate", "normalized", "late_chunking"),
            }
        ),
        encoding="embedding_type",
        unknown_field=extra_forbidden,
        unauthorized=detail(401, "Unauthorized"),
        max_inputs=512,
        too_many=detail(
            400,
            "[RID: 1a2b] Validation error: 'body -> jina-embeddings-v4' Each input list can "
            "contain at most 512 items.. Field errors: : Invalid value",
        ),
        too_long=detail(400, "Failed to encode text, input exceeds maximum length of 8194"),
        cuts_unless="truncate",
        side=jina_side,
        usage=("total_tokens",),
    ),
    # Hugging Face, Text Embeddings Inference, its router, 2026-07; --auto-truncate false.
    "tei": Shape(
        unauthorized=Refusal(401, ""),
        max_inputs=32,
        too_many=Refusal(
            422,
            {
                "message": "batch size 33 > maximum allowed batch size 32",
                "code": 422,
                "type": "Validation",
            },
        ),
        max_input_tokens=512,
        too_long=Refusal(
            413,
            {
                "message": "Input validation error: `inputs` must have less than 512 tokens.",
                "code": 413,
                "type": "Validation",
            },
        ),
    ),
    # vLLM, "OpenAI-compatible server", 2026-07.
    "vllm": Shape(
        fields=OPENAI_FIELDS | {"truncate_prompt_tokens"},
        unauthorized=Refusal(401, {"error": "Unauthorized"}),
        max_input_tokens=512,
        too_long=openai_error(
            400,
            "This model's maximum context length is 512 tokens.",
            "BadRequestError",
            code=400,
        ),
    ),
    # Ollama, "OpenAI compatibility", 2026-07; of a model that is not cut short.
    "ollama": Shape(
        unauthorized=openai_error(401, "unauthorized", "api_error"),
        max_input_tokens=2048,
        too_long=openai_error(400, "the input length exceeds the context length"),
    ),
    # LiteLLM, "Proxy: /embeddings", 2026-07: over a provider that knows no base64.
    "litellm": Shape(
        unauthorized=openai_error(
            401,
            "Authentication Error, Invalid proxy server token passed.",
            "token_not_found_in_db",
            param="key",
            code="401",
        ),
        too_long=openai_error(
            400,
            "litellm.ContextWindowExceededError: litellm.BadRequestError: too long",
            "None",
            param="None",
            code="400",
        ),
        ignores_encoding=True,
    ),
    "generic": Shape(unauthorized=Refusal(401, "no"), too_long=Refusal(400, "too long")),
}


class Failure(NamedTuple):
    """A documented error, and what it must mean."""

    refusal: Refusal
    error: type[Exception]
    retry_after_seconds: float | None = None
    reason: Reason = Reason.REJECTED_INPUT


ERRORS: dict[str, list[Failure]] = {
    "openai": [
        Failure(
            Refusal(
                429,
                openai_error(
                    429, "Rate limit reached", "tokens", code="rate_limit_exceeded"
                ).body,
                {"x-ratelimit-reset-requests": "12ms", "x-ratelimit-reset-tokens": "6m0s"},
            ),
            RateLimited,
            360,
        ),
        Failure(
            Refusal(
                429,
                openai_error(
                    429, "You exceeded", "insufficient_quota", code="insufficient_quota"
                ).body,
                {"x-should-retry": "false"},
            ),
            QuotaExhausted,
        ),
        Failure(
            openai_error(404, "The model `x` does not exist", code="model_not_found"),
            ProviderMisconfigured,
        ),
        Failure(openai_error(400, "'$.input' is invalid.", param="input"), RejectedInput),
        Failure(
            openai_error(500, "The server had an error", "server_error"), ProviderUnavailable
        ),
        Failure(
            openai_error(503, "The engine is overloaded", "server_error"), ProviderUnavailable
        ),
        Failure(
            Refusal(
                403,
                openai_error(403, "Country", code="unsupported_country_region_territory").body,
            ),
            Forbidden,
        ),
    ],
    "azure": [
        Failure(
            Refusal(
                429,
                {"error": {"code": "429", "message": "Please retry after 3 seconds."}},
                {"retry-after": "3", "x-ratelimit-remaining-requests": "-1"},
            ),
            RateLimited,
            3,
        ),
        Failure(
            Refusal(
                429, {"error": {"code": "429", "message": "..."}}, {"retry-after-ms": "1500"}
            ),
            RateLimited,
            1.5,
        ),
        Failure(
            Refusal(
                400,
                {
                    "error": {
                        "code": "content_filter",
                        "message": "The response was filtered",
                        "param": "prompt",
                        "innererror": {"code": "ResponsibleAIPolicyViolation"},
                    }
                },
            ),
            RejectedInput,
            reason=Reason.CONTENT_FILTER,
        ),
        Failure(
            Refusal(404, {"error": {"code": "DeploymentNotFound", "message": "The API dep"}}),
            ProviderMisconfigured,
        ),
        Failure(
            Refusal(400, {"error": {"code": "OperationNotSupported", "message": "The emb"}}),
            ProviderMisconfigured,
        ),
        Failure(
            Refusal(403, {"error": {"code": "403", "message": "Access denied due to VNet"}}),
            Forbidden,
        ),
    ],
    "mistral": [
        Failure(
            Refusal(
                400,
                {"object": "error", "message": "Invalid model: x", "type": "invalid_model"}
                | {"param": None, "code": "1500"},
            ),
            ProviderMisconfigured,
        ),
        Failure(
            Refusal(429, {"message": "Requests rate limit exceeded"}, {"retry-after": "1"}),
            RateLimited,
            1,
        ),
        Failure(
            Refusal(422, {"object": "error", "message": extra_forbidden("dtype").body}),
            ProviderMisconfigured,
        ),
        Failure(
            Refusal(400, {"object": "error", "type": "invalid_request_prompt", "code": "3210"}),
            RejectedInput,
        ),
    ],
    "voyage": [
        Failure(
            detail(400, "Model voyage-0 is not supported. Supported models are ['voyage-4']"),
            ProviderMisconfigured,
        ),
        Failure(detail(429, "You have not yet added your payment method"), RateLimited),
        Failure(detail(500, "An error occurred"), ProviderUnavailable),
    ],
    "jina": [
        Failure(detail(402, "Insufficient account balance"), QuotaExhausted),
        Failure(
            detail(422, "[RID: 1] Validation error: 'body -> model' Input should be 'x'"),
            ProviderMisconfigured,
        ),
        Failure(
            detail(422, [{"type": "literal_error", "loc": ["body", "task"], "msg": "x"}]),
            ProviderMisconfigured,
        ),
        Failure(detail(429, "Rate limit exceeded"), RateLimited),
    ],
    "tei": [
        Failure(
            Refusal(429, {"message": "Model is overloaded", "code": 429, "type": "Overloaded"}),
            RateLimited,
        ),
        Failure(
            Refusal(424, {"message": "cuda", "code": 424, "type": "Backend"}),
            ProviderUnavailable,
        ),
        Failure(
            Refusal(503, {"message": "unhealthy", "code": 503, "type": "Unhealthy"}),
            ProviderUnavailable,
        ),
        Failure(
            Refusal(422, {"message": "no", "code": 422, "type": "Tokenizer"}), RejectedInput
        ),
        Failure(
            Refusal(400, {"message": "`inputs` is empty", "code": 400, "type": "Empty"}),
            RejectedInput,
        ),
        Failure(Refusal(422, {"error": "no", "error_type": "Validation"}), RejectedInput),
    ],
    "vllm": [
        Failure(
            openai_error(404, "The model `x` does not exist.", "NotFoundError", code=404),
            ProviderMisconfigured,
        ),
        Failure(
            openai_error(
                400,
                'Model "x" does not support matryoshka representation',
                "BadRequestError",
                code=400,
            ),
            ProviderMisconfigured,
        ),
        Failure(
            Refusal(
                400,
                {"object": "error", "message": "too long", "type": "BadRequestError"}
                | {"param": None, "code": 400},
            ),
            RejectedInput,
        ),
        Failure(openai_error(500, "", "InternalServerError", code=500), ProviderUnavailable),
    ],
    "ollama": [
        Failure(
            openai_error(404, 'model "x" not found, try pulling it first', "not_found_error"),
            ProviderMisconfigured,
        ),
        Failure(
            openai_error(503, "server busy, please try again", "api_error"), ProviderUnavailable
        ),
        Failure(
            openai_error(500, "do embedding request: EOF", "api_error"), ProviderUnavailable
        ),
    ],
    "litellm": [
        Failure(
            openai_error(
                400,
                "Budget has been exceeded! Current cost: 26.0, Max budget: 0.25",
                "budget_exceeded",
                code="400",
            ),
            QuotaExhausted,
        ),
        Failure(
            openai_error(
                400,
                "litellm.BadRequestError: Litellm_proxyException - Budget has been exceeded!",
                "None",
                param="None",
                code="400",
            ),
            QuotaExhausted,
        ),
        Failure(
            openai_error(
                429,
                "litellm.RateLimitError: RateLimitError: OpenAIException - wait",
                "throttling_error",
                code="429",
            ),
            RateLimited,
        ),
        Failure(
            openai_error(
                400,
                "/embeddings: Invalid model name passed in model=x. Call `/v1/models`",
                param="None",
                code="400",
            ),
            ProviderMisconfigured,
        ),
        Failure(
            openai_error(
                400, "litellm.UnsupportedParamsError: Setting {'dimensions': 1}", code="400"
            ),
            ProviderMisconfigured,
        ),
        Failure(
            openai_error(503, "litellm.ServiceUnavailableError: x", code="503"),
            ProviderUnavailable,
        ),
    ],
    "generic": [
        Failure(Refusal(502, "<html>Bad Gateway</html>"), ProviderUnavailable),
        Failure(Refusal(429, "slow down", {"Retry-After": "7"}), RateLimited, 7),
        Failure(Refusal(503, "later", {"Retry-After": "7"}), RateLimited, 7),
        Failure(Refusal(501, "start it with --embeddings"), ProviderMisconfigured),
        Failure(Refusal(400, "no"), RejectedInput),
    ],
}


class Imitation:
    """The server of one API; `async with` starts and ends it."""

    def __init__(self, name: str, dimensions: int = 4) -> None:
        self.shape = SHAPES[name]
        self.dimensions = dimensions
        self.bodies: list[Body] = []
        self.next: list[Refusal] = []
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """What `embedding.url` is set to."""
        return f"http://127.0.0.1:{self._port}/v1"

    def expected(self, text: str, side: str = "", dimensions: int | None = None) -> bytes:
        """The vector of a whole text."""
        return vector_of(side + text, "m", dimensions or self.dimensions).tobytes()

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/embeddings", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        sent = request.headers.get(self.shape.key_header)
        if sent != self.shape.key_form.format(KEY):
            return self._refuse(self.shape.unauthorized)
        if self.next:
            return self._refuse(self.next.pop(0))
        refusal = self._refusal_of(body)
        return self._refuse(refusal) if refusal else self._answer(body)

    def _refusal_of(self, body: Body) -> Refusal | None:
        shape = self.shape
        unknown = sorted(set(body) - shape.fields)
        if unknown and shape.unknown_field:
            return shape.unknown_field(unknown[0])
        if shape.max_inputs is not None and len(body["input"]) > shape.max_inputs:
            return shape.too_many
        cuts = shape.cuts_unless is not None and body.get(shape.cuts_unless) is not False
        tokens = [len(text.split()) for text in body["input"]]
        if max(tokens) > shape.max_input_tokens and not cuts:
            return shape.too_long
        if shape.max_tokens is not None and sum(tokens) > shape.max_tokens:
            return shape.too_much
        return None

    def _answer(self, body: Body) -> web.Response:
        shape = self.shape
        side = shape.side(body)
        size = body.get(shape.dimensions, self.dimensions)
        asked = body.get(shape.encoding) == "base64" and not shape.ignores_encoding
        encode = as_base64 if asked else as_floats
        texts = [" ".join(text.split()[: shape.max_input_tokens]) for text in body["input"]]
        items = [
            {
                "object": "embedding",
                "index": index,
                "embedding": encode(vector_of(side + text, body["model"], size)),
            }
            for index, text in enumerate(texts)
        ]
        tokens = sum(len(text.split()) for text in texts)
        usage = dict.fromkeys(shape.usage, tokens)
        answer = {"object": "list", "data": items, "model": body["model"], "usage": usage}
        return web.json_response(answer)

    def _refuse(self, refusal: Refusal) -> web.Response:
        body = refusal.body
        content = body if isinstance(body, str) else json.dumps(body)
        return web.Response(status=refusal.status, text=content, headers=refusal.headers)
