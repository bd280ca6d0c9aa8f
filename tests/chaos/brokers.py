"""
Brokers of a cluster that go, one after the other, while the two others carry on.

The load never waits: two of three brokers are enough for all that is written. As in `outages`,
the workers have to live through it. Who leads and who coordinates is what the metadata say.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from time import monotonic

from tests.chaos.nemesis import tested
from tests.chaos.outages import conclude
from tests.chaos.world import World
from tests.support.kafka_cluster import SESSION_SECONDS, KafkaCluster
from tests.support.kafka_own import frozen
from tests.support.verdicts import Verdict

RECOVERY_SECONDS = 30.0
PATIENCE_SECONDS = 90.0
CALM_SECONDS = 2.0
OFFSETS = "__consumer_offsets"


@dataclass
class Brokers:
    """What was done to the brokers under a fleet, and how long it took to get over it."""

    world: World
    cluster: KafkaCluster
    counts: Counter[str] = field(default_factory=Counter)
    without_killed: list[float] = field(default_factory=list)
    without_frozen: list[float] = field(default_factory=list)
    recovered: list[float] = field(default_factory=list)

    async def leader(self) -> int:
        """The broker that leads most, and does not coordinate the group."""
        leads = await self.cluster.leads(self.world.fleet.topic)
        del leads[await self.coordinator()]
        return leads.most_common(1)[0][0]

    async def coordinator(self) -> int:
        return await self.cluster.coordinator(self.world.fleet.kafka.group)

    async def kill(self, node: int) -> None:
        """Kill -9 a broker and start it again once the fleet works without it."""
        before = await self._duties(node)
        began = monotonic()
        await asyncio.to_thread(self.cluster.brokers[node].kill)
        await self._replaced(node)
        self.without_killed.append(monotonic() - began)
        self.counts += before + Counter(kills=1)
        await self._start(node)

    async def freeze(self, node: int) -> None:
        """Freeze a broker for longer than its session, and until the fleet works without it."""
        before = await self._duties(node)
        began = monotonic()
        with frozen(self.cluster.brokers[node]):
            await self._replaced(node)
            self.without_frozen.append(monotonic() - began)
            await self.world.fleet.pass_time(2 * SESSION_SECONDS - (monotonic() - began))
        self.counts += Counter(freezes=1, coordinators=before["coordinators"])
        await self._healed()

    async def restart(self, node: int) -> None:
        """Restart a broker in order; what it leads and coordinates is handed over."""
        before = await self._duties(node)
        await asyncio.to_thread(self.cluster.brokers[node].stop)
        self.counts += Counter(restarts=1, coordinators=before["coordinators"])
        await self._start(node)

    async def _start(self, node: int) -> None:
        await asyncio.to_thread(self.cluster.brokers[node].start)
        await self._healed()

    async def _duties(self, node: int) -> Counter[str]:
        leads = await self.cluster.leads(self.world.fleet.topic)
        return Counter(leaders=leads[node], coordinators=await self.coordinator() == node)

    async def _replaced(self, node: int) -> None:
        """Wait until others have taken over, and the fleet has caught up by their help."""

        async def is_replaced():
            return not (await self._duties(node)).total()

        await self.world.fleet.until(is_replaced, PATIENCE_SECONDS)
        await self._caught_up()

    async def _healed(self) -> None:
        """Wait until the fleet has caught up, and all replicas: the next one may go."""
        began = monotonic()
        await self._caught_up()
        self.recovered.append(monotonic() - began)

        async def is_in_sync():
            topics = self.world.fleet.topic, OFFSETS
            return all([await self.cluster.is_in_sync(topic) for topic in topics])

        await self.world.fleet.until(is_in_sync, PATIENCE_SECONDS)
        await self.world.fleet.pass_time(CALM_SECONDS)

    async def _caught_up(self) -> None:
        """All that was published before is committed."""
        fleet, ends = self.world.fleet, dict(self.world.publisher.ends)

        async def is_committed():
            committed = await self.cluster.committed(fleet.kafka.group)
            return all(committed.get(place, 0) >= end for place, end in ends.items())

        await fleet.until(is_committed, PATIENCE_SECONDS)


async def leaders(world: World, cluster: KafkaCluster) -> list[Verdict]:
    """Kill leaders, freeze one, kill the group's coordinator, restart all in turn."""
    brokers = Brokers(world, cluster)
    await world.start_all()
    async with world.load():
        for _ in range(2):
            await brokers.kill(await brokers.leader())
        await brokers.freeze(await brokers.leader())
        await brokers.kill(await brokers.coordinator())
        await brokers.freeze(await brokers.coordinator())
        for node in cluster.brokers:
            await brokers.restart(node)
    counts = brokers.counts
    return [
        *await conclude(world),
        _within("the fleet works without a killed broker", brokers.without_killed),
        _within("it has caught up after a broker is back", brokers.recovered),
        Verdict(
            # The client waits for each request that a frozen broker holds, one by one.
            "it works without a frozen broker",
            ", ".join(f"after {seconds:.1f} s" for seconds in brokers.without_frozen),
            held=True,
        ),
        tested("brokers killed", counts["kills"], 3),
        tested("leaders killed", counts["leaders"], 3),
        tested("brokers frozen", counts["freezes"], 2),
        tested("brokers restarted", counts["restarts"], len(cluster.brokers)),
        tested("moves of the coordinator", counts["coordinators"], 2),
        tested("records published", sum(world.publisher.ends.values()), 300),
    ]


def _within(claim: str, took: list[float]) -> Verdict:
    return Verdict(
        f"{claim} <= {RECOVERY_SECONDS:g} s",
        ", ".join(f"{seconds:.1f} s" for seconds in took),
        all(seconds <= RECOVERY_SECONDS for seconds in took),
    )
