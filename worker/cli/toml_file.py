"""
The TOML file: its values by dotted name, each with the line that it stands on.

Reads and checks names only; types and bounds are `configuration`'s business. What cannot be
read or is not known is a `ConfigError` that says file, line and the nearest known name, never
a value.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from worker.cli.setting_names import all_settings, nearest
from worker.errors import ConfigError

_TABLE = re.compile(r"\s*\[\s*([\w.\s-]+?)\s*\]")
_KEY = re.compile(r"\s*([\w-]+(?:\s*\.\s*[\w-]+)*)\s*=")


class TomlFile:
    """The values of one file by dotted name, and where each stands."""

    def __init__(self, path: Path) -> None:
        """
        Read the file.

        Raises:
            ConfigError: it cannot be read, is no TOML, or has a key that nobody knows.
        """
        text = _read(path)
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is no TOML: {error}") from error
        self._path = path
        self._lines = dict(_lines(text))
        self.values = dict(self._flat(document, ""))

    def where(self, name: str) -> str:
        """Return file and line of a key; the file alone where the line is not to be found."""
        line = self._lines.get(name)
        return f"{self._path}:{line}" if line else str(self._path)

    def _flat(self, table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        names = all_settings()
        for key, value in table.items():
            name = prefix + key.replace("-", "_")
            if name in names:
                yield name, value
            elif not isinstance(value, dict):
                raise ConfigError(
                    f"{self.where(name)}: there is no setting {name}{nearest(name, names)}"
                )
            elif any(one.startswith(f"{name}.") for one in names):
                yield from self._flat(value, f"{name}.")
            else:
                tables = {one.rpartition(".")[0] for one in names if "." in one}
                raise ConfigError(
                    f"{self.where(name)}: there is no table [{name}]{nearest(name, tables)}"
                )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no TOML: it is not UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _lines(text: str) -> Iterator[tuple[str, int]]:
    """Yield where keys and tables stand; tomllib does not say."""
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if found := _TABLE.match(line):
            table = _name(found[1])
            yield table, number
        elif found := _KEY.match(line):
            yield _name(f"{table}.{found[1]}" if table else found[1]), number


def _name(written: str) -> str:
    return re.sub(r"\s*\.\s*", ".", written).replace("-", "_")
