"""The breaker round an embedder, on the scripted one; and what is wrong with the library."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import pairwise

import pytest
from aiobreaker import CircuitBreaker, CircuitBreakerError, CircuitBreakerListener
from aiobreaker.state import CircuitBreakerState

from tests.contracts.test_embedder import ScriptedEmbedderContract
from tests.support.embedders import MemorySubject
from tests.support.virtual_time import run
from worker.adapters.breaker_embedder import BreakerEmbedder, ModelBreaker, StateChange
from worker.adapters.memory_embedder import MemoryEmbedder
from worker.config import BreakerOptions
from worker.core.breaker import PROBE_POLL_SECONDS, State
from worker.errors import (
    BadOutput,
    BreakerOpen,
    Forbidden,
    KeyRefused,
    ProviderMisconfigured,
    ProviderUnavailable,
    QuotaExhausted,
    RateLimited,
    RejectedInput,
    WrongDimensions,
)
from worker.ports import EmbeddingRequest

# Python 3.12 deprecates `utcnow`, which the library calls at every opening.
pytestmark = pytest.mark.filterwarnings("ignore:datetime.*utcnow:DeprecationWarning")

OPTIONS = BreakerOptions()
FAILED = ProviderUnavailable("scripted", status=500)
NO_KEY = ProviderMisconfigured("scripted", status=401)
REQUEST = EmbeddingRequest("model", 8, ["a text"])


class TestBreakerEmbedder(ScriptedEmbedderContract):
    @pytest.fixture
    async def subject(self) -> AsyncIterator[MemorySubject]:
        subject = MemorySubject()
        subject.embedder = BreakerEmbedder(
            subject.memory, OPTIONS, clock=time.monotonic, jitter=lambda: 0.5
        )
        yield subject
        await subject.embedder.close()


class World:
    """A breaker round an embedder that does as it is told, at a time that is told."""

    def __init__(self, **changes):
        self.now = 1_000.0
        self.answer: BaseException | None = None
        self.gate: asyncio.Event | None = None
        self.changes: list[StateChange] = []
        self.memory = MemoryEmbedder(script=self._decide)
        self.embedder = BreakerEmbedder(
            self.memory,
            BreakerOptions(**changes),
            clock=lambda: self.now,
            jitter=lambda: 0.5,
            on_state=self.changes.append,
        )

    @property
    def breaker(self) -> ModelBreaker:
        return self.embedder.of("model")

    async def _decide(self, _):
        answer = self.answer
        if self.gate is not None:
            await self.gate.wait()
        if answer is not None:
            raise answer

    @property
    def states(self) -> list[State]:
        return [change.after for change in self.changes]

    async def call(self, answer=None) -> BaseException | None:
        """Make a call that is answered so, and return what came back."""
        self.answer = answer
        try:
            await self.embedder.embed(REQUEST)
        except Exception as error:  # noqa: BLE001 - what comes back is the fact
            return error
        return None

    async def calls(self, *answers) -> None:
        for answer in answers:
            assert await self.call(answer) is answer

    async def opened(self) -> "World":
        await self.calls(*[FAILED] * 20)
        assert self.states == [State.OPEN]
        return self

    async def half_opened(self) -> "World":
        """Let the open time pass; the next call is the probe."""
        await self.opened()
        self.now += 5
        return self

    def held(self, group: asyncio.TaskGroup, count: int) -> list[asyncio.Task]:
        """Begin calls that wait for the gate."""
        self.gate = asyncio.Event()
        return [group.create_task(self.call(self.answer)) for _ in range(count)]


# ---- when it opens ----


async def test_while_the_provider_answers_it_is_closed():
    world = World()
    await world.calls(*[None] * 100)
    assert not world.breaker.is_open
    assert world.breaker.wait_seconds == 0
    assert world.changes == []


async def test_while_open_nothing_is_called_and_the_time_to_wait_is_told():
    world = await World().opened()
    for _ in range(10):
        error = await world.call()
        assert isinstance(error, BreakerOpen)
        assert error.retry_after_seconds == pytest.approx(0.075)
    assert world.memory.requests == 20
    assert world.breaker.is_open
    assert world.breaker.wait_seconds == pytest.approx(0.075)


async def test_who_is_refused_is_told_what_opened_it():
    world = await World().opened()
    assert "scripted" in str(await world.call())


async def test_the_call_that_opens_it_keeps_its_own_error():
    world = World()
    errors = [ProviderUnavailable(str(n), status=503) for n in range(20)]
    assert [await world.call(error) for error in errors] == errors
    assert world.breaker.is_open


TRANSIENT = [
    ProviderUnavailable(),
    ProviderUnavailable(status=408),
    ProviderUnavailable(status=502, retry_after_seconds=600),
    BadOutput(status=200),
    WrongDimensions(status=200),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
async def test_an_ill_provider_opens_it_by_its_rate_of_failure(error):
    world = World()
    await world.calls(*[error] * 19)
    assert not world.breaker.is_open
    await world.calls(error)
    assert world.breaker.is_open
    assert not world.changes[0].alarms


SOUND = [
    pytest.param(RejectedInput(status=400), id="a text is refused"),
    pytest.param(RateLimited(status=429, retry_after_seconds=20), id="throttled"),
    pytest.param(RateLimited(status=429), id="throttled without a hint"),
    pytest.param(RateLimited(status=503, retry_after_seconds=120), id="for two minutes"),
    pytest.param(RateLimited(retry_after_seconds=86_401), id="for longer than makes sense"),
    pytest.param(RateLimited(retry_after_seconds=float("nan")), id="for no number of seconds"),
    pytest.param(ValueError("a defect of ours"), id="a defect"),
]


@pytest.mark.parametrize("error", SOUND)
async def test_what_is_not_the_providers_illness_never_opens_it(error):
    world = World()
    await world.calls(*[error] * 100)
    assert world.changes == []


async def test_a_refused_text_counts_as_an_answer_and_throttling_as_nothing():
    refused, throttled = RejectedInput(status=422), RateLimited(status=429)
    answered = World()
    await answered.calls(*[refused] * 11, *[FAILED] * 10)
    assert not answered.breaker.is_open
    silent = World()
    await silent.calls(*[throttled] * 100, *[FAILED] * 19)
    assert not silent.breaker.is_open
    await silent.calls(FAILED)
    assert silent.breaker.is_open


async def test_calls_that_are_cancelled_count_as_nothing():
    world = World()
    async with asyncio.TaskGroup() as group:
        tasks = world.held(group, 50)
        await world.memory.in_flight(50)
        for task in tasks:
            task.cancel()
    assert world.changes == []
    world.gate = None
    await world.opened()


# ---- the probe ----


async def test_of_fifty_callers_one_is_the_probe():
    world = await World().half_opened()
    world.answer = None
    async with asyncio.TaskGroup() as group:
        tasks = world.held(group, 50)
        await world.memory.in_flight(1)
        await asyncio.sleep(0)
        assert world.memory.running == 1
        world.gate.set()
    refused = [error for task in tasks if (error := task.result()) is not None]
    assert len(refused) == 49
    assert {error.retry_after_seconds for error in refused} == {PROBE_POLL_SECONDS}
    assert world.states == [State.OPEN, State.HALF_OPEN, State.CLOSED]


@pytest.mark.parametrize("answer", [None, RejectedInput(status=400)])
async def test_a_probe_that_is_answered_closes_it(answer):
    world = await World().half_opened()
    await world.calls(answer)
    assert not world.breaker.is_open
    await world.calls(*[FAILED] * 19)
    assert not world.breaker.is_open


async def test_a_probe_that_fails_opens_it_for_longer():
    world = await World().half_opened()
    waits = []
    for _ in range(8):
        await world.calls(FAILED)
        waits.append(world.breaker.wait_seconds)
        world.now += 5
    assert waits == pytest.approx([0.15, 0.3, 0.6, 1.2, 2.4, 3.75, 3.75, 3.75])


@pytest.mark.parametrize(
    "says_nothing", [RateLimited(status=429, retry_after_seconds=1), ValueError("a defect")]
)
async def test_a_probe_that_says_nothing_gives_its_permit_back(says_nothing):
    world = await World().half_opened()
    await world.calls(says_nothing)
    assert world.breaker.state is State.HALF_OPEN
    await world.calls(None)
    assert world.breaker.state is State.CLOSED


async def test_a_cancelled_probe_gives_its_permit_back():
    world = await World().half_opened()
    async with asyncio.TaskGroup() as group:
        (probe,) = world.held(group, 1)
        await world.memory.in_flight(1)
        probe.cancel()
    world.gate = None
    assert world.states == [State.OPEN, State.HALF_OPEN]
    await world.calls(None)
    assert world.breaker.state is State.CLOSED


# ---- stragglers ----


async def test_calls_that_fail_after_the_opening_do_not_extend_it():
    world = World()
    world.answer = FAILED
    async with asyncio.TaskGroup() as group:
        world.held(group, 50)
        await world.memory.in_flight(50)
        world.gate.set()
    assert world.states == [State.OPEN]
    assert world.breaker.wait_seconds == pytest.approx(0.075)


async def test_a_good_straggler_does_not_close_it():
    world = World()
    async with asyncio.TaskGroup() as group:
        world.held(group, 1)
        await world.memory.in_flight(1)
        gate, world.gate = world.gate, None
        await world.opened()
        gate.set()
    assert world.breaker.is_open


# ---- parking ----


@pytest.mark.parametrize(
    "error",
    [
        ProviderMisconfigured(status=401),
        ProviderMisconfigured(status=302),
        ProviderMisconfigured(),
        QuotaExhausted(status=429, retry_after_seconds=1),
    ],
    ids=repr,
)
async def test_one_answer_that_blames_the_configuration_parks_it(error):
    world = World()
    await world.calls(None, error)
    assert world.breaker.is_open
    assert world.breaker.wait_seconds == pytest.approx(30 + 2.5)
    assert [change.alarms for change in world.changes] == [True]
    assert world.changes[0].error is error


@pytest.mark.parametrize("seconds", [120.5, 600, 86_400])
async def test_a_long_hint_parks_it_until_then_and_not_less(seconds):
    world = World()
    await world.calls(RateLimited(status=429, retry_after_seconds=seconds))
    assert seconds <= world.breaker.wait_seconds <= seconds + OPTIONS.max_open_seconds
    assert world.changes[0].alarms


async def test_the_alarm_is_raised_once_an_outage():
    world = World()
    await world.calls(NO_KEY)
    for _ in range(5):
        world.now += 35
        await world.calls(NO_KEY)
    assert sum(change.alarms for change in world.changes) == 1
    world.now += 35
    await world.calls(None, NO_KEY)
    assert sum(change.alarms for change in world.changes) == 2


async def test_an_outage_that_turns_out_to_need_a_person_is_alarmed_then():
    world = await World().half_opened()
    await world.calls(NO_KEY)
    assert [change.alarms for change in world.changes] == [False, False, True]


async def test_once_repaired_work_goes_on_by_itself():
    world = World()
    await world.calls(NO_KEY)
    world.now += 35
    await world.calls(None, *[None] * 50)
    assert world.memory.answers == 51
    assert world.states == [State.OPEN, State.HALF_OPEN, State.CLOSED]


# ---- who is told ----


async def test_each_change_is_told_with_what_was_before_why_and_for_how_long():
    world = await World().half_opened()
    await world.calls(None)
    opened, half_open, closed = world.changes
    assert opened[1:4] == (State.CLOSED, State.OPEN, FAILED)
    assert opened.wait_seconds == pytest.approx(0.075)
    assert half_open[1:4] == (State.OPEN, State.HALF_OPEN, None)
    assert closed[1:4] == (State.HALF_OPEN, State.CLOSED, None)
    assert closed.wait_seconds == 0
    assert not any(change.alarms for change in world.changes)


async def test_who_is_told_sees_the_new_state():
    seen = []
    memory = MemoryEmbedder()
    embedder = BreakerEmbedder(
        memory,
        BreakerOptions(min_calls=1),
        clock=lambda: 0.0,
        jitter=lambda: 0.0,
        on_state=lambda change: seen.append((change.after, of.state, of.is_open)),
    )

    of = embedder.of("model")

    async def fail(_):
        raise FAILED

    memory.script = fail
    with pytest.raises(ProviderUnavailable):
        await embedder.embed(REQUEST)
    assert seen == [(State.OPEN, State.OPEN, True)]


class Listener(CircuitBreakerListener):
    def __init__(self):
        self.told = []

    def state_change(self, breaker, old, new):
        self.told.append(new.state)


async def test_the_state_and_its_listeners_are_the_librarys():
    world = World()
    listener = Listener()
    world.breaker.circuit.add_listener(listener)
    await world.half_opened()
    assert world.breaker.circuit.current_state is CircuitBreakerState.OPEN
    await world.calls(None)
    assert world.breaker.circuit.current_state is CircuitBreakerState.CLOSED
    assert [state.name for state in listener.told] == ["OPEN", "HALF_OPEN", "CLOSED"]


async def test_closing_closes_what_is_inside():
    world = World()
    await world.embedder.close()
    assert world.memory.closed


# ---- an outage ----


async def elapsed(seconds: float) -> None:
    """Let virtual time pass."""
    passed = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(seconds, passed.set_result, None)
    await passed


class Outage:
    """Callers that come back as told, and a provider that is away for a while."""

    def __init__(self, error, seconds):
        loop = asyncio.get_running_loop()
        self.clock = loop.time
        self.began = loop.time()
        self.error = error
        self.back_at = loop.time() + seconds
        self.attempts: list[float] = []
        self.memory = MemoryEmbedder(script=self._decide)
        self.changes: list[StateChange] = []
        self.embedder = BreakerEmbedder(
            self.memory,
            OPTIONS,
            clock=loop.time,
            jitter=lambda: 0.5,
            on_state=self.changes.append,
        )

    async def _decide(self, _):
        self.attempts.append(self.clock())
        await elapsed(0.05)
        if self.clock() < self.back_at:
            raise self.error

    async def caller(self):
        while True:
            try:
                return await self.embedder.embed(REQUEST)
            except BreakerOpen as refused:
                await elapsed(refused.retry_after_seconds)
            except ProviderUnavailable:
                await elapsed(0.1)

    async def weathered(self, callers):
        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(self.caller())

    @property
    def probes(self) -> list[float]:
        return [at for at in self.attempts[50:] if at < self.back_at]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("seconds", [15, 60, 600])
def test_in_an_outage_there_is_one_probe_a_second_at_most_and_then_all_go_on(seed, seconds):
    async def story():
        outage = Outage(FAILED, seconds)
        await outage.weathered(50)
        assert outage.memory.answers == 50
        assert 0 < len(outage.probes) <= seconds
        good = next(c for c in outage.changes if c.after is State.CLOSED)
        assert good.before is State.HALF_OPEN
        # The probe took 0.05 s, as all others do.
        assert outage.clock() - outage.back_at <= OPTIONS.max_open_seconds + 0.05 + 2
        first_good = min(at for at in outage.attempts if at + 0.05 >= outage.back_at)
        assert outage.clock() - (first_good + 0.05) <= 2

    run(story(), seed)


@pytest.mark.parametrize("seed", range(5))
def test_probes_never_overlap(seed):
    async def story():
        outage = Outage(FAILED, 60)
        await outage.weathered(50)
        assert all(later - earlier >= 0.05 for earlier, later in pairwise(outage.probes))

    run(story(), seed)


@pytest.mark.parametrize("seed", range(5))
def test_a_wrong_key_for_ten_minutes_is_asked_for_every_half_minute(seed):
    async def story():
        outage = Outage(NO_KEY, 600)
        await outage.weathered(50)
        assert outage.memory.answers == 50
        assert len(outage.probes) <= 20
        assert sum(change.alarms for change in outage.changes) == 1

    run(story(), seed)


# ---- what is wrong with aiobreaker 1.2: why it only holds the state ----
# A test that fails here after an upgrade says which work-around to look at.


async def fails(*_):
    raise FAILED


async def answers(*_):
    return "an answer"


async def rejects(*_):
    raise RejectedInput


async def test_canary_half_open_admits_everybody():
    circuit = CircuitBreaker()
    circuit.half_open()
    gate, inside = asyncio.Event(), []

    async def probe():
        inside.append(1)
        await gate.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(circuit.call_async(probe))
        await asyncio.sleep(0)
        assert len(inside) == 50
        gate.set()


async def test_canary_an_excluded_exception_is_a_success_and_closes():
    circuit = CircuitBreaker(exclude=[RejectedInput])
    circuit.half_open()
    with pytest.raises(RejectedInput):
        await circuit.call_async(rejects)
    assert circuit.current_state is CircuitBreakerState.CLOSED


async def test_canary_the_error_of_the_call_that_opens_it_is_replaced():
    circuit = CircuitBreaker(fail_max=1)
    with pytest.raises(CircuitBreakerError) as raised:
        await circuit.call_async(fails)
    assert raised.value.__cause__ is FAILED


async def test_canary_only_failures_in_a_row_count():
    circuit = CircuitBreaker(fail_max=5)
    for _ in range(100):
        for _ in range(4):
            with pytest.raises(ProviderUnavailable):
                await circuit.call_async(fails)
        await circuit.call_async(answers)
    assert circuit.current_state is CircuitBreakerState.CLOSED


async def test_canary_stragglers_open_it_again():
    circuit, listener, gate = CircuitBreaker(fail_max=1), Listener(), asyncio.Event()
    circuit.add_listener(listener)

    async def fails_later():
        await gate.wait()
        raise FAILED

    async def straggle():
        with pytest.raises(CircuitBreakerError):
            await circuit.call_async(fails_later)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(straggle())
        await asyncio.sleep(0)
        gate.set()
    assert [state.name for state in listener.told] == ["OPEN"] * 4


@pytest.fixture(params=["Asia/Tokyo", "America/New_York"])
def zone(request, monkeypatch):
    """A process in a zone other than UTC."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone of a process is POSIX")
