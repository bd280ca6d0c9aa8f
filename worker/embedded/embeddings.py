"""The local embedding provider as a child process, for the demo and the tests."""

import sys
from pathlib import Path

from worker.embedded.ports import HOST, ReservedPort
from worker.embedded.processes import EmbeddedServer, GuardedProcess, answers


class EmbeddedEmbeddings(EmbeddedServer):
    """A running `embedding_server`; `count_texts` makes `/stats` tell repeated texts."""

    def __init__(self, folder: Path, *, count_texts: bool = False) -> None:
        super().__init__(folder)
        self._count_texts = count_texts
        self._port: ReservedPort | None = None

    @property
    def url(self) -> str:
        """Up to and with /v1, as OpenAI's clients want it."""
        assert self._port is not None, "it was not started"
        return f"http://{HOST}:{self._port.number}/v1"

    def _launch(self) -> GuardedProcess:
        self._port = self._port or ReservedPort()
        module = ["-m", "worker.embedded.embedding_server"]
        options = ["--host", HOST, "--port", str(self._port.number)]
        if self._count_texts:
            options.append("--count-texts")
        return GuardedProcess(
            "the embedding server",
            [sys.executable, *module, *options],
            log=self.folder / "embeddings.log",
        )

    def _is_ready(self) -> bool:
        assert self._port is not None
        return answers(self._port.number, "/health")
