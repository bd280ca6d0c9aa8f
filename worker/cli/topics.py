"""The commands `topics create` and `topics recreated`."""

import asyncio
from typing import Annotated, Literal

from cyclopts import validators

from worker.cli.output import say, show_json, show_table
from worker.cli.parameters import DEFAULTS, Json, WithSettings, Yes, option
from worker.errors import ConfigError

AtLeastOne = validators.Number(gte=1)
Partitions = Annotated[
    int,
    option("Of each document topic: how many workers can share it.", validator=AtLeastOne),
]
Replication = Annotated[
    int | None, option("Replicas [default: as the broker has it].", validator=AtLeastOne)
]
Cleanup = Annotated[
    Literal["compact", "delete"],
    option("compact keeps the last record of each document, delete those of a while."),
]
Hours = Annotated[
    float | None,
    option(
        "How long that is, with delete [default: as the broker has it].",
        validator=validators.Number(gt=0),
    ),
]
Topic = Annotated[str, option("Its name.")]


def create(
    *,
    partitions: Partitions = 8,
    replication: Replication = None,
    cleanup: Cleanup = "compact",
    retention_hours: Hours = None,
    json: Json = False,
    settings: WithSettings = DEFAULTS,
) -> int:
    """Create what is missing; a topic that exists is never changed."""
    from worker.app import jobs

    if retention_hours is not None and cleanup == "compact":
        raise ConfigError("--retention-hours counts only with --cleanup delete")
    reports = asyncio.run(
        jobs.create_topics(
            settings,
            partitions=partitions,
            replication=replication,
            cleanup=cleanup,
            retention_hours=retention_hours,
        )
    )
    if json:
        show_json([one._asdict() for one in reports])
    else:
        show_table(("topic", "state", "detail"), reports, empty="there are no topics")
    return 1 if any(one.state == "differs" for one in reports) else 0


def recreated(
    topic: Topic, /, *, yes: Yes = False, json: Json = False, settings: WithSettings = DEFAULTS
) -> int:
    """Begin anew with a topic."""
    from worker.app import partition_jobs

    places = asyncio.run(partition_jobs.topic_recreated(settings, topic, really=yes))
    if json:
        show_json({"topic": topic, "partitions": places, "done": yes})
    if not yes:
        say(f"the progress of {', '.join(places)} would be forgotten: say --yes")
        return 1
    say(f"{topic} is read from its beginning, also by the workers that had halted it")
    return 0
