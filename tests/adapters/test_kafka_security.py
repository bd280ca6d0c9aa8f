"""Every kind of listener is used as configured, and `probe` tells what is wrong apart."""

import asyncio
import socket
from dataclasses import replace

import pytest

from tests.contracts.test_dead_letters import RECORDED, letter
from tests.support.kafka_facts import Member
from tests.support.kafka_own import frozen, quick_options, run_own_kafka
from worker.adapters import kafka_probe
from worker.adapters.kafka_dead_letters import KafkaDeadLetters
from worker.adapters.kafka_probe import probe
from worker.adapters.kafka_source import KafkaSource
from worker.adapters.kafka_topics import Topics
from worker.embedded.kafka_settings import USERS
from worker.errors import BrokerUnavailable

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def broker():
    with run_own_kafka(security=True) as broker:
        yield broker


@pytest.fixture
def options_of(broker, group, monkeypatch):
    """`options_of(listener, **changes)`: options that fit a listener, but for the changes."""
    files = broker.certificates
    for user, password in USERS.items():
        monkeypatch.setenv(f"PASSWORD_OF_{user.upper()}", password)
    scram = {
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_username": "alice",
        "sasl_password_variable": "PASSWORD_OF_ALICE",
    }
    ca = {"tls_ca_file": files.ca_file}
    certificate = {
        "tls_certificate_file": files.client_certificate_file,
        "tls_key_file": files.client_key_file,
    }
    fitting = {
        "PLAINTEXT": {},
        "SASL": {"security_protocol": "SASL_PLAINTEXT"} | scram,
        "SASLTLS": {"security_protocol": "SASL_SSL"} | scram | ca,
        "TLS": {"security_protocol": "SSL"} | ca,
        "MTLS": {"security_protocol": "SSL"} | ca | certificate,
    }

    def options(listener, **changes):
        own = {
            "topics": (f"topic-of-{group}",),
            "dead_letter_topic": f"letters-of-{group}",
            "bootstrap_servers": broker.listeners[listener],
        }
        made = quick_options(broker, group, **fitting[listener])
        return replace(made, **(own | changes))

    return options


PLAIN = {
    "sasl_mechanism": "PLAIN",
    "sasl_username": "bob",
    "sasl_password_variable": "PASSWORD_OF_BOB",
}


@pytest.mark.parametrize(
    ("listener", "changes"),
    [
        ("PLAINTEXT", {}),
        ("SASL", {}),
        ("SASL", PLAIN),
        ("SASLTLS", {}),
        ("SASLTLS", PLAIN),
        ("TLS", {}),
        ("MTLS", {}),
    ],
)
async def test_topics_letters_and_records_pass_a_listener(options_of, listener, changes):
    options = options_of(listener, **changes)
    await Topics(options).create(partitions=1)
    letters = KafkaDeadLetters(replace(options, dead_letter_topic=options.topics[0]))
    await letters.publish(letter(), RECORDED)
    await letters.close()
    source = KafkaSource(options)
    member = Member(source, begin_at=0)
    await source.open(member)
    (record,) = await member.take_records(1)
    assert record.value == b"value"
    await source.commit({next(iter(member.partitions)): 1})
    assert await source.landmark(next(iter(member.partitions)), 0)
    await source.close()
    assert all(step.ok for step in await probe(options))


async def test_a_wrong_password_is_a_broker_that_is_not_there_to_the_source(
    options_of, monkeypatch
):
    monkeypatch.setenv("PASSWORD_OF_ALICE", "wrong")
    source = KafkaSource(options_of("SASL"))
    with pytest.raises(BrokerUnavailable):
        await source.open(Member(source))