async def test_canary_the_time_until_it_opens_is_wrong_but_in_utc(zone):
    circuit = CircuitBreaker(timeout_duration=timedelta(seconds=60))
    circuit.open()
    if zone == "Asia/Tokyo":
        assert circuit.opens_at is None
        with pytest.raises(TypeError):
            _ = circuit.time_until_open
    else:
        assert circuit.time_until_open > timedelta(hours=3)


def test_canary_listeners_are_told_before_the_state_is_there_and_one_that_raises_prevents_it():
    class Raises(CircuitBreakerListener):
        def state_change(self, breaker, old, new):
            assert breaker.current_state is CircuitBreakerState.CLOSED
            raise ValueError

    circuit = CircuitBreaker(listeners=[Raises()])
    with pytest.raises(ValueError, match=r"^$"):
        circuit.open()
    assert circuit.current_state is CircuitBreakerState.CLOSED


UNKNOWN_MODEL = ProviderMisconfigured("scripted", status=404)
REVOKED = KeyRefused("scripted", status=401)
NO_CREDIT = QuotaExhausted("scripted", status=429)
FORBIDDEN = Forbidden("scripted", status=403)


class Models(World):
    """... that answers each model so."""

    async def of(self, model, answer=None) -> BaseException | None:
        self.answer = answer
        try:
            await self.embedder.embed(REQUEST._replace(model=model))
        except Exception as error:  # noqa: BLE001 - what comes back is the fact
            return error
        return None

    def left_alone(self) -> set[str]:
        return {name for name, one in self.embedder.models.items() if one.is_open}


