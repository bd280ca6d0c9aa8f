"""
The Kubernetes files are hardened, and agree with the worker.

That what is rendered is current is shown where all generated files are compared
(`tests/schemas/test_specification.py`).
"""

import json
import re
from typing import Any

import pytest
from jsonschema import ValidationError, validate

from tests.support import manifests, watching
from worker.adapters.admin_http import PATHS
from worker.cli.setting_names import all_settings
from worker.config import KafkaOptions, TelemetryOptions

VALUES = manifests.values()
EVERYTHING = [
    *(one for name in manifests.BASE for one in manifests.rendered(name, VALUES)),
    *(
        one
        for name, changes in manifests.COMPONENTS.items()
        for one in manifests.rendered(name, manifests.values(**changes))
    ),
]


def of(kind: str) -> dict[str, Any]:
    (found,) = [one for one in EVERYTHING if one["kind"] == kind]
    return found


PODS = [of(kind)["spec"]["template"]["spec"] for kind in ("Deployment", "Job")]
WORKER = PODS[0]["containers"][0]


@pytest.mark.parametrize("name", manifests.COMPONENTS)
def test_what_needs_foreign_kinds_is_off_by_default(name: str) -> None:
    assert manifests.rendered(name, VALUES) == []


@pytest.mark.parametrize("pod", PODS, ids=["workers", "migrate"])
def test_pods_are_restricted(pod: dict[str, Any]) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]


def test_settings_are_those_of_the_worker() -> None:
    known = {one.variable for one in all_settings().values()}
    names = {name for name in of_configuration() if name.startswith("EMBEDFLEET_")}
    assert names <= known


def of_configuration() -> dict[str, str]:
    first, second = [one["data"] for one in EVERYTHING if one["kind"] == "ConfigMap"]
    assert first == second
    return first


def test_secrets_come_by_reference_to_where_the_settings_look() -> None:
    names = {one["name"] for one in WORKER["env"]}
    settings = of_configuration()
    assert names == {
        settings["EMBEDFLEET_DATABASE_PASSWORD_VARIABLE"],
        settings["EMBEDFLEET_EMBEDDING_API_KEY_VARIABLE"],
    }
    assert all("secretKeyRef" in one["valueFrom"] for one in WORKER["env"])
    assert not [one for one in EVERYTHING if one["kind"] == "Secret"]
    assert not any(re.search(r"//[^/@]+:[^/@]+@", value) for value in settings.values())


def test_probes_ask_the_admin_port() -> None:
    (port,) = WORKER["ports"]
    assert port["containerPort"] == TelemetryOptions().admin_port
    probes = {name: WORKER[f"{name}Probe"] for name in ("liveness", "readiness", "startup")}
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {"liveness": "/livez", "readiness": "/readyz", "startup": "/livez"}
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {port["name"]}
    assert set(paths.values()) <= set(PATHS)


def test_a_worker_has_more_time_to_stop_than_it_takes_to_drain() -> None:
    assert PODS[0]["terminationGracePeriodSeconds"] > KafkaOptions().drain_seconds + 10


