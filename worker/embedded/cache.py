"""Where the embedded parts keep what is costly to make again: the user's cache folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.errors import ConfigError


def cache_folder() -> Path:
    """
    Return our folder in the user's cache (XDG base directories).

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "embedfleet"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        raise ConfigError(f"no cache folder ({error}); set XDG_CACHE_HOME to one") from error
    return folder


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Let one process at a time pass; the kernel lets the next one in when a holder dies."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
