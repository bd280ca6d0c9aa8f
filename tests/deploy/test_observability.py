"""
What watches a fleet names what there is: metrics, labels, paragraphs, files, settings.

Needs no tool but Python; `make manifests` runs the queries on a real Prometheus.
"""

import re
from collections import Counter
from itertools import combinations
from pathlib import PurePosixPath

import pytest

from schemas.dead_letter import Reason
from tests.support import exposition, watching
from worker.core.lifecycle import COMPLETES, Phase
from worker.telemetry import INSTRUMENTS

README = (watching.ROOT / "README.md").read_text(encoding="utf-8")
EXPORTED = exposition.exported()
# What Prometheus makes itself.
KNOWN = EXPORTED | {
    "up": set(exposition.SCRAPE_LABELS),
    "ALERTS": {"alertname", "alertstate", "severity"},
}
QUERIES = watching.alert_queries() + watching.panel_queries()
RUNBOOK = README[README.index("### Runbook") : README.index("## How fast it is")]
PARAGRAPHS = dict(re.findall(r"(?ms)^#### (\w+)\n\n(.*?)(?=\n####|\Z)", RUNBOOK))

by_name = pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.of)
by_alert = pytest.mark.parametrize("rule", watching.alerts(), ids=lambda rule: rule["alert"])
by_panel = pytest.mark.parametrize("panel", watching.panels(), ids=lambda one: one["title"])


class TestQueries:
    @by_name
    def test_it_names_metrics_that_a_worker_exports(self, query):
        named = {selector.metric for selector in watching.selectors(query.expr)}
        assert named
        assert named <= set(KNOWN), named - set(KNOWN)

    @by_name
    def test_it_names_labels_that_its_metrics_have(self, query):
        found = watching.selectors(query.expr)
        for selector in found:
            labels = {label for label, _, _ in selector.matchers}
            assert labels <= KNOWN[selector.metric], selector
        together = set().union(*(KNOWN[selector.metric] for selector in found))
        assert watching.grouped_by(query.expr) <= together

    @by_name
    def test_it_compares_labels_with_values_that_occur(self, query):
        occurring = {
            "kind": {outcome.__name__.lower() for outcome in COMPLETES},
            "phase": {phase.value for phase in Phase},
            "reason": {reason.value for reason in Reason},
            "status": {"2xx", "3xx", "4xx", "429", "5xx", "none", "timeout"},
        }
        for selector in watching.selectors(query.expr):
            for label, _, value in selector.matchers:
                if label in occurring:
                    assert set(value.split("|")) <= occurring[label], selector

    @by_name
    def test_counters_are_read_by_their_growth_and_gauges_are_not(self, query):
        growth = r"(?:rate|increase|irate|resets)\(\s*(\w+)"
        grown = set(re.findall(growth, query.expr))
        named = {selector.metric for selector in watching.selectors(query.expr)}
        counters = {name for name in named if re.search(r"_(total|bucket|count|sum)$", name)}
        assert grown == counters

    def test_every_metric_of_a_worker_is_on_the_dashboard(self):
        shown = {
            selector.metric
            for query in watching.panel_queries()
            for selector in watching.selectors(query.expr)
        }
        bare = {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown}
        assert {row.prometheus_name for row in INSTRUMENTS} <= bare


