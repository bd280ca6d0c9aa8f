"""
The key of the embedding provider, read where it is kept.

A variable is read at every request; a file when it changes, so that a rotated secret is used
without a restart. With OAuth2 the same reference holds what a token is asked for with: a
client's secret or a JSON key file. Never logs, stores or shows the key: errors name where it
is kept.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from worker.config import EmbeddingOptions
from worker.errors import KeyRefused

Check = Callable[[str, str], str]
"""Returns a key as it is used, given where it is kept; raises where it is none."""


def header_safe(value: str, where: str) -> str:
    """
    Return a key that a header can carry.

    Raises:
        KeyRefused: it is none; says where it is kept, and nothing of it.
    """
    key = value.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise KeyRefused(f"{where} holds no key that a header can carry")
    return key


class EmbeddingKey:
    """The reference to a key; `read` follows it."""

    def __init__(
        self,
        options: EmbeddingOptions,
        environ: Mapping[str, str],
        check: Check = header_safe,
    ) -> None:
        self._check = check
        self._file = options.api_key_file
        self._variable = options.api_key_variable
        self._environ = environ
        self._seen: tuple[int, int, int] | None = None
        self._last: str | None = None

    def read(self) -> str | None:
        """
        Return the key, None where none is set.

        Raises:
            KeyRefused: the file cannot be read, or what is kept there is no key.
        """
        if self._file is not None:
            return self._from_file(self._file)
        if self._variable is None or not (value := self._environ.get(self._variable)):
            return None
        return self._check(value, f"the variable {self._variable}")

    async def current(self) -> str | None:
        """Return the key to send."""
        return self.read()

    async def renewed(self, refused: str | None) -> str | None:
        """Return the key as it is kept now, after the provider refused the one sent."""
        del refused
        self._seen = None
        return self.read()

    async def close(self) -> None:
        """Release nothing: a reference holds no connection."""

    def _from_file(self, path: Path) -> str:
        try:
            # Not the time alone: Kubernetes swaps a link to files written long before.
            facts = os.stat(path)  # noqa: PTH116  2 us of the loop; a thread hop costs 50
            seen = (facts.st_mtime_ns, facts.st_ino, facts.st_size)
            if self._last is None or seen != self._seen:
                self._last = self._check(path.read_text(), "the file of embedding.api_key_file")
                self._seen = seen
        except (OSError, UnicodeDecodeError, KeyRefused) as error:
            if self._last is None:
                raise KeyRefused(
                    f"embedding.api_key_file cannot be read or holds no key that a header can "
                    f"carry ({type(error).__name__})"
                ) from None
            # Being replaced right now: the old key is still the best one known.
        return self._last