@pytest.mark.parametrize(
    "error", [UNKNOWN_MODEL, RateLimited(retry_after_seconds=600)], ids=repr
)
async def test_what_is_wrong_with_one_model_parks_no_other(error):
    world = Models()
    await world.of("good")
    await world.of("bad", error)
    assert world.left_alone() == {"bad"}
    assert await world.of("good") is None
    assert isinstance(await world.of("bad"), BreakerOpen)
    assert [change.model for change in world.changes] == ["bad"]


async def test_each_model_has_its_own_rate_of_failure():
    world = Models()
    for _ in range(19):
        await world.of("one", FAILED)
        await world.of("two", FAILED)
    assert world.left_alone() == set()
    await world.of("two", FAILED)
    assert world.left_alone() == {"two"}


@pytest.mark.parametrize("error", [REVOKED, NO_CREDIT], ids=repr)
async def test_what_concerns_the_account_parks_every_model_with_one_alarm(error):
    world = Models()
    for model in ("one", "two", "three"):
        await world.of(model)
    await world.of("one", error)
    assert world.left_alone() == {"one", "two", "three"}
    assert sum(change.alarms for change in world.changes) == 1
    for model in ("one", "two", "three"):
        assert isinstance(await world.of(model), BreakerOpen)


@pytest.mark.parametrize("error", [REVOKED, NO_CREDIT], ids=repr)
async def test_once_one_model_finds_the_account_repaired_the_others_are_probed_at_once(error):
    world = Models()
    for model in ("one", "two"):
        await world.of(model)
    await world.of("one", error)
    world.now += 35
    assert await world.of("two", error) is error
    assert isinstance(await world.of("two"), BreakerOpen)
    assert await world.of("one") is None
    assert await world.of("two") is None
    assert world.left_alone() == set()


