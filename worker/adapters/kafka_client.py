"""
What every Kafka client of ours is made with: addresses, TLS, SASL, secrets.

Secrets come from a variable or a file and are handed to the library only.
"""

import asyncio
import os
from pathlib import Path
from ssl import SSLContext, SSLError
from typing import Any

from aiokafka import ConsumerRecord
from aiokafka.abc import AbstractTokenProvider
from aiokafka.helpers import create_ssl_context

from worker.config import KafkaOptions
from worker.core.model import Position, Record
from worker.errors import ConfigError

# With the default of 0.1 s a client whose broker is away logs 78 lines a second.
RETRY_BACKOFF_SECONDS = 1.0
# New partitions and moved leaders are seen within a minute, not five.
METADATA_MAX_AGE_SECONDS = 60.0


def milliseconds(seconds: float) -> int:
    """Return whole milliseconds, as the library wants its times."""
    return round(seconds * 1000)


def client_arguments(options: KafkaOptions) -> dict[str, Any]:
    """
    Return what consumer, producer and admin client are all made with.

    Raises:
        ConfigError: a secret or a certificate is missing or cannot be read.
    """
    arguments: dict[str, Any] = {
        "bootstrap_servers": bootstrap_servers(options),
        "client_id": options.client_id,
        "security_protocol": options.security_protocol,
        "request_timeout_ms": milliseconds(options.request_seconds),
        "retry_backoff_ms": milliseconds(RETRY_BACKOFF_SECONDS),
        "metadata_max_age_ms": milliseconds(METADATA_MAX_AGE_SECONDS),
    }
    if uses_tls(options):
        arguments["ssl_context"] = tls_context(options)
    if options.security_protocol.startswith("SASL"):
        arguments |= _sasl_arguments(options)
    return arguments


def bootstrap_servers(options: KafkaOptions) -> list[str]:
    """Return the configured servers one by one."""
    servers = [server.strip() for server in options.bootstrap_servers.split(",")]
    if not all(servers):
        raise ConfigError(
            f"kafka.bootstrap_servers {options.bootstrap_servers!r} is no list of host:port"
        )
    return servers


def uses_tls(options: KafkaOptions) -> bool:
    """Whether connections are encrypted."""
    return options.security_protocol in ("SSL", "SASL_SSL")


def tls_context(options: KafkaOptions) -> SSLContext:
    """Return a context that verifies the broker, and shows our certificate if we have one."""
    try:
        context: SSLContext = create_ssl_context(
            cafile=options.tls_ca_file,
            certfile=options.tls_certificate_file,
            keyfile=options.tls_key_file,
        )
    except (OSError, SSLError) as error:
        files = (options.tls_ca_file, options.tls_certificate_file, options.tls_key_file)
        named = ", ".join(str(file) for file in files if file is not None)
        raise ConfigError(f"cannot use the TLS files ({named}): {error}") from error
    return context


def _sasl_arguments(options: KafkaOptions) -> dict[str, Any]:
    if options.sasl_mechanism == "OAUTHBEARER":
        if options.sasl_token_file is None:
            raise ConfigError("kafka.sasl_mechanism OAUTHBEARER needs kafka.sasl_token_file")
        return {
            "sasl_mechanism": options.sasl_mechanism,
            "sasl_oauth_token_provider": TokenFile(options.sasl_token_file),
        }
    if options.sasl_username is None:
        raise ConfigError(f"kafka.sasl_mechanism {options.sasl_mechanism} needs a username")
    return {
        "sasl_mechanism": options.sasl_mechanism,
        "sasl_plain_username": options.sasl_username,
        "sasl_plain_password": _password(options),
    }


def _password(options: KafkaOptions) -> str:
    if options.sasl_password_file is not None:
        return read_secret(options.sasl_password_file, "kafka.sasl_password_file")
    name = options.sasl_password_variable
    if name is None:
        raise ConfigError(
            f"kafka.sasl_mechanism {options.sasl_mechanism} needs a password: set "
            "kafka.sasl_password_variable or kafka.sasl_password_file"
        )
    password = os.environ.get(name)
    if not password:
        raise ConfigError(f"kafka.sasl_password_variable names {name}, which is not set")
    return password


def read_secret(path: Path, setting: str) -> str:
    """Return what a secret's file holds, without the line end that editors add."""
    try:
        secret = path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {setting} {path}: {error}") from error
    if not secret:
        raise ConfigError(f"{setting} {path} is empty")
    return secret


class TokenFile(AbstractTokenProvider):  # type: ignore[misc]  # the library has no types
    """
    An OAUTHBEARER token that something else renews in a file.

    Read at every log-in: brokers drop a connection when its token expires, and the library
    then logs in anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    async def token(self) -> str:
        """Return the token of this moment."""
        return await asyncio.to_thread(read_secret, self._path, "kafka.sasl_token_file")


def record_of(polled: ConsumerRecord) -> Record:
    """Return a polled record in our words."""
    return Record(
        Position(polled.topic, polled.partition, polled.offset),
        polled.timestamp,
        polled.key,
        polled.value,
        polled.headers,
    )
