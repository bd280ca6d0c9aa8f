"""No interleaving of polls and completions commits past an offset in flight."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from worker.core.offsets import OffsetTracker


@pytest.mark.parametrize(
    ("steps", "committable"),
    [
        pytest.param([], 10, id="nothing polled: where it started"),
        pytest.param([("track", 10)], 10, id="in flight"),
        pytest.param([("track", 10), ("complete", 10)], 11, id="settled"),
        pytest.param([("track", 15)], 15, id="the gap in front of the first record is done"),
        pytest.param(
            [("track", 10), ("track", 11), ("complete", 11)], 10, id="out of order waits"
        ),
        pytest.param(
            [("track", 10), ("track", 11), ("complete", 11), ("complete", 10)],
            12,
            id="the hole closes and both are done",
        ),
        pytest.param(
            [("track", 10), ("track", 14), ("complete", 10)], 14, id="a gap between two records"
        ),
        pytest.param([("track", 10), ("advance", 15)], 10, id="markers behind one in flight"),
        pytest.param(
            [("track", 10), ("complete", 10), ("advance", 15)], 15, id="markers at the end"
        ),
        pytest.param([("advance", 15), ("advance", 12)], 15, id="advance never goes back"),
        pytest.param([("complete", 10)], 10, id="what was never tracked completes nothing"),
        pytest.param(
            [("complete", 10), ("track", 10)], 10, id="... and is not remembered either"
        ),
    ],
)
def test_the_committable_offset_is_the_lowest_that_is_not_settled(steps, committable):
    tracker = OffsetTracker(start=10)
    for method, offset in steps:
        getattr(tracker, method)(offset, *([0] if method == "track" else []))
    assert tracker.committable == committable


@pytest.mark.parametrize("offset", [9, 10, 11])
def test_an_offset_comes_once_and_in_the_order_of_the_log(offset):
    tracker = OffsetTracker(start=10)
    tracker.track(11, at=0)
    tracker.complete(11)
    with pytest.raises(ValueError, match=f"offset {offset} is below 12"):
        tracker.track(offset, at=0)
    assert (tracker.committable, tracker.tracked) == (12, 1)


def test_what_was_handed_out_as_a_gap_is_not_tracked_later():
    tracker = OffsetTracker(start=10)
    tracker.advance(15)
    with pytest.raises(ValueError, match="offset 14 is below 15"):
        tracker.track(14, at=0)


class Tracking(RuleBasedStateMachine):
    """Polls with gaps, markers and settlements in any order, against two plain sets."""

    @initialize(start=st.integers(0, 2**40))
    def begin(self, start: int) -> None:
        self.tracker = OffsetTracker(start)
        self.handed_out = start
        self.tracked: set[int] = set()
        self.settled: set[int] = set()
        self.shown = start

    @rule(gaps=st.lists(st.integers(0, 3), max_size=4))
    def poll(self, gaps: list[int]) -> None:
        for gap in gaps:
            offset = self.handed_out + gap
            self.tracker.track(offset, at=offset)
            self.tracked.add(offset)
            self.handed_out = offset + 1

    @rule(distance=st.integers(-5, 5))
    def advance(self, distance: int) -> None:
        self.tracker.advance(self.handed_out + distance)
        self.handed_out += max(0, distance)

    @precondition(lambda self: self.tracked - self.settled)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.tracked - self.settled)))
        self.tracker.complete(offset)
        self.settled.add(offset)

    @precondition(lambda self: self.settled)
    @rule(data=st.data())
    def settle_again(self, data: st.DataObject) -> None:
        self.tracker.complete(data.draw(st.sampled_from(sorted(self.settled))))

    @rule(distance=st.integers(0, 5))
    def settle_what_was_never_polled(self, distance: int) -> None:
        self.tracker.complete(self.handed_out + distance)

    @invariant()
    def is_the_lowest_in_flight_or_the_end_of_what_was_handed_out(self) -> None:
        in_flight = self.tracked - self.settled
        assert self.tracker.committable == min(in_flight, default=self.handed_out)

    @invariant()
    def the_oldest_is_the_lowest_in_flight(self) -> None:
        assert self.tracker.oldest_at == min(self.tracked - self.settled, default=None)

    @invariant()
    def never_goes_back(self) -> None:
        assert self.tracker.committable >= self.shown
        self.shown = self.tracker.committable

    @invariant()
    def has_exactly_what_is_tracked_and_not_settled(self) -> None:
        in_flight = self.tracked - self.settled
        near = [*self.tracked, self.handed_out, self.shown - 1]
        assert {offset for offset in near if self.tracker.has(offset)} == in_flight

    @invariant()
    def what_is_tracked_is_settled_or_in_flight(self) -> None:
        assert self.tracker.tracked == len(self.tracked)
        assert self.tracker.settled == len(self.settled)
        assert self.tracker.tracked == self.tracker.settled + self.tracker.in_flight


TestTracking = Tracking.TestCase