class TestAlerts:
    @by_alert
    def test_it_names_its_paragraph_of_the_runbook(self, rule):
        assert rule["annotations"]["runbook"] == f"README.md#{rule['alert'].lower()}"
        assert rule["alert"] in PARAGRAPHS

    @by_alert
    def test_its_paragraph_says_what_it_means_how_to_see_it_and_what_to_do(self, rule):
        begins = re.findall(r"^\*\*(\w+)\*\* ", PARAGRAPHS[rule["alert"]], re.MULTILINE)
        assert begins == ["Means", "See", "Do"]

    @by_alert
    def test_it_says_what_is_the_matter_and_how_grave_it_is(self, rule):
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        assert rule["annotations"]["description"].endswith(".")

    @by_alert
    def test_its_summary_uses_labels_that_its_query_leaves(self, rule):
        used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        grouped = watching.grouped_by(rule["expr"])
        assert used <= (grouped or exposition.SCRAPE_LABELS)

    def test_names_are_unique_and_no_paragraph_is_about_an_alert_that_is_gone(self):
        names = [rule["alert"] for rule in watching.alerts()]
        assert len(set(names)) == len(names)
        assert set(PARAGRAPHS) == set(names)

    def test_each_has_a_story_in_which_it_fires(self):
        stories = watching.load(watching.STORIES)["tests"]
        by_rule = {
            asked["alertname"]
            for story in stories
            for asked in story.get("alert_rule_test", ())
            if asked["exp_alerts"]
        }
        by_series = {
            name
            for story in stories
            for asked in story.get("promql_expr_test", ())
            for sample in asked["exp_samples"]
            for name in re.findall(r'alertname="(\w+)"', sample["labels"])
        }
        assert by_rule | by_series == {rule["alert"] for rule in watching.alerts()}

    def test_links_between_paragraphs_lead_somewhere(self):
        headings = re.findall(r"(?m)^#+ (.+)$", README)
        plain = [re.sub(r"[^\w\- ]", "", heading).strip() for heading in headings]
        anchors = {heading.lower().replace(" ", "-") for heading in plain}
        linked = set(re.findall(r"\]\(#([^)]+)\)", README))
        assert linked <= anchors


class TestDashboard:
    @by_panel
    def test_a_newcomer_reads_what_it_shows(self, panel):
        assert panel["title"]
        assert panel["description"].endswith(".")
        if panel["type"] != "table":
            assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert target["legendFormat"] or panel["type"] == "table"

    @by_panel
    def test_its_data_come_from_the_chosen_source(self, panel):
        chosen = {"type": "prometheus", "uid": "${datasource}"}
        assert [panel["datasource"], *(one["datasource"] for one in panel["targets"])] == [
            chosen
        ] * (1 + len(panel["targets"]))

    @by_panel
    def test_its_legends_use_labels_that_its_queries_leave(self, panel):
        for target in panel["targets"]:
            used = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            grouped = watching.grouped_by(target["expr"])
            assert used <= (grouped or exposition.SCRAPE_LABELS)

    def test_panels_do_not_overlap_and_stay_within_the_width(self):
        cells = Counter()
        for panel in watching.dashboard()["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            cells.update(
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            )
        assert set(cells.values()) == {1}

    def test_numbers_titles_and_rows_are_told_apart(self):
        found = watching.dashboard()["panels"]
        assert len({panel["id"] for panel in found}) == len(found)
        titles = [panel["title"] for panel in watching.panels()]
        assert all(one != other for one, other in combinations(titles, 2))

    def test_the_dashed_lines_stand_where_the_alerts_begin(self):
        limits = {
            rule["alert"]: {float(one) for one in re.findall(r"> ([\d.]+)", rule["expr"])}
            for rule in watching.alerts()
        }
        lines = {
            panel["title"]: panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"]
            for panel in watching.panels()
            if panel["type"] == "timeseries"
        }
        for title, alert in {
            "Freshness": "EmbedfleetStale",
            "Time to drain": "EmbedfleetFallingBehind",
            "Oldest record in work": "EmbedfleetPartitionStuck",
            "Share of requests refused": "EmbedfleetThrottled",
            "Latency": "EmbedfleetProviderSlow",
            "Lag of the event loop": "EmbedfleetLoopLag",
        }.items():
            assert lines[title] in limits[alert], title


