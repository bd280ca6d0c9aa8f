"""The images hold what they should, and run as nobody in particular."""

import re
import tomllib

import pytest

from tests.support.watching import ROOT
from worker.ops.health import LIMIT_SECONDS

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
STAGES = {
    found[2]: found[0]
    for found in re.finditer(
        r"^FROM (\S+) AS (\w[\w-]*)$(?:(?!^FROM ).*\n?)*", TEXT, re.MULTILINE
    )
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_worker_is_what_is_built_by_default() -> None:
    assert list(STAGES)[-1] == "worker"


@pytest.mark.parametrize("stage", ["base", "runtime"])
def test_the_base_can_be_pinned(stage: str) -> None:
    assert STAGES[stage].startswith("FROM ${PYTHON_IMAGE} ")


def test_it_runs_as_a_numbered_user_without_a_shell() -> None:
    assert re.search(r"^USER (\d+):\d+$", STAGES["runtime"], re.MULTILINE)[1] != "0"
    assert 'ENTRYPOINT ["embedfleet"]' in STAGES["worker"]
    assert 'CMD ["run"]' in STAGES["worker"]
    assert re.search(
        r'^HEALTHCHECK .*CMD \["embedfleet", "health"\]$', STAGES["worker"], re.MULTILINE
    )
    assert int(re.search(r"--timeout=(\d+)s", STAGES["worker"])[1]) > 4 * LIMIT_SECONDS
    assert "RUN" not in STAGES["worker"] + STAGES["runtime"]


def test_dependencies_come_by_their_hashes_and_before_the_code() -> None:
    base = STAGES["base"]
    assert "--require-hashes" in base
    assert "--constraints requirements.lock" in base
    assert "COPY pyproject.toml requirements.lock ./" in base
    assert "COPY worker" not in base
    assert "COPY worker worker" in STAGES["build"]


def test_what_is_downloaded_is_kept_for_the_next_build_and_out_of_the_image() -> None:
    steps = re.findall(r"^RUN (?:.*\\\n)*.*$", TEXT, re.MULTILINE)
    assert len(steps) == 4
    for step in steps:
        assert step.startswith("RUN --mount=type=cache,target=/root/.cache/")


@pytest.mark.parametrize("stage", ["worker", "embeddings"])
def test_an_image_says_what_it_is(stage: str) -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', STAGES[stage]))
    assert labels["title"].startswith(PROJECT["name"])
    assert labels["description"].endswith(".")
    assert labels["licenses"] == PROJECT["license"]


def test_the_workers_image_has_no_extras() -> None:
    extras = [name for names in PROJECT["optional-dependencies"].values() for name in names]
    for extra in extras:
        name = re.match(r"[\w-]+", extra)[0]
        for stage in ("base", "build", "worker"):
            assert name not in STAGES[stage]


def test_its_version_is_that_of_the_project() -> None:
    assert f"ARG VERSION={PROJECT['version']}" in STAGES["worker"]
    chart = (ROOT / "compose/kubernetes/chart/Chart.yaml").read_text(encoding="utf-8")
    assert f"appVersion: {PROJECT['version']}" in chart
    values = (ROOT / "compose/kubernetes/chart/values.yaml").read_text(encoding="utf-8")
    assert f"tag: {PROJECT['version']}" in values


def test_nothing_but_what_it_is_made_of_goes_into_the_context() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", TEXT, re.MULTILINE))
    assert {name for names in copied for name in names.split()} == allowed
