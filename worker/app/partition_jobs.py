"""One-shot jobs on partitions and topics put together: what is done, what is given up."""

from dataclasses import replace
from typing import NamedTuple

from worker.adapters.kafka_group import KafkaGroup, has_members
from worker.adapters.kafka_topics import Topics
from worker.adapters.pg_claims import PostgresClaims
from worker.adapters.pg_crashes import PostgresCrashes
from worker.adapters.pg_holds import PostgresHolds
from worker.adapters.pg_progress import PartitionProgress, PostgresProgress
from worker.app.jobs import opened
from worker.config import KafkaOptions, Settings
from worker.core.isolation import ISOLATE_AFTER
from worker.core.model import Partition
from worker.errors import BrokerUnavailable, ConfigError
from worker.ops import partitions


class PartitionRow(NamedTuple):
    """
    A partition as table and Kafka know it.

    `committed` None: none, or not reachable; `end` None: no such partition, or not reachable.
    """

    known: PartitionProgress
    committed: int | None
    end: int | None

    @property
    def lag(self) -> int | None:
        """How many offsets the table is not done with, None where that is not known."""
        if self.end is None or self.known.next_offset is None:
            return None
        return max(0, self.end - self.known.next_offset)

    @property
    def problem(self) -> str | None:
        """What an operator should know of it, None where all is well."""
        known = self.known
        if known.held_because is not None:
            end = ", going on" if known.is_resumed else ""
            return f"held: {known.held_because}{end}"
        if known.suspect_offset is not None:
            return f"its owners died, suspected: the record at offset {known.suspect_offset}"
        # A start that was left behind: whatever it was, it is over.
        if known.unclean_ends >= ISOLATE_AFTER and known.next_offset == known.start_offset:
            return f"its last {known.unclean_ends} owners died at this offset"
        return None


class Listed(NamedTuple):
    """
    The partitions of a group.

    `has_members` None: not known; `problem` says why Kafka's side is missing where it is.
    """

    rows: list[PartitionRow]
    has_members: bool | None
    problem: str | None = None


class _KafkaSide(NamedTuple):
    committed: dict[Partition, int | None]
    ends: dict[Partition, int]
    has_members: bool | None


async def list_partitions(settings: Settings) -> Listed:
    """Return the partitions of the group."""
    async with opened(settings.database) as database:
        known = await PostgresProgress(database).partitions(settings.kafka.group)
    try:
        side, problem = await _kafka_side(settings.kafka, known), None
    except BrokerUnavailable as error:
        side, problem = _KafkaSide({}, {}, None), f"Kafka is not reachable: {error}"
    rows = [
        PartitionRow(one, side.committed.get(place), side.ends.get(place))
        for one in known
        for place in [Partition(one.topic, one.partition)]
    ]
    return Listed(rows, side.has_members, problem)


async def _kafka_side(options: KafkaOptions, known: list[PartitionProgress]) -> _KafkaSide:
    if not known:
        return _KafkaSide({}, {}, None)
    places = [Partition(one.topic, one.partition) for one in known]
    names = tuple(sorted({place.topic for place in places}))
    # The client would wait for a topic that is gone.
    found = await Topics(replace(options, topics=names)).describe()
    there = [
        place
        for place in places
        if place.topic in found and place.number < found[place.topic].partitions
    ]
    async with KafkaGroup.open(options) as group:
        committed = {place: await group.committed(place) for place in places}
        ends = await group.ends(there)
    return _KafkaSide(committed, ends, await has_members(options))


async def resume(settings: Settings, partition: Partition) -> bool:
    """Let a held partition go on; False where it is not held."""
    async with opened(settings.database) as database:
        return await PostgresHolds(database).resume(settings.kafka.group, partition)


async def skip(
    settings: Settings, partition: Partition, to: int, *, really: bool
) -> partitions.Skip:
    """Skip what cannot be read, or only say what that would give up."""
    group_name = settings.kafka.group
    await _check_exists(settings.kafka, partition)
    async with KafkaGroup.open(settings.kafka) as group, opened(settings.database) as database:
        claims, crashes = PostgresClaims(database), PostgresCrashes(database)
        planned = await partitions.plan_skip(claims, group, group_name, partition, to)
        if really:
            await partitions.skip(claims, crashes, group, group_name, planned)
    return planned


async def _check_exists(options: KafkaOptions, partition: Partition) -> None:
    # The client would wait for it to appear.
    found = await Topics(replace(options, topics=(partition.topic,))).describe()
    if partition.topic not in found:
        raise ConfigError(f"there is no topic {partition.topic!r}")
    count = found[partition.topic].partitions
    if partition.number >= count:
        raise ConfigError(
            f"the topic {partition.topic!r} has {count} partitions, numbered from 0: "
            f"there is no {partition.number}"
        )


async def topic_recreated(settings: Settings, topic: str, *, really: bool) -> list[str]:
    """Begin the next incarnation of a topic; returns the partitions whose progress goes."""
    async with opened(settings.database) as database:
        progress = PostgresProgress(database)
        claims = await progress.claims_of_topic(topic)
        if not claims:
            raise ConfigError(f"no group has ever read a topic {topic!r} into this database")
        if really:
            await progress.begin_incarnation(topic, partitions.OWNER)
    return [f"{topic}/{number} of {group}" for group, number in claims]
