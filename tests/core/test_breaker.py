"""The gate in front of a provider, against a model that remembers everything."""

from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.config import BreakerOptions
from worker.core.breaker import PROBE_POLL_SECONDS, Gate, Permit, State
from worker.errors import ConfigError

NOW = 1_000.0
OPTIONS = BreakerOptions()
JITTERS = st.floats(0, 1, exclude_max=True)


def admitted(gate: Gate, now: float = NOW) -> Permit:
    permit = gate.admit(now)
    assert permit is not None
    return permit


def called(gate: Gate, outcomes: str, now: float = NOW) -> None:
    """Make calls one after the other: `x` fails, `.` succeeds, `-` says nothing."""
    for outcome in outcomes:
        permit = admitted(gate, now)
        match outcome:
            case "x":
                gate.failed(permit, now, jitter=0.5)
            case ".":
                gate.succeeded(permit, now)
            case _:
                gate.left(permit)


def opened(**changes) -> Gate:
    """Return a gate that has just opened at NOW, for the least time (but for its jitter)."""
    gate = Gate(BreakerOptions(**changes))
    called(gate, "x" * gate.options.min_calls)
    assert gate.state is State.OPEN
    return gate


# ---- what opens it ----


@pytest.mark.parametrize(
    ("outcomes", "opens"),
    [
        pytest.param("x" * 20, True, id="all of twenty"),
        pytest.param("x" * 19, False, id="all, but too few to tell"),
        pytest.param("." * 10 + "x" * 10, True, id="half of twenty"),
        pytest.param("." * 11 + "x" * 10, False, id="less than half"),
        pytest.param("." * 11 + "x" * 11, True, id="half of more"),
        pytest.param(".x" * 10, True, id="every second one"),
        pytest.param("x" * 19 + ".", False, id="a success is never the cause"),
        pytest.param("x" * 19 + ".x", True, id="... but it counts as a call"),
        pytest.param("x" * 19 + "-" * 100, False, id="what says nothing does not count"),
    ],
)
def test_it_opens_at_half_of_at_least_twenty(outcomes, opens):
    gate = Gate(OPTIONS)
    called(gate, outcomes)
    assert (gate.state is State.OPEN) == opens


@pytest.mark.parametrize(
    ("before", "after", "later", "opens"),
    [
        pytest.param("x" * 19, "x", 9.99, True, id="within ten seconds"),
        pytest.param("x" * 19, "x", 10, False, id="ten seconds later"),
        pytest.param("." * 100, "x" * 20, 10, True, id="old successes are forgotten, too"),
        pytest.param("." * 21, "x" * 20, 9.99, False, id="young ones are not"),
    ],
)
def test_only_the_last_ten_seconds_count(before, after, later, opens):
    gate = Gate(OPTIONS)
    called(gate, before, NOW)
    called(gate, after, NOW + later)
    assert (gate.state is State.OPEN) == opens


def test_the_window_rolls_call_by_call():
    gate = Gate(OPTIONS)
    for second in range(100):
        called(gate, "x", NOW + second)
    assert gate.state is State.CLOSED


def test_a_call_that_leaves_the_window_takes_along_how_it_ended():
    gate = Gate(OPTIONS)
    called(gate, "x" * 19, NOW)
    called(gate, "." * 20 + "x", NOW + 10)
    assert gate.state is State.CLOSED
    gate = Gate(OPTIONS)
    called(gate, ".", NOW)
    called(gate, "x" * 10, NOW + 5)
    called(gate, "." * 9 + "x", NOW + 10)
    assert gate.state is State.OPEN


def test_it_is_counted_when_a_call_ends_not_when_it_began():
    gate = Gate(OPTIONS)
    permits = [admitted(gate) for _ in range(20)]
    for permit in permits:
        gate.failed(permit, NOW + 30, jitter=0)
    assert gate.state is State.OPEN


# ---- how long it is open ----


