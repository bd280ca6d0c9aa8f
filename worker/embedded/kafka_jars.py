"""
The jars of Apache Kafka: from Maven Central through jgo into the user's cache, or a folder's.

`kafka-jars.sha256` names every jar by its Maven coordinates, with its SHA-256, so nothing is
resolved at run time and nothing else is ever run. All hashes are checked at every start, which
takes 0.05 s. A cached jar that is damaged is fetched again; a fetched one that is not what it
should be is an error.
Made anew by resolving `org.apache.kafka:kafka_2.13` (scopes compile and runtime) and
`org.slf4j:slf4j-simple`, without which Kafka ends silently.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from worker.embedded.cache import cache_folder, only_one
from worker.embedded.java import KAFKA_JAR
from worker.errors import ConfigError

PINS = Path(__file__).with_name("kafka-jars.sha256")
FOLDER_VARIABLE = "EMBEDFLEET_KAFKA_JARS"
DOWNLOADS_AT_ONCE = 8

Fetch = Callable[[Path, "PinnedJar"], None]
"""Bring one jar into a folder laid out as a Maven repository."""


class PinnedJar(NamedTuple):
    """One jar by its coordinates, and what its bytes must hash to."""

    sha256: str
    group: str
    artifact: str
    version: str

    @property
    def file_name(self) -> str:
        """Name of the file, the same everywhere."""
        return f"{self.artifact}-{self.version}.jar"

    @property
    def path(self) -> Path:
        """Where it lies in a Maven repository."""
        return Path(*self.group.split("."), self.artifact, self.version, self.file_name)


def pinned(pins: Path = PINS) -> list[PinnedJar]:
    """Read the pins."""
    lines = (line.split() for line in pins.read_text(encoding="ascii").splitlines())
    return [PinnedJar(sha256, *coordinates.split(":")) for sha256, coordinates in lines]


def kafka_jars(folder: Path | None = None) -> list[Path]:
    """
    Return the class path: of a folder given here or by `EMBEDFLEET_KAFKA_JARS`, else fetched.

    Raises:
        ConfigError: a jar cannot be had, or is not what it should be.
    """
    given = folder or _folder_of_environment()
    if given is not None:
        return _given_jars(given, pinned())
    return fetched_jars(cache_folder() / "maven", pinned(), _fetch)


def fetched_jars(repository: Path, pins: list[PinnedJar], fetch: Fetch) -> list[Path]:
    """Return all pinned jars in a repository of ours, after fetching what is not there."""
    if _faulty(repository, pins):
        with only_one(repository.with_suffix(".lock")):
            _fetch_all(repository, _faulty(repository, pins), fetch)
    return [repository / jar.path for jar in pins]


def _folder_of_environment() -> Path | None:
    value = os.environ.get(FOLDER_VARIABLE)
    return Path(value) if value else None


def _given_jars(folder: Path, pins: Iterable[PinnedJar]) -> list[Path]:
    # Another version of Kafka is the giver's choice; a damaged copy of ours is not.
    jars = sorted(folder.glob("*.jar"))
    if not any(jar.name.startswith(KAFKA_JAR) for jar in jars):
        raise ConfigError(f"{folder} holds no {KAFKA_JAR}*.jar ({FOLDER_VARIABLE})")
    hashes = {jar.file_name: jar.sha256 for jar in pins}
    for jar in jars:
        if jar.name in hashes and _sha256(jar) != hashes[jar.name]:
            raise _wrong_hash(jar, hashes[jar.name])
    return jars


def _faulty(repository: Path, pins: Iterable[PinnedJar]) -> list[PinnedJar]:
    return [jar for jar in pins if _sha256(repository / jar.path) != jar.sha256]


def _fetch_all(repository: Path, jars: list[PinnedJar], fetch: Fetch) -> None:
    def checked(jar: PinnedJar) -> None:
        path = repository / jar.path
        path.unlink(missing_ok=True)
        fetch(repository, jar)
        if _sha256(path) != jar.sha256:
            raise _wrong_hash(path, jar.sha256)

    # The first one alone: where there is no network, it ends after one time limit.
    for jar in jars[:1]:
        checked(jar)
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        list(pool.map(checked, jars[1:]))


def _fetch(repository: Path, jar: PinnedJar) -> None:
    try:
        from jgo.maven import MavenContext
        from requests import RequestException
    except ImportError as error:
        raise ConfigError(_unavailable(jar, "jgo is not installed")) from error
    context = MavenContext(repo_cache=repository)
    try:
        context.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve()
    except (RequestException, RuntimeError, OSError) as error:
        raise ConfigError(_unavailable(jar, f"{type(error).__name__}: {error}")) from error


def _unavailable(jar: PinnedJar, cause: str) -> str:
    return (
        f"cannot fetch {jar.file_name} for the embedded Kafka ({cause}); install "
        f"embedfleet[embedded] and allow Maven Central, or set {FOLDER_VARIABLE} to a folder "
        "with the jars of Apache Kafka, or name a broker that is running: "
        "`embedfleet demo --kafka host:port`"
    )


def _wrong_hash(path: Path, expected: str) -> ConfigError:
    return ConfigError(
        f"{path} is not the jar it should be: its SHA-256 is {_sha256(path)}, "
        f"expected {expected}; delete it, or find out who changed it"
    )


def _sha256(path: Path) -> str | None:
    with suppress(FileNotFoundError), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
    return None
