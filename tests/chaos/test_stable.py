"""
A small part of what `make chaos` does, with a fixed seed, in every run of the tests.

Nothing here depends on how fast the machine is: only on what happened, and in which order.
"""

import pytest

from tests.chaos import nemesis
from tests.chaos.world import run

pytestmark = pytest.mark.real

SEED = 5
PATIENCE_SECONDS = 240


@pytest.fixture
def seed():
    return SEED


async def test_commits_of_which_nobody_hears_are_found_done(make_world):
    def cut(world):
        return nemesis.unknown_commits(world, 30, patience_seconds=PATIENCE_SECONDS)

    await run(make_world(seats=1), [], cut)
