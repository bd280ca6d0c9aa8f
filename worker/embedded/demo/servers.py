"""
The demonstration's processes: Kafka, PostgreSQL, an embedding provider, and workers.

All under one folder, all ended in reverse order, whatever happens. The workers are the
ordinary `embedfleet run`, told by environment variables alone.
"""

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from threading import Lock, Thread

from worker.embedded.embeddings import EmbeddedEmbeddings
from worker.embedded.kafka import EmbeddedKafka
from worker.embedded.ports import ReservedPort
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.processes import EmbeddedServer, GuardedProcess, answers
from worker.errors import ConfigError

JOIN_SECONDS = 0.1


class EmbeddedWorker(EmbeddedServer):
    """One `embedfleet run`; ready when it has joined its group."""

    stop_timeout_seconds = 30.0

    def __init__(self, folder: Path, number: int, environment: Mapping[str, str]) -> None:
        super().__init__(folder)
        self._number = number
        self._environment = environment
        self._port: ReservedPort | None = None

    @property
    def log(self) -> Path:
        """Where its log lines go."""
        return self.folder / f"worker-{self._number}.log"

    def ask_to_stop(self) -> None:
        """Let it begin to drain; `stop` waits for its end."""
        if self._process is not None:
            self._process.send(self.stop_signal)

    def _launch(self) -> GuardedProcess:
        self._port = self._port or ReservedPort()
        return GuardedProcess(
            f"worker {self._number}",
            [sys.executable, "-m", "worker", "run"],
            log=self.log,
            environment={
                **_without_settings(),
                **self._environment,
                "EMBEDFLEET_CONFIG": str(self._no_file()),
                "EMBEDFLEET_TELEMETRY_ADMIN_PORT": str(self._port.number),
            },
        )

    def _no_file(self) -> Path:
        """Return an empty file of settings: one where we were called is not meant for us."""
        file = self.folder / "embedfleet.toml"
        file.touch()
        return file

    def _is_ready(self) -> bool:
        assert self._port is not None
        return answers(self._port.number, "/readyz")


def _without_settings() -> dict[str, str]:
    """Return the environment without what would tell a worker of another fleet."""
    names = ("KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL", "OPENAI_BASE_URL", "OPENAI_API_KEY")
    return {
        name: value
        for name, value in os.environ.items()
        if name not in names and not name.startswith("EMBEDFLEET_")
    }


class Servers:
    """
    Everything that the demonstration starts, in a folder of its own.

    `kafka` names a broker that is running already; else one is started, from `jars` if given.
    """

    def __init__(
        self, folder: Path, *, jars: Path | None = None, kafka: str | None = None
    ) -> None:
        self.folder = folder
        self._broker = None if kafka else EmbeddedKafka(folder / "kafka", jars=jars)
        self._given = kafka
        self.postgres = EmbeddedPostgres(folder / "postgres")
        self.embeddings = EmbeddedEmbeddings(folder / "embeddings", count_texts=True)
        self.workers: list[EmbeddedWorker] = []
        self._stack = ExitStack()
        self._starting: list[tuple[EmbeddedServer, Thread]] = []
        self._deciding = Lock()
        self._is_stopped = False

    @property
    def bootstrap_servers(self) -> str:
        """Where the broker listens."""
        if self._broker is None:
            assert self._given is not None
            return self._given
        return self._broker.bootstrap_servers

    def start(self) -> None:
        """
        Start broker, database and provider, side by side.

        Raises:
            ConfigError: one cannot be had, or the folder holds an earlier demonstration, whose
                events the ledger would find too many.
        """
        if any((self.folder / name).exists() for name in ("kafka", "postgres")):
            raise ConfigError(
                f"{self.folder} holds the data of an earlier demonstration: "
                "name another folder, or remove it"
            )
        ours = [self._broker] if self._broker else []
        self._start_all([*ours, self.postgres, self.embeddings])

    def start_workers(self, count: int, environment: Mapping[str, str]) -> None:
        """Start so many workers, side by side."""
        self.workers = [
            EmbeddedWorker(self.folder / "workers", number, environment)
            for number in range(1, count + 1)
        ]
        self._start_all(self.workers)

    def stop(self) -> None:
        """End everything that was started, workers first; nothing is started any more."""
        with self._deciding:
            self._is_stopped = True
        for worker in self.workers:
            worker.ask_to_stop()
        self._stack.close()
        # What was still starting meanwhile, in the thread of a caller that was interrupted.
        for server, thread in self._starting:
            while thread.is_alive():
                server.kill()
                thread.join(JOIN_SECONDS)
            server.stop()

    def _start_all(self, servers: list[EmbeddedServer] | list[EmbeddedWorker]) -> None:
        errors: list[BaseException] = []

        def start(server: EmbeddedServer) -> None:
            try:
                server.start()
            except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
                errors.append(error)

        starting = [
            (server, Thread(target=start, args=(server,), daemon=True)) for server in servers
        ]
        # A caller that was interrupted before this goes on in its thread.
        with self._deciding:
            if self._is_stopped:
                return
            for server, thread in starting:
                self._stack.callback(server.stop)
                thread.start()
            self._starting += starting
        for _, thread in starting:
            thread.join()
        if errors:
            raise errors[0]
