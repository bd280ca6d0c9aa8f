"""What an operator sees and says of partitions, on a real Kafka and a real PostgreSQL."""

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from worker.adapters.pg_claims import PostgresClaims
from worker.adapters.pg_client import Database
from worker.adapters.pg_crashes import PostgresCrashes
from worker.adapters.pg_holds import PostgresHolds
from worker.core.isolation import Alone
from worker.core.model import Partition, Progress
from worker.errors import FencedError

pytestmark = pytest.mark.real


async def progressed(database: Database, group: str, place: Partition, offset: int):
    claims = PostgresClaims(database)
    claim = await claims.claim(group, place, "worker-1")
    await claims.begin(claim, 0)
    await claims.save_progress({claim: Progress(offset)})
    return claims, claim


async def sent(kafka_options, topic: str, count: int) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka_options.bootstrap_servers)
    await producer.start()
    for _ in range(count):
        await producer.send_and_wait(topic, b"x", partition=0)
    await producer.stop()


async def committed(kafka_options, topic: str, offset: int | None = None) -> int | None:
    """The group's offset in Kafka, set first where one is given."""
    place = TopicPartition(topic, 0)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka_options.bootstrap_servers,
        group_id=kafka_options.group,
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        consumer.assign([place])
        if offset is not None:
            await consumer.commit({place: offset})
        return await consumer.committed(place)
    finally:
        await consumer.stop()


async def test_partitions_show_the_table_beside_kafka(
    migrated, topics, kafka_options, embedfleet_beside
):
    await progressed(migrated, kafka_options.group, Partition(topics[0], 0), 7)
    await progressed(migrated, kafka_options.group, Partition("gone", 0), 7)
    await sent(kafka_options, topics[0], 10)
    await committed(kafka_options, topics[0], 5)
    rows = (await embedfleet_beside("partitions", "list", "--json")).json
    row, gone = sorted(rows, key=lambda row: row["topic"] == "gone")
    assert (row["next_offset"], row["committed"], row["epoch"]) == (7, 5, 1)
    assert (row["end"], row["lag"], gone["end"], gone["lag"]) == (10, 3, None, None)
    assert row["owner"] == "worker-1"
    listed = await embedfleet_beside("partitions", "list")
    assert f"{topics[0]}/0" in listed.out
    assert "has no members: nobody works on its partitions" in listed.err
    servers = kafka_options.bootstrap_servers
    member = AIOKafkaConsumer(
        topics[0], bootstrap_servers=servers, group_id=kafka_options.group
    )
    await member.start()
    try:
        assert (await embedfleet_beside("partitions", "list")).err == ""
    finally:
        await member.stop()


async def test_partitions_are_shown_also_where_kafka_is_away(
    migrated, group, embedfleet_beside, monkeypatch
):
    await progressed(migrated, group, Partition("documents", 0), 7)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    ended = await embedfleet_beside("partitions", "list", "--kafka.group", group, "--json")
    assert ended.code == 0
    assert [(row["next_offset"], row["committed"]) for row in ended.json] == [(7, None)]
    assert "Kafka is not reachable" in ended.err


async def problem_of(embedfleet_beside) -> str | None:
    (row,) = (await embedfleet_beside("partitions", "list", "--json")).json
    return row["problem"]


async def test_a_held_partition_is_listed_with_its_problem_and_resumed(
    migrated, topics, kafka_options, embedfleet_beside
):
    place = Partition(topics[0], 0)
    _, claim = await progressed(migrated, kafka_options.group, place, 7)
    assert await problem_of(embedfleet_beside) is None
    name, holds = f"{topics[0]}/0", PostgresHolds(migrated)
    refused = await embedfleet_beside("partitions", "resume", name)
    assert (refused.code, "is not held" in refused.err) == (1, True)
    await holds.hold(claim, "too many dead letters")
    listed = await embedfleet_beside("partitions", "list")
    assert "held: too many dead letters" in listed.out
    ended = await embedfleet_beside("partitions", "resume", name, "--json")
    assert (ended.code, ended.json) == (0, {"partition": name, "resumed": True})
    assert await problem_of(embedfleet_beside) == "held: too many dead letters, going on"
    assert (await holds.found(kafka_options.group, place)).is_resumed


async def test_a_partition_of_which_owners_die_is_listed_with_the_suspect(
    migrated, topics, kafka_options, embedfleet_beside
):
    place, crashes = Partition(topics[0], 0), PostgresCrashes(migrated)
    for number in range(4):
        _, claim = await progressed(migrated, kafka_options.group, place, 0)
        await crashes.begin(claim, f"worker-{number}", 0)
    assert await problem_of(embedfleet_beside) == "its last 3 owners died at this offset"
    await crashes.mark(claim, Alone(5, fetching=False))
    _, claim = await progressed(migrated, kafka_options.group, place, 0)
    await crashes.begin(claim, "worker-5", 0)
    assert (await problem_of(embedfleet_beside)).endswith("the record at offset 5")


