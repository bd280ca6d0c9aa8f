"""
What each failure of an embedding provider means: one table.

Owns the rows that tell which class a failure is of, and for what reason a text is dead-lettered
that alone is answered so: by status, machine-readable codes, the parameter complained about,
the dialect, or how the transport failed. The first row that matches decides. Only what is
about the texts is `CONTENT`: a wrong key, model, quota or parameter concerns every document
alike, and a plain 403 may be about either.

Invariant: every answer has a class. What no row knows is transient: a provider that answers
everybody so is an outage, and a text that alone causes it is given up after its attempts.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from schemas.dead_letter import Reason
from worker.config import DialectName
from worker.core.failure_class import FailureClass


class ErrorAnswer(NamedTuple):
    """
    What an answer other than 200 says, in its machine-readable fields.

    Of `message` only the beginning is looked at: what follows may quote a document. `hinted`:
    it says how long to wait; `should_retry` is the header of that name, None where it is not.
    """

    status: int
    code: str = ""
    type: str = ""
    param: str | None = None
    message: str = ""
    hinted: bool = False
    should_retry: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """
    One way to fail, and its class; what is None or empty does not matter.

    `reason` is that of the dead letter of a single text that is answered so, of `CONTENT`.
    `codes` is searched for in code and type, `message` is matched at its beginning. A row with
    `failures` is about the transport, or about what came with status 200.
    """

    meaning: FailureClass
    says: str
    statuses: Collection[int] = ()
    dialect: DialectName | None = None
    codes: re.Pattern[str] | None = None
    message: re.Pattern[str] | None = None
    names_parameter: bool = False
    hinted: bool = False
    asks_to_retry: bool = False
    failures: tuple[str, ...] = ()
    reason: Reason = Reason.REJECTED_INPUT

    def fits(self, dialect: DialectName, answer: ErrorAnswer) -> bool:
        """Tell whether an answer is what this row is about."""
        return (
            answer.status in self.statuses
            and self.dialect in {None, dialect}
            and (self.codes is None or self._knows_code(answer))
            and (self.message is None or self.message.match(answer.message) is not None)
            and (not self.names_parameter or _is_not_of_text(answer.param))
            and (not self.hinted or answer.hinted)
            and (not self.asks_to_retry or answer.should_retry is True)
        )

    def _knows_code(self, answer: ErrorAnswer) -> bool:
        return self.codes is not None and any(
            self.codes.search(code.lower()) for code in (answer.code, answer.type)
        )


_TEXT_PARAMETERS = ("input", "text", "content", "prompt")


def _is_not_of_text(param: str | None) -> bool:
    return param is not None and not param.startswith(_TEXT_PARAMETERS)


def _code(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(alternatives))


def _prose(*alternatives: str) -> re.Pattern[str]:
    """Return a pattern for the first words of a message, before anything is quoted."""
    return re.compile(rf"[^'\"]{{0,40}}?({'|'.join(alternatives)})", re.IGNORECASE)


ABOUT_REQUEST = (400, 413, 422)
"""The statuses that say that a request is refused for what it holds."""

TABLE: tuple[Row, ...] = (
    # LiteLLM proxy: "Budget has been exceeded! Current cost: ..." as 400 or 429, also when
    # another proxy is behind it (its issues 14144 and 22726, 2025-09 and 2026-03).
    Row(
        meaning=FailureClass.QUOTA,
        dialect="litellm",
        statuses=(400, 429),
        message=re.compile(
            r"(litellm\.\w+: )?(\w+ - )?(ExceededBudget|Budget has been exceeded)"
        ),
        says="the budget of the key, the user or the team is exceeded",
    ),
    Row(
        meaning=FailureClass.QUOTA,
        statuses=(400, 403, 429),
        codes=_code(
            *("insufficient_quota", "billing", "payment", "budget_exceeded"),
            "insufficient_(balance|credit)",
        ),
        says="`insufficient_quota`, `billing...`, `payment...`, `budget_exceeded`",
    ),
    Row(
        meaning=FailureClass.QUOTA,
        statuses=(400, 403),
        codes=_code("quota"),
        says="a code that names a quota",
    ),
    Row(meaning=FailureClass.QUOTA, statuses=(402,), says="payment required"),
    Row(meaning=FailureClass.THROTTLE, statuses=(429,), says="anything else"),
    Row(
        meaning=FailureClass.THROTTLE,
        statuses=(503,),
        hinted=True,
        says="with `Retry-After` or `retry-after-ms`",
    ),
    # 498: Cohere's and Esri's "invalid token".
    Row(meaning=FailureClass.AUTH, statuses=(401, 498), says="anything else"),
    Row(
        meaning=FailureClass.AUTH,
        statuses=(403,),
        codes=_code("api_key", "access_terminated", "deactivated", "not_active"),
        says="a code that names the key or the account",
    ),
    Row(
        meaning=FailureClass.AUTH,
        statuses=(400, 422),
        codes=_code(
            *("api_key", "auth", "permission", "access_denied", "access_terminated"),
            *("forbidden", "deactivated", "not_active"),
        ),
        says="a code that names the key or the account",
    ),
    Row(
        meaning=FailureClass.AUTH,
        statuses=(400, 422),
        message=_prose("(incorrect|invalid|missing) api key", "unauthorized"),
        says="begins with a complaint about the key",
    ),
    Row(
        meaning=FailureClass.CONFIG,
        statuses=range(300, 400),
        says="a redirect: it is not followed",
    ),
    # 501: llama.cpp without --embeddings.
    Row(
        meaning=FailureClass.CONFIG,
        statuses=(404, 405, 415, 501),
        says="no such path, model, deployment or method",
    ),
    Row(
        meaning=FailureClass.TRANSIENT,
        statuses=ABOUT_REQUEST,
        asks_to_retry=True,
        says="with `x-should-retry: true`",
    ),
    # Before the parameters: Azure names `prompt`, others the field of their filter.
    Row(
        meaning=FailureClass.CONTENT,
        reason=Reason.CONTENT_FILTER,
        statuses=(*ABOUT_REQUEST, 403),
        codes=_code("content_filter", "content_policy", "responsibleaipolicyviolation"),
        says="`content_filter`, `content_policy...`, `ResponsibleAIPolicyViolation`",
    ),
    Row(
        meaning=FailureClass.CONTENT,
        reason=Reason.INPUT_TOO_LONG,
        statuses=ABOUT_REQUEST,
        codes=_code("context_length", "string_above_max", "max_tokens_per_request"),
        says="`context_length_exceeded`, `string_above_max_length`, `max_tokens_per_request`",
    ),
    # 403: OpenAI, where the project of the key has no access to the model.
    Row(
        meaning=FailureClass.CONFIG,
        statuses=(*ABOUT_REQUEST, 403),
        codes=_code(
            *("model_not_found", "invalid_model", "unsupported_model", "model_not_supported"),
            *("deploymentnotfound", "operationnotsupported", "invalid_dimensions"),
            *("unknown_parameter", "unsupported_parameter", "unknown_url"),
        ),
        says="a code that names the model or a parameter",
    ),
    Row(
        meaning=FailureClass.CONFIG,
        statuses=ABOUT_REQUEST,
        names_parameter=True,
        says="`param` or `loc` names another field than the texts",
    ),
    # Servers without codes.
    Row(
        meaning=FailureClass.CONFIG,
        statuses=ABOUT_REQUEST,
        message=_prose(
            *("invalid model name", "model not found", r"the model .{1,80} does not exist"),
            *("unrecognized request argument", "unknown parameter", "unsupported parameter"),
            r"argument .{1,40} is not supported",
        ),
        says="begins with a complaint about the model or a parameter",
    ),
    # Voyage AI, `{"detail": "Model x is not supported. Supported models are ..."}`.
    Row(
        meaning=FailureClass.CONFIG,
        dialect="voyage",
        statuses=(400,),
        message=re.compile(r"Model .{1,80} is not supported"),
        says="begins with `Model ... is not supported`",
    ),
    # Jina AI, "Validation error: 'body -> model' ..." behind an id of the request.
    Row(
        meaning=FailureClass.CONFIG,
        dialect="jina",
        statuses=(400, 422),
        message=re.compile(
            r"[^']{0,80}Validation error: '?body -> "
            r"(model|task|dimensions|embedding_type|truncate|normalized)\b"
        ),
        says="begins with `Validation error: 'body -> model'`, or another field than the texts",
    ),
    # vLLM, of `dimensions` for a model that was not trained for it.
    Row(
        meaning=FailureClass.CONFIG,
        dialect="vllm",
        statuses=(400,),
        message=re.compile(r"Model .{1,120} does not support matryoshka"),
        says="begins with `Model ... does not support matryoshka representation`",
    ),
    Row(
        meaning=FailureClass.CONFIG,
        dialect="litellm",
        statuses=(400,),
        message=re.compile(
            r"litellm\.(UnsupportedParamsError|BadRequestError: LLM Provider NOT provided)"
        ),
        says="begins with `litellm.UnsupportedParamsError`, or knows no provider of the model",
    ),
    # A firewall or a gateway in front of the provider, or a key that may not do this.
    Row(meaning=FailureClass.FORBIDDEN, statuses=(403,), says="anything else"),
    # Ollama, Jina, Mistral ("Input is too long.", "Too many tokens in batch."), llama.cpp.
    Row(
        meaning=FailureClass.CONTENT,
        reason=Reason.INPUT_TOO_LONG,
        statuses=ABOUT_REQUEST,
        message=_prose(
            *("exceeds the context length", "exceeds maximum length", "too many tokens"),
            *("(input|prompt|text) is too (long|large)", "larger than the max context size"),
        ),
        says="begins with a complaint about the length",
    ),
    # OpenAI, Azure, vLLM.
    Row(
        meaning=FailureClass.CONTENT,
        reason=Reason.INPUT_TOO_LONG,
        statuses=ABOUT_REQUEST,
        message=re.compile(
            r"This model's maximum context length"
            r"|Invalid 'input[^']{0,20}': (maximum|string too long)"
        ),
        says="begins with `This model's maximum context length`, or `Invalid 'input': maximum`",
    ),
    Row(
        meaning=FailureClass.CONTENT,
        reason=Reason.INPUT_TOO_LONG,
        dialect="voyage",
        statuses=(400,),
        message=re.compile(
            r"Request to model '.{1,80}' failed\. "
            r"(The example at index \d+ .{0,60}too (long|many)|The max allowed tokens)"
        ),
        says="begins with `Request to model ... failed. The example at index ... is too long`",
    ),
    Row(
        meaning=FailureClass.CONTENT,
        reason=Reason.INPUT_TOO_LONG,
        dialect="litellm",
        statuses=(400,),
        message=re.compile(r"litellm\.ContextWindowExceededError"),
        says="begins with `litellm.ContextWindowExceededError`",
    ),
    # Of more than one text it is parted all the same, until a single one is too large.
    Row(
        meaning=FailureClass.CONTENT,
        reason=Reason.INPUT_TOO_LONG,
        statuses=(413,),
        says="anything else",
    ),
    Row(meaning=FailureClass.CONTENT, statuses=(400, 422), says="anything else"),
    Row(
        meaning=FailureClass.TRANSIENT,
        statuses=(408, 409, 424, 425),
        says="too slow, in conflict, a backend that failed (TEI), too early",
    ),
    Row(meaning=FailureClass.TRANSIENT, statuses=range(500, 600), says="anything else"),
    Row(
        meaning=FailureClass.BAD_OUTPUT,
        statuses=range(201, 300),
        failures=("wrong_answer", "truncated", "too_long", "endless"),
        says=(
            "200 with too few or too many vectors, a missing or double index, other "
            "dimensions, NaN, infinity, a zero vector, no base64, no JSON, a body that breaks "
            "off, does not end in time or is above `embedding.max_answer_bytes`; any other "
            "success"
        ),
    ),
    Row(
        meaning=FailureClass.CONFIG,
        failures=("certificate", "address"),
        says="a certificate that is not trusted; an address that cannot be used",
    ),
    Row(
        meaning=FailureClass.TRANSIENT,
        statuses=range(100, 1000),
        failures=(
            *("connect", "connect_timeout", "timeout", "tls"),
            *("disconnected", "protocol", "client"),
        ),
        says="no connection, no answer in time, a broken connection, what is no HTTP; all else",
    ),
)


def classify(dialect: DialectName, answer: ErrorAnswer) -> FailureClass:
    """
    Return what an answer other than 200 means.

        >>> classify("openai", ErrorAnswer(429)), classify("tei", ErrorAnswer(424))
        (<FailureClass.THROTTLE: 'throttle'>, <FailureClass.TRANSIENT: 'transient'>)
    """
    row = _first(dialect, answer)
    return FailureClass.TRANSIENT if row is None else row.meaning


def reason_of(dialect: DialectName, answer: ErrorAnswer) -> Reason:
    """
    Return for what a text is dead-lettered that alone is answered so.

        >>> reason_of("tei", ErrorAnswer(413)).value
        'input_too_long'
    """
    row = _first(dialect, answer)
    return Reason.REJECTED_INPUT if row is None else row.reason


def _first(dialect: DialectName, answer: ErrorAnswer) -> Row | None:
    return next((row for row in TABLE if row.fits(dialect, answer)), None)


def classify_failure(code: str) -> FailureClass:
    """Return what a failure means that brought no error answer."""
    rows = (row.meaning for row in TABLE if code in row.failures)
    return next(rows, FailureClass.TRANSIENT)
