"""
The error answer of an embedding server, read and turned into an exception.

Owns the shapes in which servers write errors (OpenAI, Azure, Mistral, LiteLLM, vLLM, TEI,
Voyage, FastAPI), the exception of each class of `core.taxonomy`, and what a person is told to
check. Never repeats the provider's prose, which may quote a document or a key; only codes.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from worker.config import DialectName
from worker.core import taxonomy
from worker.core.failure_class import FailureClass
from worker.core.retry import parse_retry_after
from worker.core.taxonomy import ABOUT_REQUEST, ErrorAnswer
from worker.errors import (
    BadOutput,
    Forbidden,
    KeyRefused,
    ProviderMisconfigured,
    ProviderUnavailable,
    QuotaExhausted,
    RateLimited,
    RejectedInput,
    WorkerError,
)

EXCEPTIONS: Mapping[FailureClass, type[ProviderUnavailable]] = {
    FailureClass.THROTTLE: RateLimited,
    FailureClass.QUOTA: QuotaExhausted,
    FailureClass.TRANSIENT: ProviderUnavailable,
    FailureClass.AUTH: KeyRefused,
    FailureClass.FORBIDDEN: Forbidden,
    FailureClass.CONFIG: ProviderMisconfigured,
    FailureClass.BAD_OUTPUT: BadOutput,
}
"""What is raised for each class; for `CONTENT` it is `RejectedInput`, the text's own."""

_TOKEN = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_BEGINNING = 200
# OpenAI and most others; then who names it otherwise (Azure: both gateway and service).
_REQUEST_ID_HEADERS = (
    *("x-request-id", "request-id"),
    *("apim-request-id", "x-ms-request-id", "x-amzn-requestid"),
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:\-]{3,127}")
_NO_CREDIT = "the account has no credit or quota left"
_KEY = "check embedding.api_key_variable or embedding.api_key_file"
_CHECK = {
    401: f"it refuses the key: {_KEY}",
    403: f"the key may not do this: {_KEY}",
    404: "it knows no such path or model: check embedding.url and the collection's model",
    405: "it takes no POST there: check embedding.url",
}


class ErrorBody(NamedTuple):
    """What the body of an error says, in its machine-readable fields."""

    code: str
    type: str
    param: str | None
    message: str

    def names(self, parameter: str) -> bool:
        """Tell whether the server complains about this parameter of the request."""
        return parameter == self.param or parameter in self.message[:_BEGINNING]


def parse_error(content: bytes) -> ErrorBody:
    """Read an error body of any of the known shapes; an unknown one says nothing."""
    try:
        decoded: Any = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ErrorBody("", "", None, "")
    body = decoded if isinstance(decoded, dict) else {}
    inner = body.get("error")
    error = inner if isinstance(inner, dict) else body
    message = error.get("message") or body.get("detail") or inner
    # Mistral wraps FastAPI's list: {"message": {"detail": [{"loc": ["body", "x"]}]}}.
    detail = message.get("detail") if isinstance(message, dict) else body.get("detail")
    # Azure's filter: {"error": {..., "innererror": {"code": "ResponsibleAIPolicyViolation"}}}.
    cause = error.get("innererror")
    precise = cause.get("code") if isinstance(cause, dict) else None
    kinds = (precise, error.get("type"), body.get("error_type"), error.get("status"))
    return ErrorBody(
        code=_token(error.get("code")) or "",
        type=next(filter(None, map(_token, kinds)), ""),
        param=_token(error.get("param")) or _location(detail),
        message=message if isinstance(message, str) else "",
    )


def refuses(parameter: str, status: int, content: bytes) -> bool:
    """Tell whether the server does not take this parameter of the request."""
    return status in ABOUT_REQUEST and parse_error(content).names(parameter)


def error_of(
    dialect: DialectName,
    status: int,
    headers: Mapping[str, str],
    content: bytes,
    now_epoch_seconds: float,
) -> WorkerError:
    """Return what an answer other than 200 means."""
    body = parse_error(content)
    should_retry = _should_retry(headers)
    answer = ErrorAnswer(
        status,
        *body,
        hinted="Retry-After" in headers or "retry-after-ms" in headers,
        should_retry=should_retry,
    )
    meaning = taxonomy.classify(dialect, answer)
    message = _message(status, body, _hint(meaning, status, body))
    told = request_id(headers)
    if meaning is FailureClass.CONTENT:
        reason = taxonomy.reason_of(dialect, answer)
        return RejectedInput(message, status=status, request_id=told, reason=reason)
    return EXCEPTIONS[meaning](
        message,
        status=status,
        request_id=told,
        retry_after_seconds=parse_retry_after(headers, now_epoch_seconds),
        should_retry=should_retry,
    )


def failure(code: str, message: str, headers: Mapping[str, str]) -> ProviderUnavailable:
    """Return what a failure means that brought no error answer; perhaps headers had come."""
    meaning = taxonomy.classify_failure(code)
    status = 200 if meaning is FailureClass.BAD_OUTPUT else None
    return EXCEPTIONS[meaning](message, status=status, request_id=request_id(headers))


def request_id(headers: Mapping[str, str]) -> str | None:
    """Return by what the server finds a request in its logs; None where it may be prose."""
    values = (headers.get(name, "") for name in _REQUEST_ID_HEADERS)
    return next((value for value in values if _REQUEST_ID.fullmatch(value)), None)


def _should_retry(headers: Mapping[str, str]) -> bool | None:
    value = headers.get("x-should-retry", "").strip().lower()
    return {"true": True, "false": False}.get(value)


def _hint(meaning: FailureClass, status: int, body: ErrorBody) -> str:
    if meaning is FailureClass.QUOTA:
        return _NO_CREDIT
    if meaning not in {FailureClass.AUTH, FailureClass.FORBIDDEN, FailureClass.CONFIG}:
        return ""
    if status in ABOUT_REQUEST:
        return (
            "it refuses the request, not the text: check the collection's model, "
            "embedding.dialect, embedding.send_dimensions and the key"
            + (f" (it names {body.param!r})" if body.param else "")
        )
    if 300 <= status < 400:  # noqa: PLR2004  the class of redirects, RFC 9110 15.4
        return "it redirects, which is not followed: set embedding.url to the final address"
    return _CHECK.get(status, "check embedding.url and the collection's model")


def _message(status: int, body: ErrorBody, hint: str) -> str:
    said = " ".join(filter(None, (body.code, body.type)))
    codes = f" ({said})" if said else ""
    return f"the provider answered {status}{codes}" + (f": {hint}" if hint else "")


def _token(value: object) -> str | None:
    """Return a code as it is, None where it may be prose (or says "None", as LiteLLM does)."""
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return text if _TOKEN.fullmatch(text) and text != "None" else None


def _location(detail: object) -> str | None:
    """Return the field that FastAPI complains about: `{"detail": [{"loc": ["body", "x"]}]}`."""
    match detail:
        case [{"loc": ["body", str(field), *_]}, *_]:
            return _token(field)
        case _:
            return None
