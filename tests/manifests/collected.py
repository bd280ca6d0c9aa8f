"""What an OpenTelemetry Collector printed of the spans and metrics that it was sent."""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

_SPAN = re.compile(r"(?ms)^Span #\d+\n(?P<body>.*?)(?=^Span #\d+\n|^ResourceSpans|^\S*\t|\Z)")
_FIELD = re.compile(r"(?m)^ {4}(?P<name>[\w ]+?) *: (?P<value>\S*)$")
_LINK = re.compile(r"(?m)^SpanLink #\d+\n *-> Trace ID: (?P<trace>\w+)\n *-> ID: (?P<span>\w+)")
_METRIC = re.compile(r"(?m)^ *-> Name: (embedfleet\.\w+)$")


class Span(NamedTuple):
    """A span as it arrived; `links` are trace and span ids."""

    name: str
    trace: str
    span: str
    links: tuple[tuple[str, str], ...]


def spans(log_file: Path) -> list[Span]:
    """Return all spans that were printed so far (debug exporter, detailed)."""
    found = []
    for match in _SPAN.finditer(log_file.read_text(encoding="utf-8")):
        body = match["body"]
        fields = {one["name"]: one["value"] for one in _FIELD.finditer(body)}
        links = tuple((one["trace"], one["span"]) for one in _LINK.finditer(body))
        found.append(Span(fields["Name"], fields["Trace ID"], fields["ID"], links))
    return found


def metrics(log_file: Path) -> Counter[str]:
    """Return the metrics of ours that were printed so far, and how often each."""
    return Counter(_METRIC.findall(log_file.read_text(encoding="utf-8")))