def test_everything_that_selects_pods_selects_the_workers() -> None:
    labels = of("Deployment")["spec"]["template"]["metadata"]["labels"]
    for selector in (
        of("Deployment")["spec"]["selector"]["matchLabels"],
        of("Service")["spec"]["selector"],
        of("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        of("PodMonitor")["spec"]["selector"]["matchLabels"],
        of("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(one["labelSelector"]["matchLabels"] for one in PODS[0]["topologySpreadConstraints"]),
    ):
        assert selector.items() <= labels.items()
    # The migrations' pods are no workers.
    job = of("Job")["spec"]["template"]["metadata"]["labels"]
    assert not of("Service")["spec"]["selector"].items() <= job.items()


def test_a_roll_out_and_an_emptied_node_take_one_worker_at_a_time() -> None:
    spec = of("Deployment")["spec"]
    assert spec["strategy"]["type"] == "RollingUpdate"
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert of("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    spread = {one["topologyKey"] for one in PODS[0]["topologySpreadConstraints"]}
    assert spread == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}


def test_the_network_policy_lets_out_what_the_settings_name() -> None:
    spec = of("NetworkPolicy")["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    (admin,) = spec["ingress"][0]["ports"]
    assert admin["port"] == TelemetryOptions().admin_port
    out = {port["port"] for rule in spec["egress"] for port in rule["ports"]}
    settings = of_configuration()
    (kafka,) = re.findall(r":(\d+)$", settings["EMBEDFLEET_KAFKA_BOOTSTRAP_SERVERS"])
    (database,) = re.findall(r":(\d+)/", settings["EMBEDFLEET_DATABASE_URL"])
    assert settings["EMBEDFLEET_EMBEDDING_URL"].startswith("https://")
    assert {53, int(kafka), int(database), 443} <= out


def test_migrations_come_before_the_workers() -> None:
    annotations = of("Job")["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert PODS[1]["containers"][0]["args"] == ["migrate", "up"]


def test_what_scales_stays_within_the_partitions() -> None:
    scaled = [one["spec"] for one in EVERYTHING if one["kind"] == "ScaledObject"]
    assert len(scaled) == 2
    for spec in scaled:
        assert spec["maxReplicaCount"] == VALUES["partitions"]
        assert spec["scaleTargetRef"] == {"name": of("Deployment")["metadata"]["name"]}
    by_advice, by_lag = (spec["triggers"][0] for spec in scaled)
    assert by_advice["metadata"]["url"].endswith(
        f":{WORKER['ports'][0]['containerPort']}/scale"
    )
    assert by_advice["metadata"]["valueLocation"] == "replicas"
    settings = of_configuration()
    assert by_lag["metadata"]["consumerGroup"] == settings["EMBEDFLEET_KAFKA_GROUP"]
    # There may be several topics, and the trigger takes one, or all of the group.
    assert "topic" not in by_lag["metadata"]
    assert all(isinstance(value, str) for value in by_lag["metadata"].values())


@pytest.mark.parametrize("by", ["advice", "lag"])
def test_who_scales_is_alone_to_say_how_many_workers_there_are(by: str) -> None:
    (workers,) = deployments(scaling={"by": by})
    assert "replicas" not in workers["spec"]
    assert deployments()[0]["spec"]["replicas"] == VALUES["replicas"]
    component = f"compose/kubernetes/components/scaling-by-{by}/kustomization.yaml"
    assert "/spec/replicas" in manifests.generated()[component]


def deployments(**changes: dict[str, Any]) -> list[dict[str, Any]]:
    rendered = manifests.rendered("workers", manifests.values(**changes))
    return [one for one in rendered if one["kind"] == "Deployment"]


def test_a_fleet_that_cannot_be_asked_stays_as_it_is() -> None:
    scaled = [one["spec"] for one in EVERYTHING if one["kind"] == "ScaledObject"]
    assert not any("fallback" in spec for spec in scaled)


def test_other_settings_are_other_pods() -> None:
    (before,), (after,) = (
        deployments(),
        deployments(settings={"EMBEDFLEET_KAFKA_TOPICS": "others"}),
    )
    assert before["spec"]["template"] != after["spec"]["template"]
    assert before["spec"]["selector"] == after["spec"]["selector"]


def test_more_secrets_files_and_annotations_can_be_given() -> None:
    given: dict[str, Any] = {
        "secrets": {"KAFKA_PASSWORD": {"name": "kafka", "key": "password"}},
        "podAnnotations": {"sidecar": "no"},
    }
    chosen = manifests.values(**given) | {
        "volumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "volumeMounts": [{"name": "ca", "mountPath": "/ca"}],
    }
    for name in ("workers", "migrate"):
        pod = next(
            one["spec"]["template"]
            for one in manifests.rendered(name, chosen)
            if "template" in one.get("spec", {})
        )
        (container,) = pod["spec"]["containers"]
        assert "KAFKA_PASSWORD" in {one["name"] for one in container["env"]}
        assert [one["name"] for one in container["volumeMounts"]] == ["tmp", "ca"]
        assert [one["name"] for one in pod["spec"]["volumes"]] == ["tmp", "ca"]
        if name == "workers":
            assert pod["metadata"]["annotations"]["sidecar"] == "no"


def test_kustomize_has_the_same_settings() -> None:
    text = manifests.generated()["compose/kubernetes/base/settings.env"]
    pairs = [line.split("=", 1) for line in text.splitlines() if not line.startswith("#")]
    assert dict(pairs) == of_configuration()


def test_a_pod_is_asked_over_ipv4_and_ipv6() -> None:
    assert of_configuration()["EMBEDFLEET_TELEMETRY_ADMIN_HOST"] == "::"


SCHEMA = json.loads((manifests.CHART / "values.schema.json").read_text(encoding="utf-8"))


def test_the_values_are_as_their_schema_has_them() -> None:
    validate(VALUES, SCHEMA)
    assert VALUES.keys() <= SCHEMA["properties"].keys()


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("scaling", {"by": "both"}),
        ("scaling", {"advice": True}),
        ("settings", {"EMBEDFLEET_DATABASE_POOL_MAX": 30}),
        ("secrets", {"KAFKA_PASSWORD": "a password"}),
        ("monitoring", {"enable": True}),
    ],
)
def test_values_that_mean_nothing_are_refused(section: str, change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        validate(manifests.values(**{section: change}), SCHEMA)


def test_the_rules_are_those_of_prometheus() -> None:
    assert of("PrometheusRule")["spec"] == watching.load(watching.ALERTS)
