"""The settings of Kafka: where, who, and the timers that keep a group stable."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from worker.config.about import about
from worker.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class KafkaOptions:
    """The broker, the topics, and the timers of the consumer group."""

    bootstrap_servers: Annotated[
        str, about("host:port[,host:port]; KAFKA_BOOTSTRAP_SERVERS is accepted too.")
    ] = "localhost:9092"
    topics: Annotated[tuple[str, ...], about("Document topics to consume.", min_length=1)] = (
        "documents",
    )
    dead_letter_topic: Annotated[str, about("Where records go that cannot pass.")] = (
        "documents.dead-letters"
    )
    group: Annotated[str, about("The consumer group: one fleet.")] = "embedfleet"
    client_id: Annotated[str, about("How brokers name this client in their logs.")] = (
        "embedfleet"
    )
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        about("As in Kafka's clients."),
    ] = "PLAINTEXT"
    tls_ca_file: Annotated[Path | None, about("CA that signed the broker's certificate.")] = (
        None
    )
    tls_certificate_file: Annotated[Path | None, about("Client certificate, for mTLS.")] = None
    tls_key_file: Annotated[Path | None, about("Key of the client certificate.")] = None
    sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None,
        about("Needed by the SASL protocols."),
    ] = None
    sasl_username: Annotated[str | None, about("For PLAIN and SCRAM.")] = None
    sasl_password_variable: Annotated[
        str | None, about("Name of the variable that holds the password.")
    ] = None
    sasl_password_file: Annotated[Path | None, about("File that holds the password.")] = None
    sasl_token_file: Annotated[
        Path | None, about("File that holds the OAUTHBEARER token; read at every log-in.")
    ] = None
    heartbeat_seconds: Annotated[
        float, about("A rebalance is noticed within this time.", gt=0)
    ] = 3
    drain_seconds: Annotated[
        float, about("What a revoked or stopping worker has to finish what it began.", gt=0)
    ] = 20
    rebalance_seconds: Annotated[
        float, about("What the group waits for a member to drain.", gt=0)
    ] = 30
    request_seconds: Annotated[
        float, about("Time limit of one request; joining the group is one.", gt=0)
    ] = 40
    session_seconds: Annotated[
        float, about("A worker silent for longer is out of the group (KIP-735).", gt=0)
    ] = 45
    max_poll_interval_seconds: Annotated[
        float, about("A worker that polls nothing for longer leaves the group.", gt=0)
    ] = 300
    max_poll_records: Annotated[
        int, about("Records per partition and poll; more starves the others.", ge=1, le=10_000)
    ] = 64
    max_partition_fetch_bytes: Annotated[
        int, about("Fetch buffer of one partition.", ge=1024)
    ] = 1024 * 1024
    fetch_wait_seconds: Annotated[
        float,
        about(
            "A broker with little waits for more this long; an idle worker asks as often.",
            ge=0.005,
            le=1,
        ),
    ] = 0.02
    commit_interval_seconds: Annotated[
        float,
        about("How often progress is written; bounds what a crash re-reads.", gt=0, le=60),
    ] = 1

    def __post_init__(self) -> None:
        """Refuse timers that make a group rebalance for ever."""
        if self.heartbeat_seconds * 3 > self.session_seconds:
            raise ConfigError(
                "kafka.heartbeat_seconds must be at most a third of kafka.session_seconds, "
                "or one lost heartbeat expels the worker"
            )
        if self.drain_seconds + 5 > self.rebalance_seconds:
            raise ConfigError(
                f"kafka.drain_seconds ({self.drain_seconds:g}) + 5 must not exceed "
                f"kafka.rebalance_seconds ({self.rebalance_seconds:g}), "
                "or two workers evict each other for ever"
            )
        if self.rebalance_seconds >= self.request_seconds:
            raise ConfigError(
                "kafka.rebalance_seconds must be below kafka.request_seconds, "
                "or joining the group is given up while others still drain"
            )
        if self.request_seconds > self.session_seconds:
            raise ConfigError("kafka.request_seconds must not exceed kafka.session_seconds")
        if self.max_poll_interval_seconds <= self.heartbeat_seconds:
            raise ConfigError(
                "kafka.max_poll_interval_seconds must exceed kafka.heartbeat_seconds"
            )
        if self.security_protocol.startswith("SASL") and self.sasl_mechanism is None:
            raise ConfigError(
                f"kafka.security_protocol {self.security_protocol} needs kafka.sasl_mechanism"
            )
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ConfigError(
                "kafka.tls_certificate_file and kafka.tls_key_file come together or not at all"
            )
