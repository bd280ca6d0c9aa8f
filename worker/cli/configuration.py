"""
Where settings come from: flags, then the environment, then the TOML file, then defaults.

A hook of cyclopts: it is called when the flags of a command are known, adds what the other
sources say about the rest, checks every value against its bounds, and notes where each came
from. A command without settings is left alone. Relations between settings are checked by
`worker.config` itself, afterwards.

An unknown key or `EMBEDFLEET_*` variable is refused: a name with a typing error must not be a
setting that silently does not count. Every refusal is a `ConfigError` of one sentence.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from cyclopts import App, ArgumentCollection, Token
from cyclopts.argument import Argument

from worker.cli.masking import is_readable, secrets_of_url
from worker.cli.setting_names import ALIASES, PREFIX, Setting, all_settings, nearest
from worker.cli.toml_file import TomlFile
from worker.errors import ConfigError

CONFIG_VARIABLE = "EMBEDFLEET_CONFIG"
DEFAULT_FILE = Path("embedfleet.toml")
DEFAULT_ORIGIN = "default"

# Read elsewhere: the file above, the embedded Kafka's jars, what tests set.
_OTHER_VARIABLES = re.compile(r"EMBEDFLEET_(CONFIG|KAFKA_JARS|FAILPOINTS|TEST_\w+)")
# Kubernetes sets these in every pod where a Service has a name that begins with ours:
# kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables
_SERVICE_LINK = re.compile(
    r"EMBEDFLEET_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)
NOTHING = ("", "none", "null")


class Sources:
    """
    What there is besides the flags of one command line.

    `origins` and `secrets` are known once a command line has been parsed.
    """

    def __init__(self, file: Path | None, environ: Mapping[str, str] = os.environ) -> None:
        """
        Find and read the TOML file.

        Raises:
            ConfigError: a file that was asked for is not there, or says something unknown.
        """
        self._environ = environ
        self._file = _file(file, environ)
        self.origins: dict[str, str] = {}
        self.secrets: set[str] = set()

    def __call__(
        self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection
    ) -> None:
        """Add to a command's arguments what its flags do not say, and check it all."""
        del app, commands
        known = {".".join(one.keys): one for one in arguments if one.keys and not one.children}
        if not known.keys() >= all_settings().keys():
            return
        values: dict[str, Any] = {}
        for name, setting in all_settings().items():
            values[name] = self._resolve(known[name], setting)
            self._note_secrets(name, values[name])
        self._refuse_unknown_variables(values)

    def _resolve(self, argument: Argument, setting: Setting) -> Any:
        """Settle one setting; returns its value."""
        if argument.tokens:
            origin = f"flag {argument.tokens[0].keyword}"
        elif (variable := self._variable_of(setting)) is not None:
            origin = variable
            parts = _parts(self._environ[variable], setting)
            _append(argument, variable, "the environment", parts)
        elif self._file is not None and setting.name in self._file.values:
            origin = self._file.where(setting.name)
            self._take_key(argument, setting, origin)
        else:
            self.origins[setting.name] = DEFAULT_ORIGIN
            return setting.default
        self.origins[setting.name] = origin
        if _says_nothing(argument, setting):
            argument.tokens[:] = [Token(keyword=setting.flag, implicit_value=None)]
            return None
        value = checked(argument.convert(), setting, origin)
        if isinstance(value, str) and setting.name.endswith(".url") and not is_readable(value):
            raise ConfigError(
                f"{setting.name} ({origin}) is no URL that can be read: percent-encode what is "
                "special in its user and password"
            )
        return value

    def _variable_of(self, setting: Setting) -> str | None:
        names = [
            setting.variable,
            *(one for one, name in ALIASES.items() if name == setting.name),
        ]
        # Empty is unset: it is what `${NAME:-}` leaves in compose files.
        return next((one for one in names if self._environ.get(one)), None)

    def _take_key(self, argument: Argument, setting: Setting, where: str) -> None:
        value = self._file.values[setting.name] if self._file is not None else None
        if not (setting.admits_none and value in NOTHING):
            checked(value, setting, where)  # as it is written: a number is no string
        parts = value if isinstance(value, list) else [value]
        _append(argument, setting.name, where, [str(one) for one in parts])

    def _note_secrets(self, name: str, value: Any) -> None:
        if name.endswith("_variable") and value and (secret := self._environ.get(value)):
            self.secrets.add(secret)
        if isinstance(value, str) and "://" in value:
            self.secrets |= secrets_of_url(value)

    def _refuse_unknown_variables(self, values: Mapping[str, Any]) -> None:
        ours = {one.variable for one in all_settings().values()}
        referred = {value for name, value in values.items() if name.endswith("_variable")}
        for name in sorted(self._environ):
            if not name.startswith(PREFIX) or name in ours or name in referred:
                continue
            if not (_OTHER_VARIABLES.fullmatch(name) or _SERVICE_LINK.fullmatch(name)):
                raise ConfigError(
                    f"the variable {name} is no setting{nearest(name, ours)} "
                    "(`embedfleet config` lists all)"
                )


def checked(value: Any, setting: Setting, origin: str) -> Any:
    """
    Return a value that keeps to its type and bounds.

    Raises:
        ConfigError: it does not; says which one, where it came from, and what is allowed.
    """
    try:
        return msgspec.convert(value, setting.value_type, dec_hook=_path)
    except msgspec.ValidationError as error:
        sentence = str(error)
        raise ConfigError(
            f"{setting.name} ({origin}): {sentence[:1].lower()}{sentence[1:]}"
        ) from error


def _file(file: Path | None, environ: Mapping[str, str]) -> TomlFile | None:
    if file is None and environ.get(CONFIG_VARIABLE):
        file = Path(environ[CONFIG_VARIABLE])
    if file is None and not DEFAULT_FILE.exists():
        return None
    return TomlFile(file or DEFAULT_FILE)


def _parts(text: str, setting: Setting) -> list[str]:
    return re.split(r"[,\s]+", text.strip(", \t")) if setting.is_list else [text]


def _append(argument: Argument, keyword: str, source: str, parts: Iterable[str]) -> None:
    for index, value in enumerate(parts):
        argument.append(Token(keyword=keyword, value=value, source=source, index=index))


def _says_nothing(argument: Argument, setting: Setting) -> bool:
    values = [one.value.lower() for one in argument.tokens]
    return setting.admits_none and len(values) == 1 and values[0] in NOTHING


def _path(expected: type[Any], value: Any) -> Any:
    if expected is Path and isinstance(value, str | Path):
        return Path(value)
    raise msgspec.ValidationError(f"Expected `{expected.__name__}`")
