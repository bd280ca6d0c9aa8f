"""
One-shot job: is the worker on this machine alive, as its admin port says.

Made for a container's health check: standard library only, one request, a short limit.
"""

import http.client
from typing import NamedTuple

LIMIT_SECONDS = 3.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1", "": "127.0.0.1"}  # noqa: S104 compared only


class Health(NamedTuple):
    """Whether it is alive, and its answer, or why there is none."""

    alive: bool
    answer: str


def ask(host: str, port: int) -> Health:
    """Return what `/livez` says."""
    connection = http.client.HTTPConnection(
        _ANY_ADDRESS.get(host, host), port, timeout=LIMIT_SECONDS
    )
    try:
        connection.request("GET", "/livez")
        response = connection.getresponse()
        answer = response.read(64 * 1024).decode(errors="replace")
        return Health(response.status == http.client.OK, answer)
    except (OSError, http.client.HTTPException) as error:
        return Health(alive=False, answer=f"nobody answers at {host}:{port}: {error}")
    finally:
        connection.close()