@pytest.mark.parametrize(
    ("kind", "jitter", "seconds"),
    [
        ("equal", 0.0, [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.5, 2.5]),
        ("equal", 0.5, [0.075, 0.15, 0.3, 0.6, 1.2, 2.4, 3.75, 3.75]),
        ("full", 0.0, [0.0] * 8),
        ("full", 0.5, [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.5, 2.5]),
    ],
)
def test_the_open_time_doubles_up_to_a_cap_and_is_jittered(kind, jitter, seconds):
    gate = Gate(BreakerOptions(jitter=kind))
    for permit in [admitted(gate) for _ in range(20)]:
        gate.failed(permit, NOW, jitter)
    now = NOW
    for expected in seconds:
        assert gate.wait_seconds(now) == pytest.approx(expected)
        now += gate.wait_seconds(now) + 1e-9
        gate.failed(admitted(gate, now), now, jitter)


@given(st.integers(0, 5_000), JITTERS)
def test_however_often_it_opens_the_time_is_finite_and_capped(times, jitter):
    gate = opened()
    now = NOW
    for _ in range(times):
        now += 5
        gate.failed(admitted(gate, now), now, jitter)
    assert 0 <= gate.wait_seconds(now) <= OPTIONS.max_open_seconds


def test_a_good_probe_begins_the_open_times_anew():
    gate = opened()
    for second in range(1, 8):
        gate.failed(admitted(gate, NOW + 5 * second), NOW + 5 * second, jitter=0.5)
    gate.succeeded(admitted(gate, NOW + 60), NOW + 60)
    called(gate, "x" * 20, NOW + 60)
    assert gate.wait_seconds(NOW + 60) == pytest.approx(0.075)


def test_the_least_open_time_does_not_exceed_the_longest():
    with pytest.raises(ConfigError, match=r"breaker\.min_open_seconds"):
        BreakerOptions(min_open_seconds=6, max_open_seconds=5)


# ---- the probe ----


def test_while_open_nobody_is_admitted():
    gate = opened()
    assert gate.admit(NOW) is None
    assert gate.admit(NOW + 0.074) is None
    assert gate.state is State.OPEN


def test_afterwards_exactly_one_is_admitted():
    gate = opened()
    permits = [gate.admit(NOW + 1) for _ in range(50)]
    assert [permit for permit in permits if permit is not None] == [permits[0]]
    assert permits[0].is_probe
    assert gate.state is State.HALF_OPEN


def test_a_probe_is_waited_for_in_short_turns_however_long_it_takes():
    gate = opened()
    admitted(gate, NOW + 1)
    for later in (1, 30, 3_600):
        assert gate.admit(NOW + later) is None
        assert gate.wait_seconds(NOW + later) == PROBE_POLL_SECONDS


def test_a_good_probe_closes_it_and_the_past_is_forgotten():
    gate = opened()
    gate.succeeded(admitted(gate, NOW + 1), NOW + 1)
    assert gate.state is State.CLOSED
    assert gate.wait_seconds(NOW + 1) == 0
    called(gate, "x" * 19, NOW + 1)
    assert gate.state is State.CLOSED
    gate = opened()
    gate.succeeded(admitted(gate, NOW + 1), NOW + 1)
    called(gate, "." * 11 + "x" * 9, NOW + 1)
    assert gate.state is State.CLOSED


def test_a_gate_that_was_never_opened_needs_no_probe():
    gate = Gate(OPTIONS)
    gate.probe_from(NOW)
    assert not admitted(gate).is_probe
    assert gate.wait_seconds(NOW) == 0


def test_a_probe_that_is_cancelled_gives_its_permit_back_and_leaves_the_state_alone():
    gate = opened()
    gate.left(admitted(gate, NOW + 1))
    assert gate.state is State.HALF_OPEN
    assert gate.wait_seconds(NOW + 1) == 0
    assert admitted(gate, NOW + 1).is_probe
    assert gate.admit(NOW + 1) is None


# ---- parking ----


def test_it_is_parked_by_one_answer_until_the_time_said():
    gate = Gate(OPTIONS)
    gate.open_until(admitted(gate), NOW + 300)
    assert gate.state is State.OPEN
    assert gate.wait_seconds(NOW) == 300
    assert gate.admit(NOW + 299.9) is None
    assert admitted(gate, NOW + 300).is_probe


