"""
The process between us and a server we started: it makes sure that the server goes when we go.

Run as a script, with the standard library only, so that it is up in milliseconds. Its standard
input is a pipe whose other end only the starter holds: each byte on it is the number of a
signal for the server, and its end means that the starter is gone, even by SIGKILL. The server
then gets the parting signal and, after a grace, SIGKILL with its whole process group.

A pipe and not `PR_SET_PDEATHSIG` alone: that one fires when the *thread* that started the
child ends (prctl(2)), and exists on Linux only. It is set as well, by this process's main
thread, for the case that this process itself is killed.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

GRACE_SECONDS = 5
PR_SET_PDEATHSIG = 1


def main(report: str, parting: str, user: str, *argv: str) -> int:
    """Start `argv`, write its process id to the descriptor `report`, and outlive it."""
    server = subprocess.Popen(  # noqa: S603 -- our own argument list, no shell
        argv,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C at the terminal is the starter's business
        user=user or None,
        group=group_of(user),
        extra_groups=[] if user else None,
        preexec_fn=_die_with_the_guard,  # noqa: PLW1509 -- one thread so far
    )
    os.write(int(report), f"{server.pid}\n".encode())
    os.close(int(report))
    threading.Thread(target=_obey, args=(server, int(parting)), daemon=True).start()
    code = server.wait()
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # what it started and did not wait for
    return code if code >= 0 else 128 - code


def _obey(server: "subprocess.Popen[bytes]", parting: int) -> None:
    while order := os.read(0, 1):
        server.send_signal(order[0])
    server.send_signal(parting)
    with suppress(subprocess.TimeoutExpired):
        server.wait(GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)


def group_of(user: str) -> int | None:
    """Return the group to run with as a user, None to keep ours."""
    if not user:
        return None
    import pwd

    return pwd.getpwnam(user).pw_gid


def _die_with_the_guard() -> None:
    # Runs in the child after it changed its user, which would clear the setting (prctl(2)).
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
