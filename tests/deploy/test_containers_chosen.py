"""Tests run in containers where a Docker daemon has the images, and say why where not."""

import json
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

import pytest
from testcontainers.core.config import testcontainers_config

from tests.support.servers import REAPER, local_image, open_folder


class Daemon(socketserver.ThreadingUnixStreamServer):
    """Speaks as much of Docker's API as is asked before a container is started."""

    daemon_threads = True

    def __init__(self, path, images, status=200):
        super().__init__(str(path), Answer)
        self.images, self.status = images, status


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        where = urlsplit(self.path)
        body = json.dumps(self.said(where.path, parse_qs(where.query))).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def said(self, path, asked):
        if self.server.status != 200:
            return {"message": "not for you"}
        if path.endswith("/version"):
            return {"ApiVersion": "1.41", "MinAPIVersion": "1.12", "Version": "20.10.24"}
        if path.endswith("/images/json"):
            (repository,) = json.loads(asked["filters"][0])["reference"]
            return [{"Id": tag} for tag in self.server.images if tag.startswith(repository)]
        tag = path.split("/images/")[1].removesuffix("/json")
        return {"Id": tag, "RepoTags": [tag]}

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        pass


@pytest.fixture
def place(monkeypatch):
    """Make this the socket where a daemon is looked for; its path may not be long."""
    with open_folder() as folder:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{folder}/docker.sock")
        yield folder / "docker.sock"


@pytest.fixture
def daemon(place, monkeypatch):
    """Start a daemon that has some images."""
    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", False)
    started = []

    def start(images, **answers):
        server = Daemon(place, images, **answers)
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        started.append(server)

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def test_a_daemon_with_images_gives_the_newest(daemon):
    daemon([f"apache/kafka:{tag}" for tag in ("4.3.1", "4.10.0", "4.9.2", "latest")])
    found = local_image("apache/kafka")
    assert found.image == "apache/kafka:4.10.0"
    assert found.why == "container apache/kafka:4.10.0"


def test_a_daemon_without_images_is_told_from_no_daemon(daemon):
    assert local_image("apache/kafka").why == "no Docker daemon answers"
    daemon(["pgvector/pgvector:0.8.5-pg18"])
    found = local_image("apache/kafka")
    assert found.image is None
    assert found.why == "the Docker daemon has no image of apache/kafka"


def test_a_daemon_that_refuses_is_told_from_both(daemon):
    daemon(["apache/kafka:4.3.1"], status=403)
    found = local_image("apache/kafka")
    assert found.image is None
    assert found.why.startswith("the Docker daemon does not serve us: ")


@pytest.mark.parametrize("images", [[], [f"{REAPER}:0.11.0"]])
def test_the_reaper_is_used_only_where_its_image_is_there(daemon, images):
    daemon(["apache/kafka:4.3.1", *images])
    local_image("apache/kafka")
    assert testcontainers_config.ryuk_disabled == (not images)
