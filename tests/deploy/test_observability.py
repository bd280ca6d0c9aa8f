"""Alerts and dashboard name metrics that there are, and paragraphs that help."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support.manifests import ALERTS, ROOT
from worker.telemetry.instruments import INSTRUMENTS, Instrument, Kind

FOLDER = ALERTS.parent
RULES = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"][0]["rules"]
DASHBOARD = json.loads((FOLDER / "grafana/dashboards/embedfleet.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Of Prometheus itself, about whom it scrapes.
SCRAPED = {"instance", "job", "le"}


def series(instrument: Instrument) -> Iterator[str]:
    name = instrument.prometheus_name
    if instrument.kind in {Kind.HISTOGRAM, Kind.BUCKETS}:
        yield from (f"{name}_bucket", f"{name}_sum", f"{name}_count")
    else:
        yield name


LABELS = {name: set(one.attributes) for one in INSTRUMENTS for name in series(one)}
EXPRESSIONS = [
    *((rule["alert"], rule["expr"]) for rule in RULES),
    *((panel["title"], one["expr"]) for panel in PANELS for one in panel["targets"]),
]


@pytest.mark.parametrize(("name", "expression"), EXPRESSIONS)
def test_metrics_and_labels_are_those_of_the_instruments(name: str, expression: str) -> None:
    metrics = set(re.findall(r"\bembedfleet_\w+", expression))
    assert metrics <= set(LABELS)
    assert metrics or "up{" in expression
    grouped = re.findall(r"\bby \(([^)]*)\)", expression)
    matched = re.findall(r"\{([^}]*)\}", expression)
    used = {label.strip() for labels in grouped for label in labels.split(",")}
    used |= {label for labels in matched for label in re.findall(r"(\w+)=", labels)}
    assert used <= SCRAPED.union(*(LABELS[metric] for metric in metrics))


def test_counters_are_only_read_as_rates_and_increases() -> None:
    counters = [name for name in LABELS if name.endswith(("_total", "_bucket"))]
    for name, expression in EXPRESSIONS:
        for counter in counters:
            for before in re.findall(rf"(\w+\()?{counter}\b", expression):
                assert before in {"rate(", "increase("}, name


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_names_a_paragraph_of_the_runbook(rule: dict[str, Any]) -> None:
    assert rule["annotations"]["runbook"] == f"README.md#{rule['alert'].lower()}"
    assert re.search(rf"^#### {rule['alert']}$", README, re.MULTILINE)
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert rule["annotations"]["summary"]


def test_every_paragraph_of_the_runbook_belongs_to_an_alert() -> None:
    assert re.findall(r"^#### (Embedfleet\w+)$", README, re.MULTILINE) == [
        rule["alert"] for rule in RULES
    ]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panels_say_what_they_show_and_in_what(panel: dict[str, Any]) -> None:
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        places = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not places & taken
        assert at["x"] + at["w"] <= 24
        taken |= places


def test_provisioning_points_at_what_is_mounted() -> None:
    compose = yaml.safe_load((ROOT / "compose/compose.yaml").read_text(encoding="utf-8"))
    mounts = dict(
        volume.split(":")[:2]
        for service in ("prometheus", "grafana")
        for volume in compose["services"][service]["volumes"]
    )
    inside = {target: source for source, target in mounts.items()}
    provider = yaml.safe_load(
        (FOLDER / "grafana/provisioning/dashboards/embedfleet.yaml").read_text("utf-8")
    )
    assert inside[provider["providers"][0]["options"]["path"]].endswith("grafana/dashboards")
    prometheus = yaml.safe_load((FOLDER / "prometheus.yaml").read_text(encoding="utf-8"))
    assert [inside[path] for path in prometheus["rule_files"]] == [
        "./observability/alerts.yaml"
    ]
    assert "job_name: embedfleet" in (FOLDER / "prometheus.yaml").read_text(encoding="utf-8")
    datasource = yaml.safe_load(
        (FOLDER / "grafana/provisioning/datasources/prometheus.yaml").read_text("utf-8")
    )["datasources"][0]
    assert datasource["uid"] == DASHBOARD["templating"]["list"][0]["current"]["value"]
