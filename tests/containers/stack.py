"""The compose project under test, and how it is asked and waited for."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from worker.embedded.ports import ReservedPort

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "compose" / "compose.yaml"
PROJECT = "embedfleet-check"
PATIENCE_SECONDS = 180
GRACE_SECONDS = 45
PORTS = ("KAFKA_PORT", "POSTGRES_PORT", "EMBEDDINGS_PORT")


class Stack:
    """The compose project, with ports and a password of its own."""

    def __init__(self) -> None:
        reserved = [ReservedPort() for _ in PORTS]
        self.ports = {
            name: str(port.number) for name, port in zip(PORTS, reserved, strict=True)
        }
        for port in reserved:
            port.release()
        self.password = secrets.token_hex(16)
        self._environment = (
            os.environ
            | self.ports
            | {
                "COMPOSE_PROFILES": "core",
                "POSTGRES_PASSWORD": self.password,
                "OTEL_EXPORTER_OTLP_ENDPOINT": "",
                "DOCKER_BUILDKIT": "1",
            }
        )

    def compose(self, *arguments: str, check: bool = True) -> str:
        """Run `docker compose`; return what it prints."""
        # Without the user's own .env, which may name a provider that costs money.
        words = ["docker", "compose", "--env-file", os.devnull, "-p", PROJECT]
        words += ["-f", str(COMPOSE_FILE), *arguments]
        return run(words, self._environment, check=check)

    def images(self) -> dict[str, str]:
        """Return the image of each service, as compose understands the file."""
        found = json.loads(self.compose("config", "--format", "json"))
        return {name: one["image"] for name, one in found["services"].items()}

    def containers(self, service: str) -> list[str]:
        """Return the ids of the running containers of a service."""
        return self.compose("ps", "--quiet", service).split()

    def embedfleet(self, *arguments: str, stdin: str | None = None) -> str:
        """Run the command line of this checkout, as a user on the host does."""
        kafka, postgres, embeddings = self.ports.values()
        environment = self._environment | {
            "EMBEDFLEET_KAFKA_BOOTSTRAP_SERVERS": f"localhost:{kafka}",
            "EMBEDFLEET_DATABASE_URL": f"postgresql://embedfleet@localhost:{postgres}/embedfleet",
            "EMBEDFLEET_DATABASE_PASSWORD_VARIABLE": "POSTGRES_PASSWORD",
            "EMBEDFLEET_EMBEDDING_URL": f"http://localhost:{embeddings}/v1",
        }
        words = [sys.executable, "-m", "worker", *arguments]
        return run(words, environment, stdin=stdin)

    def sql(self, query: str) -> str:
        """Ask the database of the stack."""
        words = ["exec", "--no-TTY", "postgres", "psql", "--host=/var/run/postgresql"]
        words += ["--username=embedfleet", "--no-align", "--tuples-only"]
        words += [f"--command=set search_path to embedfleet; {query}"]
        return self.compose(*words).splitlines()[-1]


def run(
    words: Sequence[str],
    environment: dict[str, str] | None = None,
    *,
    stdin: str | None = None,
    check: bool = True,
) -> str:
    """
    Run a command to its end, and return what it prints.

    Raises:
        SystemExit: it failed, and `check` is asked for.
    """
    ended = subprocess.run(
        words,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if check and ended.returncode:
        raise SystemExit(f"{' '.join(words)}\n{ended.stdout}\n{ended.stderr}")
    return ended.stdout


def inspected(container: str) -> dict[str, Any]:
    """Return what Docker knows of a container or an image."""
    (found,) = json.loads(run(["docker", "inspect", container]))
    return found


def until(what: str, fact: Callable[[], bool], pause_seconds: float = 0.5) -> float:
    """
    Wait for a fact; return how many seconds it took.

    Raises:
        SystemExit: it stays away; says `what` was waited for.
    """
    began = time.monotonic()
    while not fact():
        if time.monotonic() - began > PATIENCE_SECONDS:
            raise SystemExit(f"in {PATIENCE_SECONDS} s it did not come about that {what}")
        time.sleep(pause_seconds)
    return time.monotonic() - began


def stopped(container: str) -> tuple[float, int]:
    """Stop a container; return how long that took, and its exit code."""
    began = time.monotonic()
    run(["docker", "stop", "--time", str(GRACE_SECONDS), container])
    return time.monotonic() - began, inspected(container)["State"]["ExitCode"]
