"""The embedding providers of our own as child processes, for demo, benchmarks and tests."""

import sys
from pathlib import Path
from typing import ClassVar

from worker.embedded.ports import HOST, ReservedPort
from worker.embedded.processes import EmbeddedServer, GuardedProcess, answers


class EmbeddedEmbeddings(EmbeddedServer):
    """A running `embedding_server`; `count_texts` makes `/stats` tell repeated texts."""

    module: ClassVar[str] = "worker.embedded.embedding_server"

    def __init__(self, folder: Path, *, count_texts: bool = False) -> None:
        super().__init__(folder)
        self._options = ["--count-texts"] if count_texts else []
        self._port: ReservedPort | None = None

    @property
    def url(self) -> str:
        """Up to and with /v1, as OpenAI's clients want it."""
        assert self._port is not None, "it was not started"
        return f"http://{HOST}:{self._port.number}/v1"

    def _launch(self) -> GuardedProcess:
        self._port = self._port or ReservedPort()
        return GuardedProcess(
            "the embedding server",
            [sys.executable, "-m", self.module, *self._arguments()],
            log=self.folder / "embeddings.log",
        )

    def _arguments(self) -> list[str]:
        assert self._port is not None
        return ["--port", str(self._port.number), *self._options]

    def _is_ready(self) -> bool:
        assert self._port is not None
        return answers(self._port.number, "/health")


class ScriptedEmbeddings(EmbeddedEmbeddings):
    """A running `scripted_provider`: a request takes so long, whatever it holds."""

    module = "worker.embedded.scripted_provider"

    def __init__(
        self,
        folder: Path,
        *,
        dimensions: int,
        latency_seconds: float,
        requests_per_minute: int | None = None,
    ) -> None:
        super().__init__(folder)
        self._options = ["--dimensions", str(dimensions), "--latency", str(latency_seconds)]
        if requests_per_minute is not None:
            self._options += ["--requests-per-minute", str(requests_per_minute)]
