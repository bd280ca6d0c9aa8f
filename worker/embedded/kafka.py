"""
A real Apache Kafka broker (KRaft) without Docker, for the demo and the tests.

Owns one folder with the broker's data and log, and its process. The jars come from
`kafka_jars`, the Java from `java`. Ready means that it answered a Kafka request: a mere
connection says nothing. Ports stay the same over restarts. It never deletes the folder.
"""

import shutil
import socket
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

from worker.embedded.cache import cache_folder
from worker.embedded.java import Java
from worker.embedded.kafka_jars import kafka_jars
from worker.embedded.kafka_settings import (
    CONTROLLER,
    NODE,
    PLAINTEXT,
    SECURED,
    STATIC,
    USERS,
    Certificates,
    properties,
)
from worker.embedded.ports import HOST, ReservedPort
from worker.embedded.processes import EmbeddedServer, GuardedProcess, run

PROBE_TIMEOUT_SECONDS = 2
CLUSTER_ID = "ZW1iZWRmbGVldC1rYWZrYQ"
API_VERSIONS = 18


class EmbeddedKafka(EmbeddedServer):
    """
    A broker of our own.

    `security` adds the listeners SASL, SASLTLS, TLS and MTLS; what their clients need is in
    `certificates` and `USERS`. `train` makes the AOT cache where there is none, which takes 9 s
    when the broker stops. `advertised` adds plain listeners by name, whose clients are sent to
    another port: that of a proxy before them. It is a cluster by itself; a port for its
    `controller` that others know, and `settings` that win over its own, make it one of several.
    """

    start_timeout_seconds = 120.0
    stop_timeout_seconds = 60.0  # a training run writes its cache when it stops

    def __init__(
        self,
        folder: Path,
        *,
        jars: Path | None = None,
        security: bool = False,
        train: bool = False,
        advertised: Mapping[str, int] | None = None,
        controller: ReservedPort | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder)
        self.certificates = Certificates(self.folder / "tls") if security else None
        self._jars_folder = jars
        self._train = train
        self._advertised = dict(advertised or {})
        self._controller = controller
        self._settings = STATIC | dict(settings or {})
        self._data = self.folder / "data"
        self._log = self.folder / "kafka.log"
        self._configuration = self.folder / "server.properties"
        self._trained = self.folder / "kafka.aot"
        self._ports: dict[str, ReservedPort] = {}
        self._java: Java | None = None

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect in plain text."""
        return self.listeners[PLAINTEXT]

    @property
    def listeners(self) -> dict[str, str]:
        """Host and port of every listener for clients, by name; where it really listens."""
        assert self._ports, "it was not started"
        ports = {name: f"{HOST}:{port.number}" for name, port in self._ports.items()}
        del ports[CONTROLLER]
        return ports

    def stop(self) -> None:
        """Shut it down in order. Safe to call twice."""
        super().stop()
        if self._java is not None:
            self._java.keep(self._trained)

    def _launch(self) -> GuardedProcess:
        self._java = java = self._java or Java(kafka_jars(self._jars_folder))
        self._prepare(java)
        training = self._trained if self._train and not java.aot_cache.exists() else None
        temporary = self.folder / "tmp"
        configuration = str(self._configuration)
        return GuardedProcess(
            "Kafka",
            java.command("kafka.Kafka", configuration, temporary=temporary, training=training),
            log=self._log,
        )

    def _prepare(self, java: Java) -> None:
        if self._ports:
            return
        secured = SECURED if self.certificates else ()
        names = (PLAINTEXT, CONTROLLER, *secured, *self._advertised)
        self._ports = {name: ReservedPort() for name in names}
        if self._controller is not None:
            self._ports[CONTROLLER] = self._controller
        if self.certificates is not None:
            self.certificates.create()
        ports = {name: port.number for name, port in self._ports.items()}
        self._configuration.write_text(
            properties(ports, self._data, self.certificates, self._advertised, self._settings)
        )
        if not (self._data / "meta.properties").exists():
            self._format(java)

    def _format(self, java: Java) -> None:
        # Formatting takes a JVM 1-3 s, copying what it makes nothing.
        kind = "secured" if self.certificates else "plain"
        node = self._settings[NODE]
        template = cache_folder() / f"kafka-storage-{java.kafka_version}-{kind}-{node}"
        if not template.exists():
            self._run_storage_tool(java)
            with tempfile.TemporaryDirectory(dir=cache_folder()) as beside:
                copy = shutil.copytree(self._data, Path(beside) / "data")
                _move_unless_there(copy, template)
        else:
            shutil.copytree(template, self._data, dirs_exist_ok=True)

    def _run_storage_tool(self, java: Java) -> None:
        arguments = ["format", "-t", CLUSTER_ID, "-c", str(self._configuration)]
        if self.certificates is not None:
            user = f"SCRAM-SHA-512=[name=alice,password={USERS['alice']}]"
            arguments += ["--add-scram", user]
        command = java.command(
            "kafka.tools.StorageTool", *arguments, temporary=self.folder / "tmp"
        )
        run("formatting Kafka's storage", command, log=self._log)

    def _is_ready(self) -> bool:
        # ApiVersions, version 0, correlation 1, no client id; the answer begins with its size,
        # the correlation and an error code.
        question = struct.pack(">hhih", API_VERSIONS, 0, 1, -1)
        address = (HOST, self._ports[PLAINTEXT].number)
        try:
            with socket.create_connection(address, PROBE_TIMEOUT_SECONDS) as connection:
                connection.sendall(struct.pack(">i", len(question)) + question)
                answer = connection.recv(10, socket.MSG_WAITALL)
        except OSError:
            return False
        return len(answer) == 10 and struct.unpack(">iih", answer)[1:] == (1, 0)  # noqa: PLR2004


def _move_unless_there(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        # Another process was first with the same content.
        if not target.exists():
            raise
