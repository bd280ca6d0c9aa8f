"""Fleets that are hurt for long, and what they claimed to bear: `make chaos` runs them."""

import pytest

from tests.support.fleet import Fleet
from tests.support.verdicts import Verdict, lines

RUNS = pytest.StashKey[dict[str, list[Verdict]]]()


def pytest_configure(config):
    config.stash[RUNS] = {}


def pytest_terminal_summary(terminalreporter, config):
    for name, verdicts in config.stash[RUNS].items():
        terminalreporter.section(name, sep="-")
        for line in lines(verdicts):
            terminalreporter.write_line(line)


@pytest.fixture
def verdicts(request) -> list[Verdict]:
    """The verdicts of this run: printed at the end, whatever they are; all must hold."""
    return request.config.stash[RUNS].setdefault(request.node.name, [])


@pytest.fixture
async def fleet(kafka_options, database, create_topic, tmp_path):
    """A fleet without workers on four partitions."""
    fleet = Fleet(
        kafka=kafka_options,
        database=database,
        topic=await create_topic(partitions=4),
        dead_letter_topic=await create_topic(),
        folder=tmp_path,
    )
    async with fleet:
        yield fleet
