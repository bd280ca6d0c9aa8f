"""Which server the fixtures choose."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support import kafka, postgres
from tests.support.kafka import KafkaServer, run_kafka
from tests.support.servers import local_image


@contextmanager
def docker_daemon(tags):
    """Answer as a Docker daemon does that has one image with these tags, or none."""
    image = {"Id": "sha256:1", "RepoTags": tags}
    answers = {
        "version": {"ApiVersion": "1.45"},
        "images/json": [image] if tags else [],
        "images/sha256:1/json": image,
    }

    class Daemon(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.split("?")[0]
            body = next(answers[name] for name in answers if path.endswith(name))
            content = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Daemon) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"tcp://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_no_daemon_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    found = local_image("apache/kafka")
    assert (found.image, found.why) == (None, "no Docker daemon answers")


def test_a_daemon_without_the_image_is_told_apart(monkeypatch):
    with docker_daemon([]) as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        found = local_image("apache/kafka")
    assert (found.image, found.why) == (None, "the Docker daemon has no image of apache/kafka")


def test_an_image_that_is_there_is_chosen_by_its_newest_tag(monkeypatch):
    with docker_daemon(["apache/kafka:4.3.1", "apache/kafka:4.4.0"]) as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        assert local_image("apache/kafka").image == "apache/kafka:4.4.0"


def test_the_environment_comes_first(monkeypatch):
    monkeypatch.setenv("EMBEDFLEET_TEST_KAFKA", "broker:9092")
    monkeypatch.setenv("EMBEDFLEET_TEST_POSTGRES", "postgresql://somewhere/else")
    with run_kafka() as chosen, postgres._choose() as database:
        assert chosen == KafkaServer("broker:9092", "EMBEDFLEET_TEST_KAFKA")
        assert database.url == "postgresql://somewhere/else"


@pytest.mark.parametrize("choose", [run_kafka, postgres._choose])
def test_without_both_an_embedded_one_is_started_and_the_reason_said(monkeypatch, choose):
    started = []

    class Embedded:
        bootstrap_servers = url = "here"

        def __init__(self, folder):
            started.append(folder)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            started.pop()

    monkeypatch.delenv("EMBEDFLEET_TEST_KAFKA", raising=False)
    monkeypatch.delenv("EMBEDFLEET_TEST_POSTGRES", raising=False)
    monkeypatch.setattr(kafka, "EmbeddedKafka", Embedded)
    monkeypatch.setattr(postgres, "EmbeddedPostgres", Embedded)
    with docker_daemon([]) as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        with choose() as chosen:
            assert "embedded (the Docker daemon has no image of" in chosen.origin
            assert len(started) == 1
    assert started == []