async def test_a_model_with_a_fault_of_its_own_waits_for_its_own_repair():
    world = Models()
    await world.of("unknown", UNKNOWN_MODEL)
    await world.of("patient", RateLimited(retry_after_seconds=600))
    await world.of("good", REVOKED)
    waits = {name: one.wait_seconds for name, one in world.embedder.models.items()}
    assert waits == pytest.approx({"unknown": 32.5, "patient": 602.5, "good": 32.5})
    world.now += 33
    assert await world.of("good") is None
    assert world.left_alone() == {"unknown", "patient"}
    assert isinstance(await world.of("patient"), BreakerOpen)


async def test_intake_is_held_while_every_model_in_use_is_left_alone():
    world = Models()
    assert not world.embedder.is_held
    for _ in range(20):
        await world.of("one", FAILED)
    assert world.embedder.is_held
    await world.of("two")
    assert not world.embedder.is_held
    world.now += 59
    assert not world.embedder.is_held
    world.now += 2
    assert world.embedder.is_held


async def test_a_model_that_has_to_be_repaired_itself_holds_nothing():
    """Others may be fine that nobody has asked for yet."""
    world = Models()
    await world.of("unknown", UNKNOWN_MODEL)
    assert world.left_alone() == {"unknown"}
    assert not world.embedder.is_held
    assert world.embedder.sets_aside("unknown")
    await world.of("two", NO_CREDIT)
    assert world.embedder.is_held


