"""
The provider answers nobody for a minute while documents keep coming.

Two workers, each with a breaker of its own; `max_poll_interval` is a third of the outage, and
the deadline of a document a twelfth: a policy that charged documents for an outage would have
given up all that wait by its end.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pytest

from tests.support import provider
from tests.support.fleet import upsert
from tests.support.verdicts import Verdict

pytestmark = [pytest.mark.chaos, pytest.mark.real]

OUTAGE_SECONDS = 60
BEFORE_SECONDS = 10
WINDOW_SECONDS = 0.5
SHARE = 0.9
"""Of the rate before: an instant of half a second has its own ups and downs."""
WORKERS = ("first", "second")
ENVIRONMENT = {
    "EMBEDFLEET_KAFKA_MAX_POLL_INTERVAL_SECONDS": "20",
    "EMBEDFLEET_INGEST_DOCUMENT_TIMEOUT_SECONDS": "5",
    "EMBEDFLEET_EMBEDDING_TIMEOUT_SECONDS": "3",
    # Many requests, so that the rate of them says something.
    "EMBEDFLEET_EMBEDDING_MAX_INPUTS": "4",
    "OTEL_SDK_DISABLED": "false",
}


@dataclass
class Watch:
    """Sees every request at the provider, and answers as the outage says."""

    answer: Callable | None = None
    calls: list[tuple[float, str, int]] = field(default_factory=list)
    answered: list[tuple[float, str, int]] = field(default_factory=list)

    def __call__(self, call):
        seen = time.monotonic(), call.request.query["worker"], len(call.texts)
        self.calls.append(seen)
        if self.answer is None:
            self.answered.append(seen)
        return self.answer

    def rate(self, worker: str, end: float, seconds: float) -> float:
        """Texts a second that were answered to a worker until `end`."""
        texts = (
            number
            for at, who, number in self.answered
            if who == worker and end - seconds < at <= end
        )
        return sum(texts) / seconds

    def recovery_seconds(self, worker: str, since: float, rate: float) -> float:
        """
        From the first good probe until the rate of before the outage is reached again.

        The probe itself does not count: it is one request, of however many texts.
        """
        probe, *after = [at for at, who, _ in self.answered if who == worker and at >= since]
        (texts,) = [number for at, who, number in self.answered if (at, who) == (probe, worker)]
        full = (
            at
            for at in after
            if self.rate(worker, at, WINDOW_SECONDS) - texts / WINDOW_SECONDS >= SHARE * rate
        )
        return next(full) - probe


class Refused:
    """Nobody listens."""

    async def begin(self, fleet, _watch):
        await fleet.provider.close()

    async def end(self, fleet, _watch):
        await fleet.provider.start()


class Failing:
    """Every request is answered 503."""

    async def begin(self, _fleet, watch):
        watch.answer = provider.status(503)

    async def end(self, _fleet, watch):
        watch.answer = None


class Silent:
    """Connections are accepted, requests are read, and nothing ever comes back."""

    async def begin(self, _fleet, watch):
        watch.answer = provider.held(asyncio.Event())

    async def end(self, _fleet, watch):
        watch.answer = None


@pytest.mark.parametrize(
    "outage", [Refused(), Failing(), Silent()], ids=lambda o: type(o).__name__
)
async def test_an_outage_of_a_minute_costs_no_document_anything(fleet, verdicts, outage):
    watch = Watch()
    fleet.provider.script = watch
    fleet.provider.latency_seconds = 0.05
    fleet.environment |= ENVIRONMENT
    workers = [
        await fleet.start(EMBEDFLEET_EMBEDDING_URL=f"{fleet.provider.url}?worker={name}")
        for name in WORKERS
    ]
    await fleet.until(lambda: fleet.is_shared_by(*workers))
    assigned = [worker.actions()["assigned"] for worker in workers]

    async with fleet.flow((upsert(f"d{n}", 1, f"text {n}") for n in count()), size=2):
        await fleet.pass_time(BEFORE_SECONDS)
        began = time.monotonic()
        rates = [watch.rate(name, began, BEFORE_SECONDS / 2) for name in WORKERS]
        await outage.begin(fleet, watch)
        for worker in workers:
            await worker.logged("breaker")
        opened = time.monotonic()
        before = [await worker.metric("provider_requests_total") for worker in workers]
        await fleet.pass_time(OUTAGE_SECONDS - (opened - began))
        after = [await worker.metric("provider_requests_total") for worker in workers]
        open_seconds = time.monotonic() - opened
        requeues = sum([await worker.metric("requeues_total") for worker in workers])
        await outage.end(fleet, watch)
        ended = time.monotonic()
        await fleet.pass_time(BEFORE_SECONDS)

    await fleet.settled(timeout_seconds=180)
    probes = [(late - early) / open_seconds for early, late in zip(before, after, strict=True)]
    recoveries = [
        watch.recovery_seconds(name, ended, rate)
        for name, rate in zip(WORKERS, rates, strict=True)
    ]
    rebalances = [
        worker.actions()["assigned"] - once
        for worker, once in zip(workers, assigned, strict=True)
    ]
    expected, letters = await fleet.expected(), await fleet.letters()
    missing = len(expected) - len((await fleet.stored()).items() & expected.items())
    await fleet.check_vectors()
    verdicts += [
        Verdict("0 dead letters", f"{len(letters)}", not letters),
        Verdict(
            "no document is charged for a pass that the outage ended",
            f"{requeues:.0f} passes ended, {len(letters)} documents given up",
            requeues > 0 and not letters,
        ),
        Verdict(
            "<= 1 probe/s per worker while open",
            ", ".join(f"{rate:.2f}" for rate in probes),
            all(0 < rate <= 1 for rate in probes),
        ),
        Verdict(
            "full rate <= 2 s after the first good probe",
            ", ".join(
                f"{seconds:.2f} s ({rate:.0f} texts/s)"
                for seconds, rate in zip(recoveries, rates, strict=True)
            ),
            all(seconds <= 2 for seconds in recoveries),
        ),
        Verdict("0 rebalances", f"{sum(rebalances)}", not any(rebalances)),
        Verdict("everything is stored", f"{missing} of {len(expected)} missing", not missing),
        Verdict(
            "every text is embedded once",
            f"{len(fleet.embedded_twice())} twice",
            not fleet.embedded_twice(),
        ),
    ]
    assert all(verdict.held for verdict in verdicts), verdicts
