"""
Which real server the tests run on: one of the environment, a container, or an embedded one.

In this order, and what was chosen is printed. A container is chosen where a Docker daemon
answers and has an image of the right repository; nothing is ever pulled. A server that is
needed and cannot be had fails the tests.
"""

import gc
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

REAPER = "testcontainers/ryuk"
_NOBODY = ("FileNotFoundError", "ConnectionRefusedError")


@dataclass(frozen=True)
class Images:
    """What Docker offers for one repository; `image` is None where it offers nothing."""

    image: str | None
    why: str


def local_image(repository: str) -> Images:
    """Look for an image of a repository at the Docker daemon, the newest tag first."""
    from docker.errors import DockerException
    from testcontainers.core.config import testcontainers_config

    client = _docker_client()
    if isinstance(client, str):
        return Images(None, client)
    try:
        tags = _tags(client, repository)
        # The library's reaper would be pulled, were it not there; the fixtures stop what they
        # started, it helps when they are killed.
        testcontainers_config.ryuk_disabled = not _tags(client, REAPER)
    except DockerException as error:
        return Images(None, f"the Docker daemon fails: {error}")
    finally:
        client.close()
    if not tags:
        return Images(None, f"the Docker daemon has no image of {repository}")
    return Images(tags[-1], f"container {tags[-1]}")


def _tags(client: Any, repository: str) -> list[str]:
    found = (tag for image in client.images.list(repository) for tag in image.tags)
    # 0.8.10 is newer than 0.8.9.
    return sorted(found, key=lambda tag: [int(number) for number in re.findall(r"\d+", tag)])


def container_host() -> str:
    """Return where published ports of a container will be reached, before it is started."""
    from testcontainers.core.config import ConnectionMode
    from testcontainers.core.docker_client import DockerClient

    client = DockerClient()
    if client.get_connection_mode() is ConnectionMode.docker_host:
        return client.host()
    # We are in a container ourselves: by the gateway of the network that it will be in.
    (network, *_) = client.client.networks.get("bridge").attrs["IPAM"]["Config"]
    return network.get("Gateway") or str(ip_network(network["Subnet"])[1])


def _docker_client() -> Any:
    """Return a client of the daemon, or in words why there is none."""
    import docker
    from docker.errors import DockerException

    with warnings.catch_warnings():
        # docker-py leaves its socket open when nobody answers: it is collected here.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            return docker.from_env(timeout=5)
        except DockerException as error:
            why = str(error)
        gc.collect()
    if any(name in why for name in _NOBODY):
        return "no Docker daemon answers"
    return f"the Docker daemon does not serve us: {why}"


@contextmanager
def open_folder() -> Iterator[Path]:
    """
    Make a folder for a server's data, and remove it afterwards.

    Not pytest's own: that is closed to other users, and every new pytest run on the machine
    closes it again, while PostgreSQL started by root runs as another user.
    """
    with tempfile.TemporaryDirectory(
        prefix="embedfleet-", ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)
