"""What Kafka clients are made with: secrets, TLS."""

from dataclasses import replace

import pytest
from aiokafka.conn import AIOKafkaConnection

from worker.adapters.kafka_client import client_arguments
from worker.adapters.kafka_source import consumer_arguments
from worker.config import KafkaOptions
from worker.errors import ConfigError

SCRAM = KafkaOptions(
    security_protocol="SASL_PLAINTEXT", sasl_mechanism="SCRAM-SHA-512", sasl_username="alice"
)


def test_several_servers_are_told_one_by_one():
    arguments = client_arguments(KafkaOptions(bootstrap_servers="a:1, b:2"))
    assert arguments["bootstrap_servers"] == ["a:1", "b:2"]


def test_an_empty_server_is_refused():
    with pytest.raises(ConfigError, match="bootstrap_servers"):
        client_arguments(KafkaOptions(bootstrap_servers="a:1,"))


def test_a_password_comes_from_a_variable(monkeypatch):
    monkeypatch.setenv("SECRET_FOR_TEST", "from-variable")
    arguments = client_arguments(replace(SCRAM, sasl_password_variable="SECRET_FOR_TEST"))
    assert arguments["sasl_plain_password"] == "from-variable"


def test_a_password_comes_from_a_file_without_its_line_end(tmp_path):
    file = tmp_path / "password"
    file.write_text(" from file \r\n")
    arguments = client_arguments(replace(SCRAM, sasl_password_file=file))
    assert arguments["sasl_plain_password"] == " from file "


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (SCRAM, "sasl_password"),
        (replace(SCRAM, sasl_username=None), "username"),
        (replace(SCRAM, sasl_password_variable="NOT_SET_IN_TESTS"), "NOT_SET_IN_TESTS"),
        (replace(SCRAM, sasl_mechanism="OAUTHBEARER"), "sasl_token_file"),
    ],
)
def test_a_missing_secret_is_named(options, named):
    with pytest.raises(ConfigError, match=named):
        client_arguments(options)


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_a_secret_file_that_is_missing_or_empty_is_named(tmp_path, content):
    file = tmp_path / "secret"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match="sasl_password_file"):
        client_arguments(replace(SCRAM, sasl_password_file=file))


def test_a_ca_file_that_is_none_is_named(tmp_path):
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        client_arguments(KafkaOptions(security_protocol="SSL", tls_ca_file=file))


async def test_a_token_is_read_again_at_every_log_in(tmp_path):
    file = tmp_path / "token"
    options = replace(SCRAM, sasl_mechanism="OAUTHBEARER", sasl_token_file=file)
    provider = client_arguments(options)["sasl_oauth_token_provider"]
    file.write_text("first\n")
    assert await provider.token() == "first"
    file.write_text("second\n")
    assert await provider.token() == "second"


async def test_the_librarys_log_in_carries_the_token(tmp_path):
    file = tmp_path / "token"
    file.write_text("the-token")
    options = replace(SCRAM, sasl_mechanism="OAUTHBEARER", sasl_token_file=file)
    arguments = client_arguments(options)
    arguments = {name: arguments[name] for name in arguments if name.startswith("sasl_")}
    connection = AIOKafkaConnection("localhost", 1, **arguments)
    payload, _ = await connection.authenticator_oauth().step(None)
    assert b"auth=Bearer the-token\x01" in payload


def test_a_broker_waits_for_no_more_than_a_partition_s_buffer_holds():
    arguments = consumer_arguments(KafkaOptions(fetch_wait_seconds=0.03))
    assert (arguments["fetch_min_bytes"], arguments["fetch_max_wait_ms"]) == (64 * 1024, 30)
    small = consumer_arguments(KafkaOptions(max_partition_fetch_bytes=2048))
    assert small["fetch_min_bytes"] == 2048
