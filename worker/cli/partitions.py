"""The commands `partitions list`, `partitions resume` and `partitions skip`."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import validators

from worker.cli.output import say, show_json, show_table
from worker.cli.parameters import (
    DEFAULTS,
    MAX_OFFSET,
    MAX_PARTITION,
    Json,
    WithSettings,
    Yes,
    is_number,
    option,
    within,
)
from worker.core.model import Partition
from worker.errors import ConfigError

if TYPE_CHECKING:  # it loads client libraries, which the help does without
    from worker.app.partition_jobs import PartitionRow

Name = Annotated[str, option("TOPIC/NUMBER, as in documents/3.")]
Offset = Annotated[
    int,
    option("The offset to go on from.", validator=validators.Number(gte=0, lte=MAX_OFFSET)),
]


def list_all(*, json: Json = False, settings: WithSettings = DEFAULTS) -> None:
    """List the partitions."""
    from worker.app import partition_jobs

    rows, has_members, problem = asyncio.run(partition_jobs.list_partitions(settings))
    if problem is not None:
        say(problem)
    if has_members is False:
        say(
            f"the group {settings.kafka.group!r} has no members: nobody works on its partitions"
        )
    if json:
        show_json([_facts(row) for row in rows])
        return
    head = ("partition", "next_offset", "committed", "lag", "epoch", "owner", "claimed_at")
    lines = [
        (
            f"{row.known.topic}/{row.known.partition}",
            row.known.next_offset,
            row.committed,
            row.lag,
            row.known.epoch,
            row.known.owner,
            row.known.claimed_at.isoformat(timespec="seconds"),
            row.problem,
        )
        for row in rows
    ]
    empty = f"the group {settings.kafka.group!r} has read nothing yet"
    show_table((*head, "problem"), lines, empty=empty)


def _facts(row: "PartitionRow") -> dict[str, Any]:
    from_kafka = {"committed": row.committed, "end": row.end, "lag": row.lag}
    return {**row.known._asdict(), **from_kafka, "problem": row.problem}


def resume(partition: Name, /, *, json: Json = False, settings: WithSettings = DEFAULTS) -> int:
    """Let a partition go on that is held because of a flood of dead letters."""
    from worker.app import partition_jobs

    is_held = asyncio.run(partition_jobs.resume(settings, parsed(partition)))
    if json:
        show_json({"partition": partition, "resumed": is_held})
    elif is_held:
        say(f"{partition} goes on as soon as its owner has read this, within seconds")
    if not is_held:
        say(f"{partition} is not held: nothing was changed")
    return 0 if is_held else 1


def skip(
    partition: Name,
    /,
    *,
    to: Offset,
    yes: Yes = False,
    json: Json = False,
    settings: WithSettings = DEFAULTS,
) -> int:
    """Skip what cannot be read, while the group is stopped."""
    from worker.app import partition_jobs

    place = parsed(partition)
    planned = asyncio.run(partition_jobs.skip(settings, place, to, really=yes))
    if json:
        show_json({**planned._asdict(), "partition": partition, "done": yes})
    range_ = f"the offsets {planned.begin} to {planned.end - 1} of {partition}"
    if not yes:
        say(f"{range_} would be given up for good; nothing was changed: say --yes")
        return 1
    say(f"{range_} are given up; start the workers again")
    return 0


def parsed(name: str) -> Partition:
    """Return the partition that TOPIC/NUMBER names."""
    topic, slash, number = name.rpartition("/")
    if not (slash and topic and is_number(number)):
        raise ConfigError(f"{name!r} is no TOPIC/NUMBER, as in documents/3")
    return Partition(topic, within(number, MAX_PARTITION))
