"""Whether processes are gone: a descriptor of the process itself, not its number, tells."""

import os
import select
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

SURVIVOR_SECONDS = 20


def outlives_its_parent(script: str, *arguments: str) -> list[int]:
    """
    Run a Python script that prints process ids in one line, kill it, return who lives on.

    The script has to wait after that line; `input()` will do.
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent, ExitStack() as stack:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert pids, "the script ended before it had started anything"
        watched = {pid: os.pidfd_open(pid) for pid in pids}
        for descriptor in watched.values():
            stack.callback(os.close, descriptor)
        parent.send_signal(signal.SIGKILL)
        return [pid for pid, descriptor in watched.items() if not _ends(descriptor)]


def children(pid: int) -> list[int]:
    """Return the process ids of a process's children."""
    return [
        int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]


def _ends(descriptor: int) -> bool:
    readable, _, _ = select.select([descriptor], [], [], SURVIVOR_SECONDS)
    return bool(readable)
