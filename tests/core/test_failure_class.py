"""Every class of failure says what the worker does about it."""

import pytest

from worker.core.failure_class import FailureClass


@pytest.mark.parametrize(
    "one", [FailureClass.QUOTA, FailureClass.TRANSIENT, FailureClass.CONFIG]
)
def test_what_concerns_all_is_said_to_dead_letter_nothing(one):
    assert "nothing is dead-lettered" in one.reaction
