"""A signal ends a command at every moment, also one that is the first of its container."""

import os
import signal
import subprocess
import sys

import pytest

LIMIT_SECONDS = 60
# Says what it imports: so it is known when it has come to the command line.
TALKATIVE = (sys.executable, "-X", "importtime", "-m", "worker")


@pytest.fixture(params=["plain", "with an interrupt that is ignored"])
def launched(request):
    """Start `embedfleet config` as a shell does; return it when it begins to load commands."""
    before = signal.getsignal(signal.SIGINT)
    if request.param != "plain":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a child inherits it
    try:
        process = subprocess.Popen(
            [*TALKATIVE, "config"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"EMBEDFLEET_CONFIG": ""},
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    while not process.stderr.readline().endswith("| worker.cli.interrupts\n"):
        assert process.poll() is None
    process.stderr.readline()  # the first of the command line's own
    return process


def test_a_signal_while_the_command_line_is_loaded_ends_it_as_ctrl_c_does(launched):
    os.kill(launched.pid, signal.SIGTERM)
    _, rest = launched.communicate(timeout=LIMIT_SECONDS)
    assert launched.returncode == 130, rest
    assert "Traceback" not in rest
