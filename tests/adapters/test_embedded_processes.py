import os
import select
import signal
import socket
import subprocess
import sys

import pytest

from tests.support.orphans import outlives_its_parent
from worker.embedded.ports import CANDIDATES, HOST, ReservedPort, _reserve
from worker.embedded.processes import GuardedProcess, run
from worker.errors import ConfigError

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""
PARENT = """
import pathlib, sys
from worker.embedded.processes import GuardedProcess
process = GuardedProcess("sleeper", sys.argv[2:], log=pathlib.Path(sys.argv[1]))
print(process.pid, process._guard.pid, flush=True)
input()
"""


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_process_dies_with_its_killed_parent(tmp_path):
    assert outlives_its_parent(PARENT, str(tmp_path / "log"), *SLEEP) == []


def test_a_process_that_ignores_signals_dies_with_its_killed_parent(tmp_path):
    command = [sys.executable, "-c", STUBBORN, str(tmp_path / "up")]
    assert outlives_its_parent(PARENT, str(tmp_path / "log"), *command) == []


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_process_dies_with_its_killed_guard(tmp_path):
    process = GuardedProcess("sleeper", SLEEP, log=tmp_path / "log")
    watched = os.pidfd_open(process.pid)
    try:
        process._guard.kill()
        process.kill()
        assert select.select([watched], [], [], 20)[0] == [watched]
    finally:
        os.close(watched)


def test_a_ctrl_c_at_the_terminal_reaches_neither_the_process_nor_its_guard(tmp_path):
    process = GuardedProcess("sleeper", SLEEP, log=tmp_path / "log")
    sessions = {os.getsid(pid) for pid in (0, process.pid, process._guard.pid)}
    process.kill()
    assert len(sessions) == 3


def test_a_process_that_ignores_its_signal_is_killed_when_the_time_is_over(tmp_path):
    up = tmp_path / "up"
    command = [sys.executable, "-c", STUBBORN, str(up)]
    process = GuardedProcess("stubborn", command, log=tmp_path / "log")
    process.wait_until(up.exists, timeout_seconds=20)
    process.end(signal.SIGTERM, timeout_seconds=0.1)
    assert not process.is_running
    assert ended(process.pid)


def test_signals_to_a_process_that_has_ended_are_no_error(tmp_path):
    process = GuardedProcess("sleeper", SLEEP, log=tmp_path / "log")
    process.kill()
    process.kill()
    process.end(signal.SIGTERM, timeout_seconds=1)


def test_a_failed_start_shows_the_end_of_the_log(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('no luck today')"]
    process = GuardedProcess("unlucky", command, log=tmp_path / "log")
    with pytest.raises(ConfigError, match=r"unlucky ended with code 1(.|\n)*no luck today"):
        process.wait_until(lambda: False, timeout_seconds=20)
    process.kill()


def test_a_process_killed_at_its_start_is_reported_as_such(tmp_path):
    process = GuardedProcess("sleeper", SLEEP, log=tmp_path / "log")
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(ConfigError, match="sleeper ended with code 137"):
        process.wait_until(lambda: False, timeout_seconds=20)
    process.kill()


def test_a_process_that_is_never_ready_is_an_error(tmp_path):
    process = GuardedProcess("sleeper", SLEEP, log=tmp_path / "log")
    try:
        with pytest.raises(ConfigError, match=r"sleeper is not ready after 0\.1 s"):
            process.wait_until(lambda: False, timeout_seconds=0.1)
    finally:
        process.kill()


def test_a_program_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"ghost cannot be started(.|\n)*/no/such/program"):
        GuardedProcess("ghost", ["/no/such/program"], log=tmp_path / "log")


def test_a_command_that_fails_shows_the_end_of_its_output(tmp_path):
    command = [sys.executable, "-c", "print('what went wrong'); raise SystemExit(3)"]
    with pytest.raises(ConfigError, match=r"tool failed with code 3:\n.*what went wrong"):
        run("tool", command, log=tmp_path / "log")


RESERVE = """
from worker.embedded.ports import _reserve
import sys
print(_reserve(int(sys.argv[1])) is not None)
"""


def can_be_reserved_elsewhere(number: int) -> bool:
    command = [sys.executable, "-c", RESERVE, str(number)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout == "True\n"


def test_a_reserved_port_is_taken_for_other_processes_until_it_is_released():
    port = ReservedPort()
    assert port.number in CANDIDATES
    assert not can_be_reserved_elsewhere(port.number)
    port.release()
    assert can_be_reserved_elsewhere(port.number)


def test_a_port_somebody_listens_on_is_not_reserved():
    port = ReservedPort()
    with socket.create_server((HOST, port.number)):
        port.release()
        assert _reserve(port.number) is None
