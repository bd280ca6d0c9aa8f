"""
TCP ports of our own for servers on loopback.

A port is reserved by a UDP socket bound to the same number, which no server of ours needs:
the kernel gives it to one process only and takes it back when that process dies, so two test
runs on one machine never choose the same port, also in the seconds before the server listens.
"""

import os
import random
import socket
import weakref

from worker.errors import ConfigError

HOST = "127.0.0.1"
# Below the ephemeral ranges of Linux (32768) and macOS (49152): a client's own socket can take
# none of these, and a connection to a port nobody listens on cannot connect to itself.
CANDIDATES = range(20_000, 32_000)
ATTEMPTS = 200


class ReservedPort:
    """One TCP port on loopback, ours until it is released or nobody holds this object."""

    def __init__(self) -> None:
        numbers = random.SystemRandom().sample(CANDIDATES, ATTEMPTS)
        for number in numbers:
            descriptor = _reserve(number)
            if descriptor is not None:
                self.number = number
                self.release = weakref.finalize(self, os.close, descriptor)
                return
        raise ConfigError(f"no free port on {HOST} in {CANDIDATES}")


def _reserve(number: int) -> int | None:
    reservation = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        reservation.bind((HOST, number))
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, number))
    except OSError:
        reservation.close()
        return None
    return reservation.detach()
