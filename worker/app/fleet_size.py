"""How large the fleet is and should be: what `GET /scale` looks at, put together."""

from worker.adapters.kafka_group import KafkaGroup
from worker.adapters.kafka_topics import Topics
from worker.adapters.pg_client import Database
from worker.adapters.pg_progress import PostgresProgress
from worker.app.assembly import Worker
from worker.app.provider import Provider
from worker.config import KafkaOptions, Settings
from worker.core.model import Partition
from worker.ops.scaling import FleetView, Own, Scaling
from worker.ports import Clock


def scaling(
    settings: Settings, worker: Worker, database: Database, provider: Provider, clock: Clock
) -> Scaling:
    """Return the advice of a worker."""

    async def look() -> FleetView:
        return await fleet(settings.kafka, database)

    def own() -> Own:
        return Own(
            busy_share=worker.dispatch.in_flight / settings.queue.max_in_flight,
            is_open=provider.breaker.is_held,
            held_back_seconds=provider.held_back_seconds,
        )

    return Scaling(look, own, drain_seconds=settings.telemetry.scale_drain_seconds, clock=clock)


async def fleet(options: KafkaOptions, database: Database) -> FleetView:
    """
    Look at all partitions of the group's topics.

    Raises:
        StoreUnavailable: the database does not answer.
        BrokerUnavailable: Kafka does not answer.
    """
    claimed = {
        Partition(one.topic, one.partition): one
        for one in await PostgresProgress(database).partitions(options.group)
    }
    found = await Topics(options).describe()
    places = [
        Partition(topic, number)
        for topic in options.topics
        if topic in found
        for number in range(found[topic].partitions)
    ]
    async with KafkaGroup.open(options, committed_only=True) as group:
        ends = await group.ends(places)
        settled = 0
        for place in places:
            offset = claimed[place].next_offset if place in claimed else None
            # Where nobody has begun, what retention removed does not wait.
            settled += (await group.bounds(place))[0] if offset is None else offset
    return FleetView(
        workers=len({claimed[place].owner for place in places if place in claimed}),
        partitions=len(places),
        ended=sum(ends.values()),
        settled=settled,
    )
