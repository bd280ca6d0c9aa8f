"""
What watches a fleet, read from its files: alerts, panels, and the queries of both.

Of PromQL only what our queries use is understood, by plain patterns: which metrics a query
names, with which matchers, and which labels it groups and joins by.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose" / "compose.yaml"
FOLDER = ROOT / "compose" / "observability"
ALERTS = FOLDER / "alerts.yaml"
PROMETHEUS = FOLDER / "prometheus.yaml"
COLLECTOR = FOLDER / "otel-collector.yaml"
GRAFANA = FOLDER / "grafana"
STORIES = ROOT / "tests" / "manifests" / "alerts.test.yaml"
DASHBOARD = GRAFANA / "dashboards" / "embedfleet.json"

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_RANGE = re.compile(r"\[[^\]]*\]")
_SELECTOR = re.compile(r"\b([a-zA-Z_:][\w:]*)\b(?!\s*\()(?:\s*\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*("(?:[^"\\]|\\.)*")')
_WORDS = frozenset({"and", "or", "unless", "bool", "offset", "Inf", "NaN"})


class Query(NamedTuple):
    """One PromQL expression, and whose it is."""

    of: str
    expr: str


class Selector(NamedTuple):
    """A metric as a query names it: label, operator and value of each matcher."""

    metric: str
    matchers: list[tuple[str, str, str]]

    @property
    def text(self) -> str:
        """The series that it names, as a query of its own."""
        written = [f"{label}{how}{json.dumps(value)}" for label, how, value in self.matchers]
        return f"{self.metric}{{{', '.join(written)}}}"


def load(path: Path) -> Any:
    """Return what a YAML file says."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def alerts() -> list[dict[str, Any]]:
    """Return the alerts, as Prometheus reads them."""
    return [rule for group in load(ALERTS)["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """Return the dashboard, as Grafana reads it."""
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def panels() -> list[dict[str, Any]]:
    """Return its panels, without the titles of its rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def alert_queries() -> list[Query]:
    """Return the expression of each alert."""
    return [Query(rule["alert"], rule["expr"]) for rule in alerts()]


def panel_queries() -> list[Query]:
    """Return every expression of the dashboard: panels, annotations, variables."""
    found = dashboard()
    shown = [
        Query(panel["title"], target["expr"])
        for panel in panels()
        for target in panel["targets"]
    ]
    marks = [
        Query(mark["name"], mark["expr"])
        for mark in found["annotations"]["list"]
        if "expr" in mark
    ]
    choices = [
        Query(one["label"], _chosen_from(one["definition"]))
        for one in found["templating"]["list"]
        if one["type"] == "query"
    ]
    return shown + marks + choices


def selectors(expr: str) -> list[Selector]:
    """Return the metrics that a query names, with their matchers."""
    plain = _GROUPING.sub(" ", _RANGE.sub(" ", expr))
    strings: list[str] = []

    def put_away(match: re.Match[str]) -> str:
        strings.append(match[0])
        return f'"{len(strings) - 1}"'

    found = _SELECTOR.findall(_STRING.sub(put_away, plain))
    return [
        Selector(
            metric,
            [
                (label, how, json.loads(strings[int(json.loads(value))]))
                for label, how, value in _MATCHER.findall(matchers)
            ],
        )
        for metric, matchers in found
        if metric not in _WORDS
    ]


def grouped_by(expr: str) -> set[str]:
    """Return the labels by which a query groups or joins."""
    return {label.strip() for labels in _GROUPING.findall(expr) for label in labels.split(",")}


def _chosen_from(definition: str) -> str:
    match = re.fullmatch(r"label_values\((.+), (\w+)\)", definition)
    assert match, definition
    return f"group by ({match[2]}) ({match[1]})"
