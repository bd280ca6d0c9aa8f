"""How long the rest of a job takes follows from what was done since it was looked at first."""

import pytest

from worker.core.progress import Pace


@pytest.mark.parametrize(
    ("now", "share", "left_seconds"),
    [
        (110.0, 0.7, 6.0),
        (110.0, 1.0, 0.0),
        (102.0, 0.4, 6.0),
        (101.9, 0.4, None),  # a pace of so short a time says nothing
        (110.0, 0.2, None),  # and neither does one of nothing
        (110.0, 0.1, None),
        (110.0, None, None),
    ],
)
def test_the_rest_takes_as_long_as_at_the_pace_so_far(now, share, left_seconds):
    found = Pace(at=100.0, share=0.2).left_seconds(now, share)
    assert found == (left_seconds if left_seconds is None else pytest.approx(left_seconds))
