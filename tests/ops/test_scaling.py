"""What two looks at a fleet make of its size."""

from worker.core.scaling import Advice
from worker.ops.scaling import LOOK_SECONDS, SPAN_SECONDS, FleetView, Own, Scaling

FREE = Own(busy_share=1.0, is_open=False, held_back_seconds=0.0)


class Seen:
    """A fleet under a clock that the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.looks = 0
        self.fleet = FleetView(workers=2, partitions=12, ended=0, settled=0)
        self.own = FREE
        self.scaling = Scaling(
            self.look, lambda: self.own, drain_seconds=300.0, clock=lambda: self.now
        )

    async def look(self) -> FleetView:
        self.looks += 1
        return self.fleet

    async def later(self, seconds: float, **changes: int) -> Advice:
        self.now += seconds
        self.fleet = self.fleet._replace(**changes)
        return await self.scaling()


async def test_the_first_look_knows_no_rates_and_changes_nothing() -> None:
    seen = Seen()
    assert await seen.later(0, ended=90_000) == Advice(2, "lag")


async def test_rates_are_what_happened_between_two_looks() -> None:
    seen = Seen()
    await seen.later(0, ended=50_000)
    # 100 a second arrive, 50 are settled: 100 + 53,000 / 300 need 12 of 25 a second each.
    advice = await seen.later(60, ended=56_000, settled=3_000)
    assert advice == Advice(12, "lag")


async def test_who_asks_again_at_once_gets_the_same_answer_for_nothing() -> None:
    seen = Seen()
    await seen.later(0, ended=50_000)
    first = await seen.later(60, ended=56_000, settled=3_000)
    assert await seen.later(LOOK_SECONDS / 2, ended=900_000) == first
    assert seen.looks == 2


async def test_rates_are_of_the_last_minute() -> None:
    seen = Seen()
    await seen.later(0, ended=1_000_000)
    await seen.later(SPAN_SECONDS, settled=600_000)
    # What was quick before is forgotten: nothing was settled in this minute.
    assert await seen.later(SPAN_SECONDS) == Advice(2, "lag")


async def test_a_quota_that_held_it_back_for_most_of_the_time_binds_it() -> None:
    seen = Seen()
    await seen.later(0, ended=90_000)
    seen.own = FREE._replace(held_back_seconds=31.0)
    assert (await seen.later(60, settled=600)).reason == "quota_bound"
    seen.own = FREE._replace(held_back_seconds=60.0)
    assert (await seen.later(60, settled=1_200)).reason == "partition_bound"


async def test_a_provider_that_is_left_alone_keeps_the_fleet_as_it_is() -> None:
    seen = Seen()
    seen.own = FREE._replace(is_open=True)
    assert await seen.later(0, ended=90_000) == Advice(2, "breaker_open")


async def test_a_topic_that_begins_anew_counts_as_nothing_settled() -> None:
    seen = Seen()
    await seen.later(0, ended=9_000, settled=9_000)
    assert await seen.later(60, ended=100, settled=0) == Advice(2, "lag")
