"""Topics and publishing on a real Kafka."""

from pathlib import Path

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.bounds import Limits
from schemas.codec import decode_record

pytestmark = pytest.mark.real


async def test_topics_are_created_once_and_a_difference_is_told(
    on_kafka, create_topic, group, embedfleet_beside, monkeypatch
):
    monkeypatch.setenv("EMBEDFLEET_KAFKA_TOPICS", f"{group}-a {group}-b")
    monkeypatch.setenv("EMBEDFLEET_KAFKA_DEAD_LETTER_TOPIC", f"{group}-dead")
    create = ("topics", "create", "--partitions", "2", "--json")
    made = await embedfleet_beside(*create)
    assert [one["state"] for one in made.json] == ["created"] * 3
    assert (await embedfleet_beside(*create)).code == 0
    other = await embedfleet_beside("topics", "create", "--partitions", "3")
    assert other.code == 1
    assert "2 partitions, not 3" in other.out


def jsonl(*events: object) -> None:
    Path("e.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, events)))


async def consumed(kafka_options, topic: str) -> list:
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=kafka_options.bootstrap_servers, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        ends = await consumer.end_offsets(
            [TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic)]
        )
        records = []
        while len(records) < sum(ends.values()):
            for found in (await consumer.getmany(timeout_ms=1000)).values():
                records += found
        return records
    finally:
        await consumer.stop()


async def test_events_arrive_as_a_worker_reads_them_and_bad_lines_do_not(
    topics, kafka_options, embedfleet_beside
):
    lines = [
        {
            "type": "upsert",
            "tenant": "t",
            "collection": "c",
            "id": f"a/{n}",
            "version": n,
            "text": "x" * 100,
        }
        for n in range(500)
    ]
    lines[250] = {"type": "upsert"}
    jsonl(*lines)
    ended = await embedfleet_beside("publish", "e.jsonl", "--json")
    assert ended.code == 1, ended.err
    assert (ended.json["published"], ended.json["bad"]) == (499, 1)
    records = await consumed(kafka_options, topics[0])
    events = [decode_record(r.key, r.value, r.headers, Limits()).event for r in records]
    assert sorted(one.version for one in events) == [n for n in range(500) if n != 250]


async def test_an_event_larger_than_the_topic_takes_is_a_bad_line(
    on_kafka, create_topic, embedfleet_beside
):
    topic = await create_topic(config={"max.message.bytes": "2000"})
    event = {"type": "upsert", "tenant": "t", "collection": "c", "id": "1", "version": 1}
    texts = [{**event, "text": "x" * size} for size in (1, 2000)]
    jsonl(*texts)
    ended = await embedfleet_beside("publish", "e.jsonl", "--topic", topic)
    assert ended.code == 1
    assert "e.jsonl:2: the record would have" in ended.err


async def test_a_topic_that_does_not_exist_is_told_at_once(on_kafka, embedfleet_beside):
    jsonl()
    ended = await embedfleet_beside("publish", "e.jsonl", "--topic", "nowhere")
    assert ended.code == 2
    assert "there is no topic 'nowhere': run `embedfleet topics create`" in ended.err
