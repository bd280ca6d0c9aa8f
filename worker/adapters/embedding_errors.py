"""
What the error answer of an embedding server means for us.

Decides by status and by the machine-readable fields of the body, with the shapes of OpenAI,
Azure, LiteLLM, vLLM, TEI, Voyage and FastAPI in mind. Only what is about the texts is
`RejectedInput`: a wrong key, model, quota or parameter concerns every document alike, so it is
`ProviderUnavailable` and dead-letters nothing. Never repeats the provider's prose, which may
quote a document or a key; only codes.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from worker.core.retry import parse_retry_after
from worker.errors import ProviderUnavailable, RateLimited, RejectedInput, WorkerError

CONTENT_STATUSES = frozenset({400, 413, 422})
TOO_MANY_REQUESTS = 429
UNAVAILABLE = 503

# Codes and types that name the account, the key, the model or a parameter, never a text.
_CONFIG_CODES = re.compile(
    r"model_not_found|invalid_model|unsupported_model|model_not_supported|deploymentnotfound"
    r"|api_key|auth|permission|access_denied|access_terminated|forbidden"
    r"|quota|billing|payment|deactivated|not_active"
    r"|invalid_dimensions|unknown_parameter|unsupported_parameter|unknown_url|operationnotsupported"
)
_QUOTA_CODES = re.compile(r"insufficient_quota|billing|payment")
# For servers without codes: how their messages begin. Only the beginning is looked at, since
# what follows may quote a document.
_CONFIG_PROSE = re.compile(
    r"[^'\"]{0,40}?(invalid model name|model not found|the model .{1,80} does not exist"
    r"|unrecognized request argument|unknown parameter|unsupported parameter"
    r"|(incorrect|invalid|missing) api key|unauthorized)",
    re.IGNORECASE,
)
_TEXT_PARAMETERS = ("input", "text", "content", "prompt")
_TOKEN = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_CHECK = {
    401: "it refuses the key: check embedding.api_key_variable or embedding.api_key_file",
    402: "the account has no credit left",
    403: "the key may not do this: check embedding.api_key_variable or embedding.api_key_file",
    404: "it knows no such path or model: check embedding.url and the collection's model",
    405: "it takes no POST there: check embedding.url",
}


class ErrorAnswer(NamedTuple):
    """What the body of an error says, in its machine-readable fields."""

    codes: str
    param: str | None
    message: str

    def names(self, parameter: str) -> bool:
        """Tell whether the server complains about this parameter of the request."""
        return parameter == self.param or parameter in self.message[:200]


def parse_error(content: bytes) -> ErrorAnswer:
    """Read an error body of any of the known shapes; an unknown one says nothing."""
    try:
        decoded: Any = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ErrorAnswer("", None, "")
    body = decoded if isinstance(decoded, dict) else {}
    inner = body.get("error")
    error = inner if isinstance(inner, dict) else body
    codes = [error.get("code"), error.get("type"), body.get("error_type"), error.get("status")]
    message = error.get("message") or body.get("detail") or inner
    return ErrorAnswer(
        codes=" ".join(code for code in map(_token, codes) if code),
        param=_token(error.get("param")) or _location(body.get("detail")),
        message=message if isinstance(message, str) else "",
    )


def refuses(parameter: str, status: int, content: bytes) -> bool:
    """Tell whether the server does not take this parameter of the request."""
    return status in CONTENT_STATUSES and parse_error(content).names(parameter)


def classify(
    status: int, headers: Mapping[str, str], content: bytes, now_epoch_seconds: float
) -> WorkerError:
    """Return what an answer other than 200 means."""
    error = parse_error(content)
    if status == TOO_MANY_REQUESTS and _QUOTA_CODES.search(error.codes.lower()):
        return ProviderUnavailable(
            _message(status, error, "the quota is used up"), status=status
        )
    wait = parse_retry_after(headers, now_epoch_seconds)
    is_asked_to_wait = "Retry-After" in headers or "retry-after-ms" in headers
    if status == TOO_MANY_REQUESTS or (status == UNAVAILABLE and is_asked_to_wait):
        return RateLimited(_message(status, error), status=status, retry_after_seconds=wait)
    if status in CONTENT_STATUSES and not _is_configuration(error):
        return RejectedInput(_message(status, error), status=status)
    return ProviderUnavailable(_message(status, error, _hint(status, error)), status=status)


def _is_configuration(error: ErrorAnswer) -> bool:
    if _CONFIG_CODES.search(error.codes.lower()):
        return True
    if error.param is not None and not error.param.startswith(_TEXT_PARAMETERS):
        return True
    return _CONFIG_PROSE.match(error.message) is not None


def _hint(status: int, error: ErrorAnswer) -> str:
    if status in CONTENT_STATUSES:
        return (
            "it refuses the request, not the text: check the collection's model, "
            "embedding.send_dimensions and the key"
            + (f" (it names {error.param!r})" if error.param else "")
        )
    if 300 <= status < 400:  # noqa: PLR2004  the class of redirects, RFC 9110 15.4
        return "it redirects, which is not followed: set embedding.url to the final address"
    return _CHECK.get(status, "")


def _message(status: int, error: ErrorAnswer, hint: str = "") -> str:
    codes = f" ({error.codes})" if error.codes else ""
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
