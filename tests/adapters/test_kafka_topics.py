"""`Topics`: what is missing is created, what exists is compared and left alone."""

from dataclasses import replace

import pytest
from aiokafka.cluster import ClusterMetadata

from worker.adapters.kafka_topics import TopicReport, Topics
from worker.errors import BrokerUnavailable, ConfigError

pytestmark = pytest.mark.real


@pytest.fixture
def options(kafka_options, group):
    return replace(
        kafka_options,
        topics=(f"a-{group}", f"b-{group}"),
        dead_letter_topic=f"letters-{group}",
    )


async def test_what_is_missing_is_created_and_the_second_time_it_existed(options):
    names = [*options.topics, options.dead_letter_topic]
    first = await Topics(options).create(partitions=3)
    assert first == [TopicReport(name, "created") for name in names]
    second = await Topics(options).create(partitions=3)
    assert second == [TopicReport(name, "existed") for name in names]


async def test_topics_are_described_as_they_were_created(options):
    assert await Topics(options).describe() == {}
    await Topics(options).create(partitions=3, cleanup="delete", retention_hours=48)
    found = await Topics(options).describe()
    assert found.keys() == {*options.topics, options.dead_letter_topic}
    documents = found[options.topics[0]]
    assert (documents.partitions, documents.replication) == (3, 1)
    assert documents.configuration["cleanup.policy"] == "delete"
    assert documents.configuration["retention.ms"] == str(48 * 3600 * 1000)
    letters = found[options.dead_letter_topic]
    assert letters.configuration["cleanup.policy"] == "delete"
    assert int(letters.configuration["retention.ms"]) >= 30 * 24 * 3600 * 1000
    assert int(letters.configuration["max.message.bytes"]) > 16 * 1024 * 1024


async def test_what_differs_is_named_and_left_alone(options):
    await Topics(options).create(partitions=2, cleanup="delete")
    report, _, _ = await Topics(options).create(partitions=3, cleanup="compact")
    assert report.state == "differs"
    assert report.detail == "2 partitions, not 3, cleanup.policy delete, not compact"
    found = await Topics(options).describe()
    assert found[options.topics[0]].partitions == 2


async def test_replication_may_be_left_to_the_broker(options):
    report, _, _ = await Topics(options).create(replication=None)
    assert report.state == "created"
    report, _, _ = await Topics(options).create(replication=None)
    assert report.state == "existed"


async def test_more_replicas_than_brokers_are_refused(options):
    with pytest.raises(ConfigError, match=options.topics[0]):
        await Topics(options).create(replication=100)


async def test_no_broker_is_an_error_of_ours(options):
    with pytest.raises(BrokerUnavailable):
        await Topics(replace(options, bootstrap_servers="127.0.0.1:1")).describe()


async def test_a_cluster_without_a_controller_is_an_error_of_ours(options, monkeypatch):
    never = property(lambda _: None, lambda *_: None)
    monkeypatch.setattr(ClusterMetadata, "controller", never, raising=False)
    with pytest.raises(BrokerUnavailable, match="controller"):
        await Topics(options).create()