class TestProbe:
    async def failure(self, options, monkeypatch=None):
        """Probe, and return the steps that worked and the one that failed."""
        *good, bad = await probe(options)
        assert all(step.ok for step in good)
        assert not bad.ok
        names = [step.step.rpartition(" ")[2] for step in good]
        return names, bad.step.rpartition(" ")[2], bad.detail

    async def test_nobody_listens(self, options_of):
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
            server = f"127.0.0.1:{reserved.getsockname()[1]}"
            good, step, detail = await self.failure(
                options_of("PLAINTEXT", bootstrap_servers=server)
            )
        assert (good, step) == ([], "TCP")
        assert "nobody listens" in detail

    @pytest.mark.parametrize("listener", ["SASL", "SASLTLS"])
    async def test_the_password_is_wrong(self, options_of, monkeypatch, listener):
        monkeypatch.setenv("PASSWORD_OF_ALICE", "wrong")
        good, step, detail = await self.failure(options_of(listener))
        assert good == ["TCP"] + ["TLS"] * (listener == "SASLTLS")
        assert step == "SASL"
        assert "refuses the log-in" in detail
        assert "wrong" not in detail

    async def test_the_mechanism_is_not_offered(self, options_of):
        good, step, detail = await self.failure(
            options_of("SASL", sasl_mechanism="SCRAM-SHA-256")
        )
        assert (good, step) == (["TCP"], "SASL")
        assert "SCRAM-SHA-256" in detail

    async def test_the_ca_is_another(self, options_of, broker):
        other = broker.certificates.client_certificate_file
        good, step, detail = await self.failure(options_of("TLS", tls_ca_file=other))
        assert (good, step) == (["TCP"], "TLS")
        assert "certificate is not accepted" in detail

    async def test_the_client_certificate_is_missing(self, options_of):
        good, step, detail = await self.failure(
            options_of("MTLS", tls_certificate_file=None, tls_key_file=None)
        )
        assert (good, step) == (["TCP", "TLS"], "request")
        assert "client certificate" in detail

    async def test_plain_text_to_a_tls_port(self, options_of, broker):
        good, step, detail = await self.failure(
            options_of("PLAINTEXT", bootstrap_servers=broker.listeners["TLS"])
        )
        assert (good, step) == (["TCP"], "request")
        assert "the port speaks TLS" in detail

    async def test_tls_to_a_plain_text_port(self, options_of, broker):
        good, step, detail = await self.failure(
            options_of("TLS", bootstrap_servers=broker.listeners["PLAINTEXT"])
        )
        assert (good, step) == (["TCP"], "TLS")
        assert "plain text" in detail

    async def test_no_log_in_where_one_is_wanted(self, options_of, broker):
        good, step, detail = await self.failure(
            options_of("PLAINTEXT", bootstrap_servers=broker.listeners["SASL"])
        )
        assert (good, step) == (["TCP"], "request")
        assert "SASL" in detail

    async def test_a_log_in_where_none_is_wanted(self, options_of, broker):
        good, step, detail = await self.failure(
            options_of("SASL", bootstrap_servers=broker.listeners["PLAINTEXT"])
        )
        assert (good, step) == (["TCP"], "SASL")
        assert "without SASL" in detail

    async def test_a_secret_is_missing(self, options_of, monkeypatch):
        monkeypatch.delenv("PASSWORD_OF_ALICE")
        (step,) = await probe(options_of("SASL"))
        assert (step.step, step.ok) == ("configuration", False)
        assert "PASSWORD_OF_ALICE" in step.detail

    async def test_a_broker_that_does_not_answer_is_given_up(
        self, options_of, broker, monkeypatch
    ):
        monkeypatch.setattr(kafka_probe, "_STEP_SECONDS", 0.3)
        with frozen(broker):
            async with asyncio.timeout(5):
                good, step, _ = await self.failure(options_of("SASL"))
        assert (good, step) == (["TCP"], "SASL")

    async def test_every_server_is_asked(self, options_of, broker):
        servers = broker.listeners["TLS"] + "," + broker.listeners["PLAINTEXT"]
        steps = await probe(options_of("PLAINTEXT", bootstrap_servers=servers))
        assert [step.ok for step in steps] == [True, False, True, True]
