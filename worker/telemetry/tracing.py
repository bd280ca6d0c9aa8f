"""
Spans: one per batch, with links to the sampled traces of its records.

A trace that nobody keeps cannot be looked at, and a link costs more than all other telemetry.

Without an exporter nothing is recorded and nothing is paid. No span carries a text, a key, or
an exception's message.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    Span,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
)

Attributes = Mapping[str, str | int | float | bool]

MAX_LINKS = 128  # the SDK's own limit; a span with more is cut anyway

# W3C Trace Context 1: version ff is invalid, later ones than 00 may append fields.
_TRACEPARENT = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})"
    r"-(?P<span>(?!0{16})[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-[!-~]*)?"
)


_ODD = frozenset("13579bdf")


def trace_id_of(traceparent: str | None) -> str | None:
    """Return the trace id of a W3C `traceparent`, None where it is not a valid one."""
    match = _match(traceparent)
    return match["trace"] if match is not None else None


def span_context_of(traceparent: str | None) -> SpanContext | None:
    """Return what a `traceparent` refers to; by hand, in a third of the propagator's time."""
    match = _match(traceparent)
    if match is None:
        return None
    return SpanContext(
        trace_id=int(match["trace"], 16),
        span_id=int(match["span"], 16),
        is_remote=True,
        trace_flags=TraceFlags(int(match["flags"], 16)),
    )


def _match(traceparent: str | None) -> re.Match[str] | None:
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent is not None else None
    if match is not None and match["version"] == "00" and match["more"] is not None:
        return None
    return match


def current_traceparent() -> str | None:
    """Return the `traceparent` of the current span, None where there is none."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


class Tracing:
    """
    Where spans are made; without a tracer, nowhere.

        >>> traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        >>> with Tracing().batch_span("store", [traceparent]) as span:
        ...     span.is_recording()
        False
    """

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer

    @contextmanager
    def batch_span(
        self,
        name: str,
        traceparents: Iterable[str | None] = (),
        attributes: Attributes | None = None,
    ) -> Iterator[Span]:
        """Record what happens to many records at once, linked to their sampled traces."""
        if self._tracer is None:
            yield INVALID_SPAN
            return
        with self._tracer.start_as_current_span(
            name,
            attributes=attributes,
            links=_links(traceparents),
            record_exception=False,  # its message may quote what must not be exported
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except BaseException as error:
                _fail(span, type(error).__name__)
                raise


def _links(traceparents: Iterable[str | None]) -> list[Link]:
    links: list[Link] = []
    for traceparent in dict.fromkeys(traceparents):
        # Most are not sampled, and that shows in one character: the flags' last digit is odd.
        if traceparent is None or traceparent[54:55] not in _ODD:
            continue
        context = span_context_of(traceparent)
        if context is not None:
            links.append(Link(context))
        if len(links) == MAX_LINKS:
            break
    return links


def _fail(span: Span, what: str) -> None:
    span.set_attribute("error.type", what)  # OpenTelemetry's convention for it
    span.set_status(Status(StatusCode.ERROR))
