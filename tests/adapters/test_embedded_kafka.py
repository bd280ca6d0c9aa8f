import asyncio
import os
import ssl
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError

from tests.support.kafka import topics
from tests.support.kafka_cluster import BROKERS, KafkaCluster
from tests.support.orphans import outlives_its_parent
from tests.support.servers import open_folder
from worker.embedded.kafka import EmbeddedKafka
from worker.embedded.kafka_jars import kafka_jars
from worker.embedded.kafka_settings import USERS
from worker.errors import ConfigError

pytestmark = pytest.mark.real

STARTER = """
import pathlib, sys
from worker.embedded.kafka import EmbeddedKafka
kafka = EmbeddedKafka(pathlib.Path(sys.argv[1]))
kafka.start()
print(kafka.pid, kafka._process._guard.pid, flush=True)
input()
"""


async def produce(servers, topic, values, **options):
    async with AIOKafkaProducer(bootstrap_servers=servers, **options) as producer:
        for value in values:
            await producer.send_and_wait(topic, value)


async def consume(servers, topic, group, count, **options):
    async with AIOKafkaConsumer(
        topic,
        bootstrap_servers=servers,
        group_id=group,
        auto_offset_reset="earliest",
        **options,
    ) as consumer:
        values = {(await consumer.getone()).value for _ in range(count)}
        await consumer.commit()
    return values


async def test_a_group_reads_what_was_produced(create_topic, kafka_server, group):
    topic = await create_topic(partitions=3)
    values = {b"%d" % number for number in range(20)}
    await produce(kafka_server.bootstrap_servers, topic, values)
    assert await consume(kafka_server.bootstrap_servers, topic, group, 20) == values


async def test_a_topic_is_deleted_after_its_test(kafka_server):
    async with topics(kafka_server.bootstrap_servers) as made:
        name = await made.create()
        assert name in await made.admin.list_topics()
        await made.delete(name)
        # The controller has deleted it; the broker that lists topics learns that later.
        async with asyncio.timeout(60):
            while name in await made.admin.list_topics():
                pass


def command_line(pid):
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


async def test_a_killed_broker_comes_back_at_the_same_address_with_its_records(group):
    with open_folder() as folder, EmbeddedKafka(folder, train=True) as kafka:
        servers, pid = kafka.bootstrap_servers, kafka.pid
        async with topics(servers) as made:
            name = await made.create()
            made.made.clear()
        await produce(servers, name, [b"before"])
        kafka.kill()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        kafka.start()
        assert kafka.bootstrap_servers == servers
        await produce(servers, name, [b"after"])
        assert await consume(servers, name, group, 2) == {b"before", b"after"}


async def test_brokers_that_are_told_of_each_other_are_one_cluster():
    with open_folder() as folder, KafkaCluster(folder) as cluster:
        servers = cluster.bootstrap_servers
        async with topics(servers, replicas=BROKERS) as made:
            name = await made.create()
            await produce(servers, name, [b"before"], acks="all")
            (leader,) = (await cluster.leaders(name)).values()
            cluster.brokers[leader].kill()
            await produce(servers, name, [b"after"], acks="all")
            assert leader not in (await cluster.leaders(name)).values()
            assert await consume(servers, name, "group", 2) == {b"before", b"after"}
            cluster.brokers[leader].start()


def test_the_cache_that_a_training_run_wrote_is_used_by_the_next_start():
    with open_folder() as folder:
        kafka = EmbeddedKafka(folder, train=True)
        kafka.start()
        cache = kafka._java.aot_cache
        kafka.stop()
        assert cache.exists()
        with kafka:
            assert f"-XX:AOTCache={cache}" in command_line(kafka.pid)
            assert not (folder / "kafka.aot").exists()
        log = (folder / "kafka.log").read_text()
        assert "[aot] Unable" not in log
        assert "An error has occurred while processing the AOT cache" not in log


def test_the_broker_dies_with_its_killed_parent():
    with open_folder() as folder:
        assert outlives_its_parent(STARTER, str(folder)) == []


def test_a_broker_of_an_incomplete_folder_of_jars_fails_with_the_end_of_its_log():
    with open_folder() as folder:
        jars = folder / "jars"
        jars.mkdir()
        (kafka,) = (jar for jar in kafka_jars() if jar.name.startswith("kafka_2.13"))
        (jars / kafka.name).symlink_to(kafka)
        with pytest.raises(ConfigError, match=r"ClassNotFound|NoClassDef"):
            EmbeddedKafka(folder / "kafka", jars=jars).start()


@pytest.fixture(scope="module")
def secured():
    with open_folder() as folder, EmbeddedKafka(folder, security=True) as kafka:
        yield kafka


def trusting(kafka, *, client=False):
    context = ssl.create_default_context(cafile=kafka.certificates.ca_file)
    if client:
        certificates = kafka.certificates
        context.load_cert_chain(
            certificates.client_certificate_file, certificates.client_key_file
        )
    return context


def login(mechanism, user, password=None):
    return {
        "sasl_mechanism": mechanism,
        "sasl_plain_username": user,
        "sasl_plain_password": password or USERS[user],
    }


def options_of(kafka, case):
    plain, tls = {"security_protocol": "SASL_PLAINTEXT"}, {"security_protocol": "SSL"}
    return {
        "SCRAM": ("SASL", plain | login("SCRAM-SHA-512", "alice")),
        "PLAIN": ("SASL", plain | login("PLAIN", "bob")),
        "SCRAM over TLS": (
            "SASLTLS",
            {"security_protocol": "SASL_SSL", "ssl_context": trusting(kafka)}
            | login("SCRAM-SHA-512", "alice"),
        ),
        "TLS": ("TLS", tls | {"ssl_context": trusting(kafka)}),
        "mTLS": ("MTLS", tls | {"ssl_context": trusting(kafka, client=True)}),
        "wrong password": ("SASL", plain | login("SCRAM-SHA-512", "alice", "wrong")),
        "no client certificate": ("MTLS", tls | {"ssl_context": trusting(kafka)}),
        "CA not known": ("TLS", tls | {"ssl_context": ssl.create_default_context()}),
        "plain text to TLS": ("TLS", {}),
    }[case]


@pytest.mark.parametrize("case", ["SCRAM", "PLAIN", "SCRAM over TLS", "TLS", "mTLS"])
async def test_a_secured_listener_serves_whom_it_should(secured, group, case):
    listener, options = options_of(secured, case)
    async with topics(secured.bootstrap_servers) as made:
        name = await made.create()
        servers = secured.listeners[listener]
        await produce(servers, name, [b"secret"], **options)
        assert await consume(servers, name, group, 1, **options) == {b"secret"}


@pytest.mark.parametrize(
    "case", ["wrong password", "no client certificate", "CA not known", "plain text to TLS"]
)
async def test_a_secured_listener_refuses_whom_it_should(secured, case):
    listener, options = options_of(secured, case)
    producer = AIOKafkaProducer(bootstrap_servers=secured.listeners[listener], **options)
    with pytest.raises(KafkaConnectionError):
        await producer.start()
    await producer.stop()