async def test_a_skip_leaves_no_unclean_end(migrated, topics, kafka_options, embedfleet_beside):
    topic, place, group = topics[0], Partition(topics[0], 0), kafka_options.group
    await sent(kafka_options, topic, 10)
    claims, claim = await progressed(migrated, group, place, 3)
    crashes = PostgresCrashes(migrated)
    await crashes.begin(claim, "worker-1", 3)
    await committed(kafka_options, topic, 3)
    await embedfleet_beside("partitions", "skip", f"{topic}/0", "--to", "8", "--yes")
    entry = await crashes.begin(await claims.claim(group, place, "w"), "w", 8)
    assert (entry.unclean_ends, entry.suspect) == (1, None)


async def test_a_skip_moves_table_and_kafka_and_fences_the_owner(
    migrated, topics, kafka_options, embedfleet_beside
):
    topic, place, group = topics[0], Partition(topics[0], 0), kafka_options.group
    await sent(kafka_options, topic, 10)
    claims, claim = await progressed(migrated, group, place, 3)
    await committed(kafka_options, topic, 3)
    skip = ("partitions", "skip", f"{topic}/0", "--to", "8")
    asked = await embedfleet_beside(*skip)
    assert (asked.code, "offsets 3 to 7" in asked.err) == (1, True)
    assert await claims.next_offset(group, place) == 3
    ended = await embedfleet_beside(*skip, "--yes", "--json")
    assert (ended.code, ended.json["done"]) == (0, True)
    assert "start the workers again" in ended.err
    assert await claims.next_offset(group, place) == 8
    assert await committed(kafka_options, topic) == 8
    with pytest.raises(FencedError):
        await claims.begin(claim, 3)


@pytest.mark.parametrize(("to", "words"), [("3", "done up to offset 3"), ("11", "ends at")])
async def test_a_skip_goes_forward_only_and_not_beyond_the_log(
    to, words, migrated, topics, kafka_options, embedfleet_beside
):
    topic, place, group = topics[0], Partition(topics[0], 0), kafka_options.group
    await sent(kafka_options, topic, 10)
    claims, _ = await progressed(migrated, group, place, 3)
    ended = await embedfleet_beside("partitions", "skip", f"{topic}/0", "--to", to, "--yes")
    assert (ended.code, words in ended.err) == (2, True)
    assert await claims.next_offset(group, place) == 3


async def test_a_skip_is_refused_while_the_group_has_members_and_nothing_changes(
    migrated, topics, kafka_options, embedfleet_beside
):
    topic, place, group = topics[0], Partition(topics[0], 0), kafka_options.group
    await sent(kafka_options, topic, 10)
    claims, _ = await progressed(migrated, group, place, 3)
    await committed(kafka_options, topic, 3)
    member = AIOKafkaConsumer(
        topic, bootstrap_servers=kafka_options.bootstrap_servers, group_id=group
    )
    await member.start()
    try:
        skip = ("partitions", "skip", f"{topic}/0", "--to", "8")
        ends = [await embedfleet_beside(*skip, *how) for how in ((), ("--yes",))]
    finally:
        await member.stop()
    for ended in ends:
        assert ended.code == 2
        assert "has members: stop its workers" in ended.err
    assert await claims.next_offset(group, place) == 3


async def test_a_partition_that_does_not_exist_is_told(migrated, topics, embedfleet_beside):
    for name, words in ((f"{topics[0]}/9", "2 partitions"), ("nowhere/0", "there is no topic")):
        ended = await embedfleet_beside("partitions", "skip", name, "--to", "1", "--yes")
        assert (ended.code, words in ended.err) == (2, True)


async def test_a_recreated_topic_is_a_new_incarnation_without_progress_for_every_group(
    migrated, group, embedfleet_beside
):
    here, there = Partition("documents", 0), Partition("documents", 1)
    other = Partition("others", 0)
    claims, claim = await progressed(migrated, group, here, 7)
    await progressed(migrated, f"{group}-2", there, 8)
    await progressed(migrated, group, other, 9)
    asked = await embedfleet_beside("topics", "recreated", "documents")
    assert (asked.code, await claims.next_offset(group, here)) == (1, 7)
    ended = await embedfleet_beside("topics", "recreated", "documents", "--yes")
    assert ended.code == 0, ended.err
    assert await claims.next_offset(group, here) is None
    assert await claims.next_offset(f"{group}-2", there) is None
    assert await claims.next_offset(group, other) == 9
    with pytest.raises(FencedError):
        await claims.begin(claim, 0)
    again = [await claims.claim(group, here, "w"), await claims.claim(f"{group}-2", there, "w")]
    assert [one.incarnation for one in again] == [1, 1]
    assert [one.landmark for one in again] == [None, None]
    assert (await claims.claim(group, other, "w")).incarnation == 0
    await embedfleet_beside("topics", "recreated", "documents", "--yes")
    assert (await claims.claim(group, here, "w")).incarnation == 2


async def test_a_topic_nobody_has_read_cannot_have_been_recreated(migrated, embedfleet_beside):
    ended = await embedfleet_beside("topics", "recreated", "nowhere", "--yes")
    assert (ended.code, "no group has ever read" in ended.err) == (2, True)
