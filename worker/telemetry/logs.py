"""
Log lines: JSON for machines, colour for people, one stable `action` each.

Lines of libraries (aiokafka, asyncpg, asyncio) take the same way, as action `library_log`.
No line carries a document's text or a secret: values under telling names are masked, so are
credentials inside any string, and of an exception's message only the beginning is kept, none
where PostgreSQL may be quoting a value. A call that logs never raises.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from worker.config import TelemetryOptions
from worker.telemetry.tracing import trace_id_of

if TYPE_CHECKING:
    from structlog.typing import Processor

Event = MutableMapping[str, Any]

MASK = "***"
MESSAGE_CHARACTERS = 300
CAUSES = 5
STACK_FRAMES = 30
REPEAT_SECONDS = 10.0
TEMPLATES = 1000

_SECRET_NAME = re.compile(
    r"(?i)(password|passwd|secret|credential|authorization|cookie|dsn|(api|private|access)_?key"
    r"|(^|_)token)s?$"
)
_TEXT_NAMES = frozenset(
    {"text", "texts", "content", "body", "value", "input", "chunk", "vector"}
)
_SECRET_IN_STRING = re.compile(
    r"(?i)(?P<url>://[^/\s:@]*:)[^/\s@]+@|(?P<scheme>bearer\s+)\S+|\bsk-[\w-]{8,}"
    r"|(?P<name>\b(?:password|api_key)\s*[=:]\s*)\S+"
)


def configure_logging(options: TelemetryOptions, stream: BinaryIO | None = None) -> None:
    """Send every line of the process through one format to `stream` (standard error)."""
    import structlog

    stream = stream if stream is not None else sys.stderr.buffer
    level = logging.getLevelNamesMapping()[options.log_level.upper()]
    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _describe_error,
        _mask_secrets,
    ]
    is_json = options.log_format == "json"
    end = _json_end() if is_json else _console_end(is_terminal=stream.isatty())
    structlog.configure(
        processors=[*common, *end],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.BytesLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[_name_library(is_json=is_json), *common],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *end, _decoded],
    )
    bridge = _Bridge(structlog.BytesLogger(stream))
    bridge.setFormatter(formatter)
    bridge.addFilter(RepeatFilter())
    logging.basicConfig(handlers=[bridge], level=level, force=True)
    logging.captureWarnings(capture=True)


def work_fields(
    position: tuple[str, int, int], tenant: str | None, traceparent: str | None
) -> dict[str, str]:
    """Return what every line about a record carries."""
    fields = {"position": "{}/{}/{}".format(*position)}
    if tenant is not None:
        fields["tenant"] = tenant
    if (trace_id := trace_id_of(traceparent)) is not None:
        fields["trace_id"] = trace_id
    return fields


class RepeatFilter(logging.Filter):
    """
    Lets a library say the same thing once in ten seconds, and counts the rest.

    aiokafka writes 78 error lines a second while a broker is away.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a line is written."""
        template = (record.name, str(record.msg))
        now = self._clock()
        said_at, suppressed = self._said.pop(template, (float("-inf"), 0))
        if now - said_at < REPEAT_SECONDS:
            self._said[template] = (said_at, suppressed + 1)
            return False
        self._said[template] = (now, 0)
        if len(self._said) > TEMPLATES:
            del self._said[next(iter(self._said))]
        if suppressed:
            record.msg = f"{record.getMessage()} ({suppressed} more like it)"
            record.args = ()
        return True


class _Bridge(logging.Handler):
    """Writes lines of the standard library's logging where structlog writes its own."""

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        self._logger.msg(self.format(record).encode("utf-8", "backslashreplace"))


def _json_end() -> list[Processor]:
    import structlog

    return [
        _name_action,
        _in_order,
        structlog.processors.JSONRenderer(serializer=_serialized),
    ]


def _console_end(*, is_terminal: bool) -> list[Processor]:
    import structlog

    renderer = structlog.dev.ConsoleRenderer(colors=is_terminal, timestamp_key="time")
    return [_error_as_text, renderer, _encoded]