def test_a_probe_may_park_it_again():
    gate = Gate(OPTIONS)
    gate.open_until(admitted(gate), NOW + 30)
    gate.open_until(admitted(gate, NOW + 30), NOW + 60)
    assert gate.wait_seconds(NOW + 30) == 30


def test_parking_lets_no_open_time_grow():
    gate = Gate(OPTIONS)
    gate.open_until(admitted(gate), NOW + 30)
    gate.failed(admitted(gate, NOW + 30), NOW + 30, jitter=0.5)
    assert gate.wait_seconds(NOW + 30) == pytest.approx(0.075)


# ---- stragglers ----


def end(gate: Gate, how: str, permit: Permit, now: float) -> None:
    match how:
        case "failed":
            gate.failed(permit, now, jitter=0.9)
        case "succeeded":
            gate.succeeded(permit, now)
        case "parked":
            gate.open_until(permit, now + 600)
        case "left":
            gate.left(permit)


ENDS = ["failed", "succeeded", "parked", "left"]


@pytest.mark.parametrize("how", ENDS)
def test_a_call_begun_before_the_opening_changes_nothing_while_open(how):
    gate = Gate(OPTIONS)
    stragglers = [admitted(gate) for _ in range(30)]
    called(gate, "x" * 20)
    wait = gate.wait_seconds(NOW)
    for permit in stragglers:
        end(gate, how, permit, NOW)
    assert gate.state is State.OPEN
    assert gate.wait_seconds(NOW) == wait


@pytest.mark.parametrize("how", ENDS)
def test_nor_does_it_disturb_the_probe(how):
    gate = Gate(OPTIONS)
    straggler = admitted(gate)
    called(gate, "x" * 20)
    admitted(gate, NOW + 1)
    end(gate, how, straggler, NOW + 1)
    assert gate.state is State.HALF_OPEN
    assert gate.admit(NOW + 1) is None


@pytest.mark.parametrize("how", ENDS)
def test_nor_does_it_count_once_closed_again(how):
    gate = Gate(OPTIONS)
    stragglers = [admitted(gate) for _ in range(30)]
    called(gate, "x" * 20)
    gate.succeeded(admitted(gate, NOW + 1), NOW + 1)
    for permit in stragglers:
        end(gate, how, permit, NOW + 1)
    called(gate, "x" * 19, NOW + 1)
    assert gate.state is State.CLOSED


# ---- the model ----


class Call(NamedTuple):
    permit: Permit
    begun_as: int
    """How many changes from or to "closed" had been seen when it began."""


@dataclass
class Model:
    """The gate as a story: all that has ended since it closed last, and why it opened."""

    state: State = State.CLOSED
    changes: int = 0
    ended: list[tuple[float, bool]] = field(default_factory=list)
    failed_probes: int = 0
    open_from: float = 0
    open_to: float = 0

    def should_open(self, now: float, options: BreakerOptions) -> bool:
        recent = [failed for at, failed in self.ended if at > now - options.window_seconds]
        return len(recent) >= options.min_calls and sum(recent) * 2 >= len(recent)

    def change(self, state: State) -> None:
        self.state = state
        self.changes += 1
        self.ended.clear()


