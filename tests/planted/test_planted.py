"""A harness that finds nothing has to find what is planted, for the reason that it was."""

import gc

import pytest

from tests.planted.runs import Servers, signs
from tests.planted.table import TABLE

ROWS = [
    pytest.param(row, caught, id=f"{row.number}-{number}")
    for row in TABLE
    for number, caught in enumerate(row.caught)
]
IN_MEMORY = [row for row in ROWS if not row.values[1].run.real]
ON_SERVERS = [row for row in ROWS if row.values[1].run.real]


def runs_of(rows):
    """Each run once, named by its test."""
    runs = {row.values[1].run.where: row.values[1].run for row in rows}
    return [pytest.param(run, id=where.rpartition("::")[2]) for where, run in runs.items()]


@pytest.fixture(autouse=True)
def cleaned():
    """What a red run leaves behind is collected here, and not in a neighbour."""
    yield
    gc.collect()


@pytest.mark.parametrize(("row", "caught"), IN_MEMORY)
def test_a_planted_bug_turns_a_run_red_by_its_sign(row, caught, monkeypatch):
    row.plant(monkeypatch)
    with pytest.raises((Exception, pytest.fail.Exception)) as raised:
        caught.run.live()
    found = list(signs(raised.value))
    assert any(caught.sign in one for one in found), found


@pytest.mark.real
@pytest.mark.parametrize(("row", "caught"), ON_SERVERS)
async def test_a_planted_bug_turns_a_run_on_real_servers_red_by_its_sign(
    row, caught, kafka_options, database, create_topic, monkeypatch
):
    row.plant(monkeypatch)
    servers = Servers(kafka_options, database, create_topic)
    with pytest.raises((Exception, pytest.fail.Exception)) as raised:
        await caught.run.live(servers)
    found = list(signs(raised.value))
    assert any(caught.sign in one for one in found), found


@pytest.mark.parametrize("run", runs_of(IN_MEMORY))
def test_without_a_bug_the_same_run_is_green(run):
    run.live()


@pytest.mark.real
@pytest.mark.parametrize("run", runs_of(ON_SERVERS))
async def test_without_a_bug_the_same_run_on_real_servers_is_green(
    run, kafka_options, database, create_topic
):
    await run.live(Servers(kafka_options, database, create_topic))


def test_every_bug_that_was_asked_for_is_planted():
    numbers = [*(f"R{n}" for n in range(1, 21)), *(f"C{n}" for n in range(13))]
    assert [row.number for row in TABLE] == numbers
