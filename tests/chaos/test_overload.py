"""More documents than can be embedded."""

import pytest

from tests.chaos.overload import overload

pytestmark = [pytest.mark.chaos, pytest.mark.real]


async def test_ten_times_too_much_is_held_back(fleet, verdicts, seed):
    verdicts += await overload(fleet, seed)
    assert all(verdict.held for verdict in verdicts), verdicts