class TestFiles:
    def test_prometheus_finds_its_rules_and_scrapes_workers_and_collector(self):
        config = watching.load(watching.PROMETHEUS)
        for name in config["rule_files"]:
            assert watching.FOLDER.joinpath(name).is_file()
        jobs = {job["job_name"]: job for job in config["scrape_configs"]}
        (workers,) = jobs["embedfleet"]["dns_sd_configs"]
        assert (workers["names"], workers["port"]) == (["worker"], 9464)
        assert jobs["otel-collector"]["static_configs"] == [
            {"targets": ["otel-collector:8888"]}
        ]

    def test_compose_mounts_each_file_where_its_reader_looks_for_it(self):
        services = watching.load(watching.COMPOSE)["services"]
        mounts = {
            target: watching.COMPOSE.parent / source
            for name in ("otel-collector", "prometheus", "grafana")
            for source, target, *_ in (one.split(":") for one in services[name]["volumes"])
            if source.startswith("./")
        }
        (config,) = [place for place, source in mounts.items() if source == watching.PROMETHEUS]
        (rules,) = watching.load(watching.PROMETHEUS)["rule_files"]
        assert mounts[str(PurePosixPath(config).parent / rules)] == watching.ALERTS
        assert mounts["/var/lib/grafana/dashboards"] == watching.DASHBOARD.parent
        assert mounts["/etc/grafana/provisioning"] == watching.GRAFANA / "provisioning"
        assert watching.COLLECTOR in mounts.values()

    def test_alerts_about_missing_workers_name_the_job_that_is_scraped(self):
        jobs = {job["job_name"] for job in watching.load(watching.PROMETHEUS)["scrape_configs"]}
        named = {
            value
            for query in watching.alert_queries()
            for selector in watching.selectors(query.expr)
            for label, _, value in selector.matchers
            if label == "job"
        }
        assert named == {"embedfleet"}
        assert named <= jobs

    def test_the_collector_takes_what_workers_send_and_its_pipelines_are_whole(self):
        config = watching.load(watching.COLLECTOR)
        protocols = config["receivers"]["otlp"]["protocols"]
        assert protocols["http"]["endpoint"].endswith(":4318")
        assert protocols["grpc"]["endpoint"].endswith(":4317")
        assert set(config["service"]["pipelines"]) == {"traces", "metrics"}
        for pipeline in config["service"]["pipelines"].values():
            for kind, names in pipeline.items():
                assert set(names) <= set(config[kind])

    def test_grafana_is_provisioned_with_a_source_and_the_folder_of_the_dashboard(self):
        (source_file,) = (watching.GRAFANA / "provisioning" / "datasources").glob("*.yaml")
        (source,) = watching.load(source_file)["datasources"]
        assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
        interval = watching.load(watching.PROMETHEUS)["global"]["scrape_interval"]
        assert source["jsonData"]["timeInterval"] == interval
        (provider_file,) = (watching.GRAFANA / "provisioning" / "dashboards").glob("*.yaml")
        (provider,) = watching.load(provider_file)["providers"]
        assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
        assert [path.name for path in watching.DASHBOARD.parent.iterdir()] == [
            "embedfleet.json"
        ]


@pytest.mark.parametrize(
    ("expr", "metrics"),
    [
        ("a_total", {"a_total"}),
        ('sum by (x, y) (rate(a_total{b="c or d", e=~"f{2}"}[5m])) > 0.5', {"a_total"}),
        ("a / on (z) group_left (q) b unless c offset 5m < Inf", {"a", "b", "c"}),
        ('absent(up{job="x"} == 1) or vector(0)', {"up"}),
    ],
)
def test_a_query_is_read_as_prometheus_reads_it(expr, metrics):
    assert {selector.metric for selector in watching.selectors(expr)} == metrics


def test_matchers_and_groupings_are_read_with_their_values():
    (selector,) = watching.selectors('sum by (x, le) (a{b="c", d!~"e|f"})')
    assert selector.matchers == [("b", "=", "c"), ("d", "!~", "e|f")]
    assert watching.grouped_by('sum by (x, le) (a{b="c"}) and on (y) z') == {"x", "le", "y"}