async def test_a_model_is_set_aside_only_while_another_is_asked():
    world = Models()
    for _ in range(20):
        await world.of("one", FAILED)
    assert not world.embedder.sets_aside("one")
    await world.of("two")
    assert world.embedder.sets_aside("one")
    assert not world.embedder.sets_aside("two")
    assert not world.embedder.sets_aside("never asked for")


async def test_the_state_of_each_model_is_told_in_words():
    world = Models()
    await world.of("good")
    await world.of("bad", UNKNOWN_MODEL)
    states = {name: one.describe() for name, one in world.embedder.models.items()}
    assert states == {
        "good": {"state": "closed", "wait_seconds": 0, "error": None},
        "bad": {"state": "open", "wait_seconds": 32.5, "error": "scripted"},
    }


async def test_what_is_said_of_an_open_model_is_why_it_is_left_alone_now():
    world = World()
    other = EmbeddingRequest("other", 8, ["a text"])
    await world.opened()
    world.answer = KeyRefused("no such key", status=401)
    with pytest.raises(KeyRefused):
        await world.embedder.embed(other)
    assert world.breaker.describe()["error"] == "no such key"
    assert world.breaker.is_parked
    error = await world.call()
    assert isinstance(error, BreakerOpen)
    assert "no such key" in str(error)


async def test_a_403_between_answers_parks_nothing():
    world = Models()
    for _ in range(50):
        assert await world.of("model", FORBIDDEN) is FORBIDDEN
        assert await world.of("model") is None
    assert world.changes == []


async def test_two_403_in_a_row_park_the_model():
    world = Models()
    await world.of("other")
    await world.of("model", None)
    await world.of("model", FORBIDDEN)
    assert world.left_alone() == set()
    await world.of("model", FORBIDDEN)
    assert world.left_alone() == {"model"}
    assert [change.alarms for change in world.changes] == [True]


async def test_a_refused_text_between_two_403_is_an_answer():
    world = Models()
    await world.of("model", FORBIDDEN)
    await world.of("model", RejectedInput(status=400))
    await world.of("model", FORBIDDEN)
    assert world.left_alone() == set()


async def test_a_parked_model_stays_parked_while_its_probes_are_forbidden():
    world = Models()
    await world.of("model", FORBIDDEN)
    await world.of("model", FORBIDDEN)
    for _ in range(5):
        world.now += 35
        assert await world.of("model", FORBIDDEN) is FORBIDDEN
        assert isinstance(await world.of("model"), BreakerOpen)
    assert sum(change.alarms for change in world.changes) == 1