class GateMachine(RuleBasedStateMachine):
    """Random calls, some cancelled, at random times."""

    options = BreakerOptions(min_calls=4)

    def __init__(self):
        super().__init__()
        self.gate = Gate(self.options)
        self.model = Model()
        self.now = NOW
        self.in_flight: list[Call] = []

    @rule(seconds=st.sampled_from([0.01, 0.05, 0.1, 1, 3, 5, 12, 40]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def time_passes_as_told(self):
        self.now += self.gate.wait_seconds(self.now)

    @rule(count=st.integers(1, 6))
    def callers_ask(self, count):
        for _ in range(count):
            before = self.gate.state
            permit = self.gate.admit(self.now)
            if self.model.state is State.CLOSED:
                assert permit is not None
                assert not permit.is_probe
                assert self.gate.state is State.CLOSED
            elif self.now < self.model.open_to or any(
                c.permit.is_probe for c in self.in_flight
            ):
                assert permit is None
                assert self.gate.state is before
            else:
                assert permit is not None
                assert permit.is_probe
                self.model.state = State.HALF_OPEN
            if permit is not None:
                self.in_flight.append(Call(permit, self.model.changes))

    def taken(self, data) -> tuple[Call, bool]:
        call = data.draw(st.sampled_from(self.in_flight), label="call")
        self.in_flight.remove(call)
        return call, call.begun_as == self.model.changes

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def one_succeeds(self, data):
        call, counts = self.taken(data)
        self.gate.succeeded(call.permit, self.now)
        if counts and call.permit.is_probe:
            self.model.change(State.CLOSED)
            self.model.failed_probes = 0
        elif counts:
            self.model.ended.append((self.now, False))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), jitter=JITTERS)
    def one_fails(self, data, jitter):
        call, counts = self.taken(data)
        self.gate.failed(call.permit, self.now, jitter)
        if not counts:
            return
        self.model.ended.append((self.now, True))
        if call.permit.is_probe or self.model.should_open(self.now, self.options):
            most = min(5, 0.1 * 2 ** min(self.model.failed_probes, 10))
            self.model.failed_probes += 1
            self.model.change(State.OPEN)
            wait = self.gate.wait_seconds(self.now)
            assert most / 2 - 1e-6 <= wait <= most + 1e-6
            self.model.open_to = self.now + wait

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), seconds=st.sampled_from([0, 30, 121, 3_600]))
    def one_parks(self, data, seconds):
        call, counts = self.taken(data)
        self.gate.open_until(call.permit, self.now + seconds)
        if counts:
            self.model.change(State.OPEN)
            self.model.open_to = self.now + seconds

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def one_is_cancelled(self, data):
        call, _ = self.taken(data)
        self.gate.left(call.permit)

    @invariant()
    def the_state_is_that_of_the_story(self):
        assert self.gate.state is self.model.state

    @invariant()
    def there_are_never_two_probes(self):
        assert sum(call.permit.is_probe for call in self.in_flight) <= 1

    @invariant()
    def who_is_refused_is_told_a_time_and_who_is_not_is_told_none(self):
        is_probing = any(call.permit.is_probe for call in self.in_flight)
        wait = self.gate.wait_seconds(self.now)
        if self.model.state is State.CLOSED:
            assert wait == 0
        elif is_probing:
            assert wait > 0
        else:
            assert wait == max(0, self.model.open_to - self.now)


TestGateMachine = GateMachine.TestCase


def test_it_is_parked_for_what_was_said_to_somebody_else():
    gate = Gate(BreakerOptions())
    before = gate.admit(now=0.0)
    gate.park(until=30.0)
    assert gate.state is State.OPEN
    assert (gate.admit(now=29.9), gate.wait_seconds(now=10.0)) == (None, 20.0)
    gate.succeeded(before, now=1.0)
    assert gate.state is State.OPEN


def test_a_parked_gate_may_be_probed_sooner_and_is_then_closed_by_the_probe_alone():
    gate = Gate(BreakerOptions())
    gate.park(until=30.0)
    gate.probe_from(now=5.0)
    assert gate.state is State.OPEN
    probe = gate.admit(now=5.0)
    assert gate.admit(now=5.0) is None
    gate.succeeded(probe, now=6.0)
    assert gate.state is State.CLOSED


def test_a_probe_may_not_be_put_off_by_allowing_it():
    gate = Gate(BreakerOptions())
    gate.park(until=3.0)
    gate.probe_from(now=5.0)
    assert gate.wait_seconds(now=3.0) == 0


def test_only_an_answer_that_counts_parks_it():
    gate = Gate(BreakerOptions())
    late, first = gate.admit(now=0.0), gate.admit(now=0.0)
    assert gate.open_until(first, until=30.0)
    assert not gate.open_until(late, until=60.0)
    assert gate.wait_seconds(now=0.0) == 30.0
