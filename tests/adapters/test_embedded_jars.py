import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from jgo.maven import _core

from worker.embedded import kafka_jars
from worker.embedded.kafka_jars import PinnedJar, fetched_jars, pinned
from worker.errors import ConfigError

CONTENT = b"not really a jar"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
JARS = [PinnedJar(SHA256, "org.example", name, "1.0") for name in ("a", "b", "c")]


class Central:
    """A repository that serves one content for everything and counts."""

    def __init__(self, content=CONTENT):
        self.content = content
        self.fetched = []

    def fetch(self, repository, jar):
        self.fetched.append(jar.artifact)
        path = repository / jar.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.content)


def test_every_pin_is_a_sha256_of_maven_coordinates():
    names = {jar.file_name for jar in pinned()}
    assert {"kafka_2.13-4.4.0.jar", "slf4j-simple-1.7.36.jar"} < names
    assert len(names) == len(pinned())
    assert all(len(bytes.fromhex(jar.sha256)) == 32 for jar in pinned())


def test_jars_are_fetched_once(tmp_path):
    central = Central()
    first = fetched_jars(tmp_path, JARS, central.fetch)
    assert first == fetched_jars(tmp_path, JARS, central.fetch)
    assert sorted(central.fetched) == ["a", "b", "c"]
    assert [path.name for path in first] == ["a-1.0.jar", "b-1.0.jar", "c-1.0.jar"]


def test_two_runs_at_once_fetch_once(tmp_path):
    central = Central()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: fetched_jars(tmp_path, JARS, central.fetch), range(2)))
    assert sorted(central.fetched) == ["a", "b", "c"]


def test_a_damaged_jar_in_the_cache_is_fetched_again(tmp_path):
    central = Central()
    damaged = fetched_jars(tmp_path, JARS, central.fetch)[1]
    damaged.write_bytes(CONTENT[:5])
    fetched_jars(tmp_path, JARS, central.fetch)
    assert damaged.read_bytes() == CONTENT
    assert central.fetched[3:] == ["b"]


def test_a_fetched_jar_with_another_hash_is_refused(tmp_path):
    central = Central(b"something else")
    actual = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(
        ConfigError, match=rf"a-1\.0\.jar.* SHA-256 is {actual}, expected {SHA256}"
    ):
        fetched_jars(tmp_path, JARS, central.fetch)


def test_a_jar_that_cannot_be_fetched_names_what_to_set(tmp_path, monkeypatch):
    monkeypatch.setattr(_core, "DEFAULT_REMOTE_REPOS", {"central": "http://127.0.0.1:9"})
    with pytest.raises(ConfigError) as raised:
        fetched_jars(tmp_path, pinned(), kafka_jars._fetch)
    assert "EMBEDFLEET_KAFKA_JARS" in str(raised.value)
    assert "embedfleet demo --kafka" in str(raised.value)


def test_a_folder_named_by_the_environment_is_used_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "kafka_2.13-9.9.9.jar").write_bytes(b"another version")
    (tmp_path / "readme.txt").touch()
    monkeypatch.setenv("EMBEDFLEET_KAFKA_JARS", str(tmp_path))
    assert kafka_jars.kafka_jars() == [tmp_path / "kafka_2.13-9.9.9.jar"]


def test_a_folder_without_kafka_is_refused(tmp_path):
    (tmp_path / "something.jar").touch()
    with pytest.raises(ConfigError, match="EMBEDFLEET_KAFKA_JARS"):
        kafka_jars.kafka_jars(tmp_path)


def test_a_damaged_copy_of_a_pinned_jar_in_a_folder_is_refused(tmp_path):
    for jar in kafka_jars.kafka_jars():
        shutil.copy(jar, tmp_path)
    assert len(kafka_jars.kafka_jars(tmp_path)) == len(pinned())
    with (tmp_path / "kafka-clients-4.4.0.jar").open("ab") as file:
        file.write(b"!")
    with pytest.raises(ConfigError, match=r"kafka-clients-4\.4\.0\.jar is not the jar"):
        kafka_jars.kafka_jars(tmp_path)