def _serialized(event: Event, default: Any = None, **_: Any) -> bytes:
    try:
        return msgspec.json.encode(event, enc_hook=default)
    except (TypeError, ValueError, OverflowError, RecursionError):
        # A lone surrogate, a huge number, a key that is no string: the line is more important.
        shown = {
            str(name): value if isinstance(value, str | float) else repr(value)
            for name, value in event.items()
        }
        return json.dumps(shown).encode()


def _encoded(_logger: Any, _method: str, line: Any) -> bytes:
    return str(line).encode("utf-8", "backslashreplace")


def _decoded(_logger: Any, _method: str, line: Any) -> str:
    return line.decode() if isinstance(line, bytes) else str(line)


def _name_action(_logger: Any, _method: str, event: Event) -> Event:
    """The event's text is for people; without an `action` of its own it is that as well."""
    text = event.pop("event")
    if "action" in event:
        event["message"] = text
    else:
        event["action"] = text
    return event


def _in_order(_logger: Any, _method: str, event: Event) -> Event:
    names = ("time", "level", "action", "message")
    first = {name: event.pop(name) for name in names if name in event}
    return {**first, **event}


def _name_library(*, is_json: bool) -> Processor:
    def name(_logger: Any, _method: str, event: Event) -> Event:
        record = event["_record"]
        event["logger"] = record.name
        event["level"] = record.levelname.lower()
        if is_json:
            event["action"] = "library_log"
        return event

    return name


def _mask_secrets(_logger: Any, _method: str, event: Event) -> Event:
    for name, value in event.items():
        if not name.startswith("_"):  # structlog's own
            event[name] = _masked(name, value)
    return event


def _masked(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if name in _TEXT_NAMES or _SECRET_NAME.search(name):
        return MASK
    if isinstance(value, str):
        return _SECRET_IN_STRING.sub(_mask_match, value)
    if isinstance(value, Mapping):
        return {str(key): _masked(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_masked("", inner) for inner in value]
    return value


def _mask_match(match: re.Match[str]) -> str:
    if match["url"] is not None:
        return f"://{MASK}@"
    return (match["scheme"] or match["name"] or "") + MASK


def _describe_error(_logger: Any, _method: str, event: Event) -> Event:
    given = event.pop("exc_info", None)
    error = given[1] if isinstance(given, tuple) else given
    if given is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        event["error"] = type(error).__qualname__
        event["error_message"] = _message(error)
        event["causes"] = _causes(error)
        event["traceback"] = [
            f"{frame.filename}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)[-STACK_FRAMES:]
        ]
    return event


def _error_as_text(_logger: Any, _method: str, event: Event) -> Event:
    if "traceback" in event:
        name, message = event.pop("error"), event.pop("error_message")
        frames, causes = event.pop("traceback"), event.pop("causes")
        because = [f"because of {cause}" for cause in causes]
        event["exception"] = "\n".join([*frames, f"{name}: {message}", *because])
    return event


def _causes(error: BaseException) -> list[str]:
    """Name what led to an error, and what a group of errors holds."""
    found: list[str] = []
    waiting = [error]
    while waiting and len(found) < CAUSES:
        current = waiting.pop(0)
        inner = list(current.exceptions) if isinstance(current, BaseExceptionGroup) else []
        cause = current.__cause__ or (
            None if current.__suppress_context__ else current.__context__
        )
        nearer = [*inner, *([cause] if cause is not None else [])]
        found += [f"{type(one).__qualname__}: {_message(one)}" for one in nearer]
        waiting += nearer
    return found[:CAUSES]


def _message(error: BaseException) -> str:
    # Classes 22 and 23 are about values, and both PostgreSQL and asyncpg quote them.
    if str(getattr(error, "sqlstate", None))[:2] in {"22", "23"}:
        return f"SQLSTATE {getattr(error, 'sqlstate', '')}"
    lines = str(error).splitlines()
    return lines[0][:MESSAGE_CHARACTERS] if lines else ""
