"""
One-shot job: skip what cannot be read, on an operator's word.

Takes the claim of the partition, which fences whoever works on it, and raises `next_offset`.
Kafka's own offset must not stay behind, or a worker starts there (it takes the smaller of the
two); Kafka takes it only while the group has no members, so that is tried out first, with the
number that is there already. The table is written before Kafka, as always.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from worker.core.model import Partition
from worker.errors import ConfigError, FencedError
from worker.ports import Claims, Crashes

OWNER = "operator"


class GroupOffsets(Protocol):
    """The group's offsets in Kafka, and the bounds of the log."""

    async def bounds(self, partition: Partition) -> tuple[int, int]:
        """Return the first offset that is still there and the end."""

    async def committed(self, partition: Partition) -> int | None:
        """Return the group's committed offset, None where there is none."""

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        """
        Set the group's offsets from outside.

        Raises:
            FencedError: the group has members.
        """


class Skip(NamedTuple):
    """What a skip gives up: the offsets from `begin` up to, not with, `end`."""

    partition: Partition
    begin: int
    end: int


async def plan_skip(
    claims: Claims, offsets: GroupOffsets, group: str, partition: Partition, to: int
) -> Skip:
    """
    Return what a skip would give up; changes nothing.

    Raises:
        ConfigError: it would not go forward, or beyond the end of the log, or the group has
            members.
    """
    first, end = await offsets.bounds(partition)
    done = await claims.next_offset(group, partition)
    if to > end:
        raise ConfigError(f"{partition.name} ends at offset {end}: nothing to skip up to {to}")
    if done is not None and to <= done:
        raise ConfigError(
            f"{partition.name} is done up to offset {done} already: --to must be above it"
        )
    await _try_out(offsets, group, partition, to)
    return Skip(partition, first if done is None else done, to)


async def skip(
    claims: Claims, crashes: Crashes, offsets: GroupOffsets, group: str, planned: Skip
) -> None:
    """
    Give up what was planned, in the table and in Kafka.

    Raises:
        ConfigError: the group has members; nothing was changed.
    """
    partition = planned.partition
    stays_behind = await _try_out(offsets, group, partition, planned.end)
    claim = await claims.claim(group, partition, OWNER)
    await claims.begin(claim, planned.end)
    # Given back at once, or the next owner would take it for a crash.
    await crashes.begin(claim, OWNER, planned.end)
    await crashes.end([claim])
    if stays_behind:
        await offsets.commit({partition: planned.end})


async def _try_out(offsets: GroupOffsets, group: str, partition: Partition, end: int) -> bool:
    """Tell whether Kafka's offset is below the end, and make sure that it can be raised."""
    committed = await offsets.committed(partition)
    if committed is None or committed >= end:
        return False
    try:
        await offsets.commit({partition: committed})
    except FencedError as error:
        raise ConfigError(
            f"the group {group!r} has members: stop its workers, skip, start them again"
        ) from error
    return True
