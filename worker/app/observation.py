"""
What a worker shows of itself: gauges, `/state`, `/livez`, `/readyz`.

Reads plain properties; changes nothing. Liveness asks only whether a restart would help: the
poll loop turns, and no partition that has records to poll stands still. A provider or a
database that is away is no reason.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from worker.app.assembly import Worker
from worker.core.lifecycle import PartitionLife, Phase
from worker.ports import Clock
from worker.telemetry import Telemetry

_READY = (Phase.RUNNING, Phase.HELD)
_PAUSED = (Phase.CLAIMING, Phase.DRAINING, Phase.FENCED, Phase.HELD, Phase.HALTED)

LOOP_LIMIT_SECONDS = 120.0
"""A poll waits through a rebalance: as long as the slowest worker drains."""


class Observation:
    """The answers of the admin port about one worker."""

    def __init__(
        self,
        worker: Worker,
        *,
        clock: Clock,
        progress_seconds: float,
        provider: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self._worker = worker
        self._provider = provider
        self._clock = clock
        self._progress_seconds = progress_seconds
        self._seen: dict[PartitionLife, tuple[int, float]] = {}

    def live(self) -> tuple[bool, Mapping[str, Any]]:
        """Tell whether the worker goes on, and what stands still if it does not."""
        silent_seconds = self._clock() - self._worker.intake.turned_at
        lives = list(self._worker.lives)
        self._seen = {life: self._look(life) for life in lives}
        stuck = [life.partition.name for life in lives if self._is_stuck(life)]
        is_live = silent_seconds < LOOP_LIMIT_SECONDS and not stuck
        return is_live, {"poll_loop_silent_seconds": round(silent_seconds, 1), "stuck": stuck}

    def ready(self) -> tuple[bool, Mapping[str, Any]]:
        """Tell whether it is in the group and works on all it has, but for what is held."""
        lives = list(self._worker.lives)
        joined = self._worker.runner.source is not None
        # A flood is the records' fault: another worker would hold the partition as well.
        waiting = [life.partition.name for life in lives if life.phase not in _READY]
        ready = joined and not waiting and not self._worker.runner.stop.is_set()
        return ready, {"in_group": joined, "partitions": len(lives), "not_running": waiting}

    def state(self) -> Mapping[str, Any]:
        """Return what the worker is doing now."""
        worker = self._worker
        queue = worker.dispatch.scheduler
        return {
            "stopping": worker.runner.stop.is_set(),
            "queue": {
                "documents": queue.documents,
                "bytes": queue.bytes,
                "waiting": queue.waiting,
                "in_flight": worker.dispatch.in_flight,
            },
            "provider_requests_in_flight": worker.embed.requests_in_flight,
            "provider": {"documents_set_aside": worker.embed.patient, **self._provider()},
            "outcomes": {
                " ".join(filter(None, key)): count
                for key, count in sorted(worker.counters.outcomes.items())
                if count
            },
            "partitions": [self._partition(life) for life in worker.lives],
        }

    def backlog(self) -> int | None:
        """Return how many records wait, in the topic and here; None where it is not known."""
        lags = [self._lag(life) for life in self._worker.lives if life.phase is Phase.RUNNING]
        known = [lag for lag in lags if lag is not None]
        if not known or len(known) < len(lags):
            return None
        return sum(known) + self._worker.dispatch.scheduler.documents

    def register(self, telemetry: Telemetry) -> None:
        """Let the gauges be read from here."""
        worker, queue = self._worker, self._worker.dispatch.scheduler
        telemetry.observe("queue_depth", lambda: queue.documents)
        telemetry.observe("queue_bytes", lambda: queue.bytes)
        telemetry.observe("in_flight", lambda: worker.dispatch.in_flight)
        telemetry.observe("vector_cache_bytes", lambda: worker.embed.cache.bytes)
        telemetry.observe("assigned_partitions", lambda: len(list(worker.lives)))
        telemetry.observe("paused_partitions", self._paused)
        telemetry.observe("oldest_in_flight", self._ages)
        telemetry.observe("lag", self._lags)
        telemetry.observe("vector_cache_hits", lambda: worker.embed.cache.hits)
        telemetry.observe("vector_cache_misses", lambda: worker.embed.cache.misses)

    def _paused(self) -> dict[str, int]:
        phases = Counter(life.phase for life in self._worker.lives)
        return {phase.value: phases[phase] for phase in _PAUSED}

    def _ages(self) -> dict[tuple[str, ...], float]:
        now = self._clock()
        return {
            _labels(life): 0.0 if life.oldest_at is None else now - life.oldest_at
            for life in self._worker.lives
        }

    def _lags(self) -> dict[tuple[str, ...], int]:
        return {_labels(life): self._lag(life) or 0 for life in self._worker.lives}

    def _lag(self, life: PartitionLife) -> int | None:
        """Return how many records are still to be read, None where that is not known."""
        source = self._worker.runner.source
        if source is None:
            return None
        # What was polled and released is read again by whoever goes on.
        is_free = life.phase is Phase.RUNNING or life.claim is None
        return source.lag(life.partition, None if is_free else life.progress.next_offset)

    def _partition(self, life: PartitionLife) -> Mapping[str, Any]:
        return {
            "partition": life.partition.name,
            "phase": life.phase.value,
            "epoch": life.claim.epoch if life.claim else None,
            "next_offset": life.progress.next_offset,
            "in_flight": life.in_flight,
            "lag": self._lag(life),
            "one_by_one": life.isolation is not None,
            "problem": life.problem,
        }

    def _look(self, life: PartitionLife) -> tuple[int, float]:
        """
        Return a partition's offset, and since when it stands still without a reason.

        That is: its records are asked for, none is in flight, and the offset does not move.
        """
        offset, now = life.progress.next_offset, self._clock()
        before, since = self._seen.get(life, (None, now))
        is_asked = life.partition in self._worker.intake.wanted
        waits = is_asked and not life.in_flight and bool(self._lag(life))
        return offset, since if before == offset and waits else now

    def _is_stuck(self, life: PartitionLife) -> bool:
        return self._clock() - self._seen[life][1] > self._progress_seconds


def _labels(life: PartitionLife) -> tuple[str, str]:
    return life.partition.topic, str(life.partition.number)
