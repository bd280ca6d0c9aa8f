"""
How the embedding APIs that look like OpenAI's differ, as data.

Owns one record a dialect: what its fields are called, how documents are told from queries,
how its truncation is switched off, how much one request may hold, and in which header a key
goes. All of them answer `{data: [{index, embedding}], usage: {total_tokens}}`. Decides
nothing about errors: that is `core.taxonomy`.

Invariant: a field is sent only where the dialect has it; a provider that cuts texts short on
its own account is told not to, wherever a request can say so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from worker.config import DialectName
from worker.core.packing import PackLimits

InputType = Literal["document", "query"]
"""Which side of a search a text is on."""


class InputTypes(NamedTuple):
    """The field that tells documents from queries, and what it holds for each."""

    field: str
    document: str
    query: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """
    One API: what a request to it holds.

        >>> voyage = DIALECTS["voyage"]
        >>> voyage.body("m", ["text"], input_type="query", encoding=None)
        {'model': 'm', 'input': ['text'], 'input_type': 'query', 'truncation': False}

    Limits that are None are not known, or depend on the model behind it. `truncation` is the
    field that takes False; None: it refuses long texts anyway, or `note` says what it does.
    """

    name: DialectName
    title: str
    path: str = "/embeddings"
    dimensions: str = "dimensions"
    encoding: str | None = "encoding_format"
    input_types: InputTypes | None = None
    truncation: str | None = None
    max_inputs: int | None = None
    max_input_tokens: int | None = None
    max_request_tokens: int | None = None
    key_header: str = "Authorization"
    note: str = ""

    def body(
        self,
        model: str,
        texts: Sequence[str],
        *,
        input_type: InputType = "document",
        dimensions: int | None = None,
        encoding: str | None = "base64",
    ) -> dict[str, Any]:
        """Return what a request holds; `dimensions` and `encoding` None are not sent."""
        body: dict[str, Any] = {"model": model, "input": texts}
        if self.encoding is not None and encoding is not None:
            body[self.encoding] = encoding
        if dimensions is not None:
            body[self.dimensions] = dimensions
        if self.input_types is not None:
            body[self.input_types.field] = getattr(self.input_types, input_type)
        if self.truncation is not None:
            body[self.truncation] = False
        return body

    def authorization(self, key: str) -> tuple[str, str]:
        """Return name and value of the header that carries a key."""
        if self.key_header == "Authorization":
            return bearer(key)
        return self.key_header, key

    def bound(self, limits: PackLimits) -> PackLimits:
        """
        Return what a request may hold, of the limits that are set and those of the API.

        Tokens are estimated, so a tenth of what the API takes is left free.
        """
        tokens = self.max_request_tokens
        return PackLimits(
            max_inputs=min(limits.max_inputs, self.max_inputs or limits.max_inputs),
            max_tokens=min(
                limits.max_tokens, tokens * 9 // 10 if tokens else limits.max_tokens
            ),
            max_bytes=limits.max_bytes,
        )


def bearer(token: str) -> tuple[str, str]:
    """Return the header of a bearer token (RFC 6750, 2.1), whatever the dialect."""
    return "Authorization", f"Bearer {token}"


_ALL: Sequence[Dialect] = (
    # OpenAI, API reference, "Create embeddings", as its Python library has it, 2026-07:
    # 2,048 inputs, 8,192 tokens each, 300,000 in all, no empty string. Too long is a 400.
    Dialect(
        name="openai",
        title="OpenAI",
        max_inputs=2048,
        max_input_tokens=8192,
        max_request_tokens=300_000,
    ),
    # Microsoft Learn, "Azure OpenAI v1 API" and "Embeddings", 2026-07: `model` is the name of
    # the deployment, the key goes into `api-key`, a token of Entra ID into `Authorization`.
    Dialect(
        name="azure",
        title="Azure OpenAI (v1)",
        max_inputs=2048,
        max_input_tokens=8192,
        key_header="api-key",
        note="The collection's model is the name of the deployment.",
    ),
    # Mistral, API reference, "Embeddings", 2026-07. The limits are those its errors name:
    # "Too many inputs in request" above 256, "Too many tokens in batch. Max is 16384".
    Dialect(
        name="mistral",
        title="Mistral",
        dimensions="output_dimension",
        max_inputs=256,
        max_input_tokens=8192,
        max_request_tokens=16_384,
    ),
    # Voyage AI, "Text embeddings" and its API reference, 2026-07: 1,000 texts; tokens in all
    # 120,000 for the large models, more for the others. Without `truncation` it cuts.
    Dialect(
        name="voyage",
        title="Voyage AI",
        dimensions="output_dimension",
        input_types=InputTypes("input_type", document="document", query="query"),
        truncation="truncation",
        max_inputs=1000,
        max_input_tokens=32_000,
        max_request_tokens=120_000,
    ),
    # Jina AI, "Embeddings API", 2026-07: `embedding_type` is its `encoding_format`. 512 inputs
    # is what the error of jina-embeddings-v4 names; v3 takes 2,048.
    Dialect(
        name="jina",
        title="Jina AI",
        encoding="embedding_type",
        input_types=InputTypes("task", document="retrieval.passage", query="retrieval.query"),
        truncation="truncate",
        max_inputs=512,
        max_input_tokens=8192,
        note="Models before jina-embeddings-v3 know no `task`: use generic for them.",
    ),
    # Hugging Face, Text Embeddings Inference, its router at 0d124dc, 2026-07: a request to
    # /v1/embeddings has no field for truncation, the server's --auto-truncate decides.
    Dialect(
        name="tei",
        title="Text Embeddings Inference",
        max_inputs=32,
        note=(
            "Start it with --auto-truncate false: a request cannot say so. For a larger "
            "--max-client-batch-size use generic."
        ),
    ),
    # vLLM, "OpenAI-compatible server" and "Pooling models", 2026-07: it truncates only where
    # `truncate_prompt_tokens` is sent; else too long is a 400.
    Dialect(name="vllm", title="vLLM"),
    # Ollama, "OpenAI compatibility" and "Generate embeddings", 2026-07: /v1/embeddings has no
    # `truncate`, which is true by default.
    Dialect(
        name="ollama",
        title="Ollama (/v1)",
        note="Cuts long texts short: keep chunks below the model's context.",
    ),
    # LiteLLM, "Proxy: /embeddings", 2026-07: OpenAI's request; the limits are those of the
    # model behind it.
    Dialect(
        name="litellm",
        title="LiteLLM proxy",
        note="Limits and truncation are those of the model behind it.",
    ),
    Dialect(
        name="generic",
        title="any other",
        note="OpenAI's fields without its limits.",
    ),
)

DIALECTS: Mapping[DialectName, Dialect] = {one.name: one for one in _ALL}
