"""The compose file is well-formed, agrees with the worker, and holds no secret."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.support.watching import ROOT
from worker.cli.setting_names import all_settings
from worker.config import KafkaOptions
from worker.embedded.wordllama_model import DIMENSIONS, NAME

COMPOSE = ROOT / "compose"
TEXT = (COMPOSE / "compose.yaml").read_text(encoding="utf-8")
FILE = yaml.safe_load(TEXT)
SERVICES = FILE["services"]
OURS = ["embeddings", "migrate", "topics", "collection", "worker"]
# compose-spec.json is of the Go module github.com/compose-spec/compose-go (Apache-2.0).
SCHEMA = json.loads(Path(__file__).with_name("compose-spec.json").read_text(encoding="utf-8"))


def interpolated(text: str) -> str:
    """Put the defaults in, as compose does where nothing is set."""
    return re.sub(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}", lambda found: found[2] or "", text)


def test_it_is_what_the_specification_says() -> None:
    jsonschema.Draft7Validator(SCHEMA).validate(yaml.safe_load(interpolated(TEXT)))


@pytest.mark.parametrize("service", OURS)
def test_what_is_ours_is_hardened(service: str) -> None:
    found = SERVICES[service]
    assert found["read_only"] is True
    assert found["tmpfs"]
    assert found["pids_limit"]


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_has_a_profile_a_limit_no_privileges_and_no_public_port(
    service: str,
) -> None:
    found = SERVICES[service]
    assert found["profiles"][0] in {"core", "observability", "ui"}
    assert found["mem_limit"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert found["cap_drop"] == ["ALL"]
    assert service == "postgres" or "cap_add" not in found
    for port in found.get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_kafka_leaves_no_volume_without_a_name_behind() -> None:
    assert set(SERVICES["kafka"]["tmpfs"]) == {"/etc/kafka/secrets", "/mnt/shared/config"}


def test_workers_can_be_scaled() -> None:
    worker = SERVICES["worker"]
    assert worker["deploy"]["replicas"] == 2
    assert "ports" not in worker
    assert "container_name" not in worker


def test_a_worker_has_more_time_to_stop_than_it_takes_to_drain() -> None:
    grace = int(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))
    assert grace > KafkaOptions().drain_seconds + 10


def test_workers_begin_when_what_they_need_is_there() -> None:
    waits = SERVICES["worker"]["depends_on"]
    assert {name: one["condition"] for name, one in waits.items()} == {
        "kafka": "service_healthy",
        "embeddings": "service_healthy",
        "topics": "service_completed_successfully",
        "collection": "service_completed_successfully",
    }
    for service in ("kafka", "postgres"):
        assert SERVICES[service]["healthcheck"]["test"]
        assert SERVICES[service]["stop_grace_period"] == "1m"


def test_every_setting_is_one_of_the_worker() -> None:
    known = {one.variable for one in all_settings().values()}
    for service in OURS:
        names = SERVICES[service].get("environment", {})
        assert {name for name in names if name.startswith("EMBEDFLEET_")} <= known


def test_a_worker_for_each_partition_leaves_connections_to_others() -> None:
    worker = SERVICES["worker"]["environment"]
    topics = SERVICES["topics"]["command"]
    partitions = int(topics[topics.index("--partitions") + 1])
    (most,) = (
        int(one.removeprefix("-cmax_connections="))
        for one in SERVICES["postgres"]["command"]
        if one.startswith("-cmax_connections=")
    )
    assert partitions * int(worker["EMBEDFLEET_DATABASE_POOL_MAX"]) + 20 <= most


def test_two_indexes_can_be_built_at_once_in_the_shared_memory() -> None:
    most = int(SERVICES["worker"]["environment"]["EMBEDFLEET_INDEX_MAX_MEMORY_BYTES"])
    shared = int(SERVICES["postgres"]["shm_size"].removesuffix("gb")) * 1024**3
    assert 2 * most < shared


def test_the_collection_has_a_model_that_the_embedding_server_knows() -> None:
    shown = interpolated(json.dumps(SERVICES["collection"]["command"]))
    model, dimensions = re.findall(r"--(?:model|dimensions)=([\w-]+)", shown)
    assert model == NAME
    assert int(dimensions) in DIMENSIONS


def test_postgres_keeps_its_data_where_version_18_has_it() -> None:
    assert "pg18" in SERVICES["postgres"]["image"]
    assert SERVICES["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]


def test_no_secret_is_in_a_file() -> None:
    example = (COMPOSE / ".env.example").read_text(encoding="utf-8")
    for name, value in re.findall(
        r"^#? ?(\w*(?:PASSWORD|KEY)\w*)=(.*)$", example, re.MULTILINE
    ):
        assert value == "", name
    for found in re.findall(r"PASSWORD: (.+)", TEXT):
        assert found.startswith("${POSTGRES_PASSWORD:?")
    # Grafana has an administrator whose password everybody knows.
    assert SERVICES["grafana"]["environment"]["GF_AUTH_BASIC_ENABLED"] == "false"
    assert "/compose/.env" in (ROOT / ".gitignore").read_text(encoding="utf-8")


def test_what_is_mounted_is_there() -> None:
    mounts = [
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
    ]
    for mount in mounts:
        if mount.startswith("."):
            assert (COMPOSE / mount).exists(), mount
        else:
            assert mount in FILE["volumes"]


def test_every_variable_that_can_be_given_has_a_default_or_says_that_it_is_missing() -> None:
    for name, rest in re.findall(r"\$\{(\w+)([^}]*)\}", TEXT):
        assert rest.startswith((":-", ":?")), name


def test_what_a_user_may_want_to_change_is_in_the_example() -> None:
    example = (COMPOSE / ".env.example").read_text(encoding="utf-8")
    named = dict(re.findall(r"^#? ?([A-Z_]+)=(.*)$", example, re.MULTILINE))
    asked = dict(re.findall(r"\$\{(\w+)(?::-([^}]*))?", TEXT))
    images = {name for name in asked if name.endswith(("_TAG", "_IMAGE"))}
    assert set(asked) - images == set(named) - {"COMPOSE_PROFILES"}
    for name, shown in named.items():
        if name.endswith("_PORT") or name == "COLLECTION":
            assert shown == asked[name]
