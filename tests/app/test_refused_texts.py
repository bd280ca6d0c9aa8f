"""Texts that the provider refuses, on the whole stack from the stage to real HTTP."""

import pytest

from tests.bench import failure_policy


@pytest.mark.parametrize("poisons", range(1, failure_policy.MOST_POISONS + 1))
async def test_exactly_the_refused_of_64_are_dead_letters_within_the_bound_of_calls(poisons):
    verdict = await failure_policy.refused(poisons)
    assert verdict.held, verdict
