"""
The broker's properties: a KRaft node on loopback, small, quick to start and to come back.

Also what a broker with secured listeners needs (`Certificates`): users, certificates made by
the `openssl` program, and the properties that point to them.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from worker.embedded.ports import HOST
from worker.errors import ConfigError

CONTROLLER = "CONTROLLER"
PLAINTEXT = "PLAINTEXT"
PROTOCOLS = {
    PLAINTEXT: "PLAINTEXT",
    CONTROLLER: "PLAINTEXT",
    "SASL": "SASL_PLAINTEXT",  # SCRAM-SHA-512 and PLAIN
    "SASLTLS": "SASL_SSL",
    "TLS": "SSL",
    "MTLS": "SSL",
}
NODE = "node.id"
VOTERS = "controller.quorum.voters"
SECURED = ("SASL", "SASLTLS", "TLS", "MTLS")
STATIC = {
    "process.roles": "broker,controller",
    NODE: "1",
    "controller.listener.names": CONTROLLER,
    "inter.broker.listener.name": PLAINTEXT,
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # A restart after kill -9 waits for the old session to end: 5 s, not 14.
    "broker.session.timeout.ms": "1500",
    "broker.heartbeat.interval.ms": "300",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "log.cleaner.dedupe.buffer.size": "4194304",  # the default takes 128 MB
}
USERS = {"alice": "alice-password", "bob": "bob-password"}
"""SCRAM-SHA-512 knows alice, PLAIN knows bob."""


@dataclass(frozen=True)
class Certificates:
    """The files of a broker with secured listeners, all made by `create`."""

    folder: Path

    @property
    def ca_file(self) -> Path:
        """The CA that signed all certificates."""
        return self.folder / "ca.pem"

    @property
    def client_certificate_file(self) -> Path:
        """A certificate that the MTLS listener accepts."""
        return self.folder / "client.pem"

    @property
    def client_key_file(self) -> Path:
        """Its key."""
        return self.folder / "client.key"

    @property
    def server_certificate_file(self) -> Path:
        """The broker's certificate, for localhost and 127.0.0.1."""
        return self.folder / "server.pem"

    @property
    def server_key_file(self) -> Path:
        """Its key."""
        return self.folder / "server.key"

    def create(self) -> None:
        """Make a CA and two certificates, where they are not there yet."""
        if self._keystore.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._openssl(
            "req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=embedfleet-ca "
            "-keyout ca.key -out ca.pem"
        )
        self._sign("server", "subjectAltName=DNS:localhost,IP:127.0.0.1")
        self._sign("client", "extendedKeyUsage=clientAuth")
        key, certificate = self.server_key_file, self.server_certificate_file
        self._keystore.write_text(key.read_text() + certificate.read_text())

    def properties(self) -> dict[str, str]:
        """Return what the broker has to know."""
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        plain = (
            "org.apache.kafka.common.security.plain.PlainLoginModule required "
            f'user_bob="{USERS["bob"]}";'
        )
        login = {
            f"listener.name.{listener}.{mechanism}.sasl.jaas.config": module
            for listener in ("sasl", "sasltls")
            for mechanism, module in (("scram-sha-512", scram), ("plain", plain))
        }
        return login | {
            "sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self._keystore),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.ca_file),
            "listener.name.mtls.ssl.client.auth": "required",
        }

    @property
    def _keystore(self) -> Path:
        return self.folder / "server.all.pem"

    def _sign(self, name: str, extension: str) -> None:
        (self.folder / f"{name}.ext").write_text(extension + "\n")
        self._openssl(
            f"req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        )
        self._openssl(
            f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 "
            f"-extfile {name}.ext -out {name}.pem"
        )

    def _openssl(self, arguments: str) -> None:
        program = shutil.which("openssl")
        if program is None:
            raise ConfigError("secured listeners need certificates: install openssl")
        done = subprocess.run(  # noqa: S603 -- our own argument list, no shell
            [program, *arguments.split()],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ConfigError(f"openssl {arguments}: {done.stderr}")


def properties(
    ports: dict[str, int],
    data: Path,
    certificates: Certificates | None,
    advertised_ports: dict[str, int],
    own: dict[str, str],
) -> str:
    """
    Return the whole of `server.properties` for listeners by name.

    `advertised_ports` is where clients of some of them are sent instead. A node whose `own`
    settings name no voters is the only one.
    """
    listeners = {name: f"{name}://{HOST}:{port}" for name, port in ports.items()}
    advertised = [
        f"{name}://{HOST}:{port}"
        for name, port in (ports | advertised_ports).items()
        if name != CONTROLLER
    ]
    settings = {
        VOTERS: f"{own[NODE]}@{HOST}:{ports[CONTROLLER]}",
        "listeners": ",".join(listeners.values()),
        "advertised.listeners": ",".join(advertised),
        "listener.security.protocol.map": ",".join(
            f"{name}:{PROTOCOLS.get(name, PLAINTEXT)}" for name in ports
        ),
        "log.dirs": str(data),
    } | own
    if certificates is not None:
        settings |= certificates.properties()
    return "".join(f"{name}={value}\n" for name, value in settings.items())
