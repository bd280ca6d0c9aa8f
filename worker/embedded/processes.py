"""
Servers as child processes: started, waited for, stopped, and never left behind.

Each one runs under a guard process (`guard.py`), in a session of its own: it ends when we
end, however we end, and a Ctrl-C at the terminal reaches us first. What it prints goes to a log
file, whose tail is in the error when it does not come up.
"""

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Self

from worker.embedded import guard
from worker.embedded.ports import HOST
from worker.errors import ConfigError

PROBE_INTERVAL_SECONDS = 0.02
PROBE_TIMEOUT_SECONDS = 2
TAIL_LINES = 20


class GuardedProcess:
    """
    One server process bound to our life.

    `user` is whom it runs as (only root may name one). `parting_signal` is what it gets when
    we are gone; SIGKILL follows after a grace.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        user: str = "",
        parting_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        self.name = name
        self.log = log
        report, report_end = os.pipe()
        command = [sys.executable, "-I", "-S", guard.__file__]
        options = [str(report_end), str(int(parting_signal)), user]
        try:
            with log.open("ab") as output:
                self._guard = subprocess.Popen(  # noqa: S603 -- our own argument list, no shell
                    [*command, *options, *argv],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    pass_fds=(report_end,),
                    start_new_session=True,
                    bufsize=0,
                )
        finally:
            os.close(report_end)
        with os.fdopen(report) as answer:
            started = answer.readline()
        if not started:
            self._finish(timeout_seconds=None)
            raise ConfigError(f"{name} cannot be started: {self.log_tail()}")
        self.pid = int(started)

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._guard.poll() is None

    def wait_until(self, ready: Callable[[], bool], timeout_seconds: float) -> None:
        """
        Return when `ready` says so.

        Raises:
            ConfigError: it ended first, or the time is over; its log tells why.
        """
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            if not self.is_running:
                raise self._failure(f"ended with code {self._guard.returncode} at its start")
            if time.monotonic() > deadline:
                raise self._failure(f"is not ready after {timeout_seconds:g} s")
            time.sleep(PROBE_INTERVAL_SECONDS)

    def send(self, number: signal.Signals) -> None:
        """Send a signal; one to a process that has ended is no error."""
        assert self._guard.stdin is not None
        with suppress(BrokenPipeError, ValueError):
            self._guard.stdin.write(bytes([number]))

    def end(self, number: signal.Signals, timeout_seconds: float) -> None:
        """Send a signal and wait; what ignores it until the time is over is killed."""
        self.send(number)
        if not self._finish(timeout_seconds):
            self.kill()

    def kill(self) -> None:
        """End it at once, as a crash would; returns when it is gone."""
        self.send(signal.SIGKILL)
        self._finish(timeout_seconds=None)

    def log_tail(self) -> str:
        """Return the last lines of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-TAIL_LINES:])

    def _finish(self, timeout_seconds: float | None) -> bool:
        try:
            self._guard.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return False
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        return True

    def _failure(self, what: str) -> ConfigError:
        return ConfigError(f"{self.name} {what}; the end of {self.log}:\n{self.log_tail()}")


class EmbeddedServer(ABC):
    """
    A server of our own on one folder: the same few verbs for all kinds of it.

    A kind says how it is launched and when it is ready. Where it listens stays the same from
    its first start on. The folder is never deleted.
    """

    stop_signal = signal.SIGTERM
    start_timeout_seconds = 60.0
    stop_timeout_seconds = 20.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._process: GuardedProcess | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the server itself."""
        assert self._process is not None, "it is not running"
        return self._process.pid

    def start(self) -> None:
        """
        Start it where it is not running, and wait until it answers.

        Raises:
            ConfigError: it cannot be had or does not come up; the end of its log is in it.
        """
        if self._process is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._process = self._launch()
        try:
            self._process.wait_until(self._is_ready, self.start_timeout_seconds)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Shut it down in order. Safe to call twice."""
        if self._process is not None:
            self._process.end(self.stop_signal, self.stop_timeout_seconds)
            self._process = None

    def kill(self) -> None:
        """Kill it as a crash would; `start` brings it back."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def restart(self) -> None:
        """Stop and start it."""
        self.stop()
        self.start()

    @abstractmethod
    def _launch(self) -> GuardedProcess:
        """Start the process."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether it answers."""


def answers(port: int, path: str) -> bool:
    """Whether an HTTP server on loopback answers 200."""
    connection = HTTPConnection(HOST, port, timeout=PROBE_TIMEOUT_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def run(name: str, argv: Sequence[str], *, log: Path, user: str = "") -> None:
    """
    Run a command to its end.

    Raises:
        ConfigError: it failed; the end of its output is in the message.
    """
    with log.open("ab") as output:
        done = subprocess.run(  # noqa: S603 -- our own argument list, no shell
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            user=user or None,
            group=guard.group_of(user),
            extra_groups=[] if user else None,
            check=False,
        )
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        raise ConfigError(f"{name} failed with code {done.returncode}:\n{tail}")
