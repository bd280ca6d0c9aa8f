"""
The names of all settings, derived from the dataclasses of `worker.config`.

A setting has one dotted name (`kafka.group`), and by it a flag (`--kafka.group`), a variable
(`EMBEDFLEET_KAFKA_GROUP`) and a place in the TOML file (`[kafka] group`). Nothing is listed
twice: an option that is added there is known here.
"""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from msgspec import Meta

from worker.config import Settings

PREFIX = "EMBEDFLEET_"
ALIASES = {
    "DATABASE_URL": "database.url",
    "KAFKA_BOOTSTRAP_SERVERS": "kafka.bootstrap_servers",
    "OPENAI_BASE_URL": "embedding.url",
}
"""Variables that people have set already; one of ours counts before them."""


class Setting(NamedTuple):
    """One setting: its dotted name, its type with its bounds, its default."""

    name: str
    annotation: Any
    default: Any

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return PREFIX + self.name.replace(".", "_").upper()

    @property
    def flag(self) -> str:
        """The flag that sets it."""
        return "--" + self.name.replace("_", "-")

    @property
    def value_type(self) -> Any:
        """Its type without None, with its bounds: msgspec refuses bounds around a union."""
        inner, *metas = get_args(self.annotation)
        parts = [one for one in get_args(inner) if one is not NoneType]
        if self.admits_none:
            inner = Union[tuple(parts)]  # noqa: UP007  made of what is only known here
        return Annotated[(inner, *metas)]

    @property
    def admits_none(self) -> bool:
        """Whether it may be switched off with `none`."""
        return NoneType in get_args(get_args(self.annotation)[0])

    @property
    def is_list(self) -> bool:
        """Whether it takes several values."""
        return get_origin(get_args(self.annotation)[0]) is tuple

    @property
    def choices(self) -> tuple[str, ...]:
        """The values it may have, where they are few."""
        inner = get_args(self.value_type)[0]
        return get_args(inner) if get_origin(inner) is Literal else ()

    @property
    def description(self) -> str:
        """What it means, in a sentence."""
        return next((one.description for one in self._metas() if one.description), "")

    @property
    def bounds(self) -> str:
        """What its value must keep to, for people; empty where anything goes."""
        signs = {
            "ge": ">=",
            "gt": ">",
            "le": "<=",
            "lt": "<",
            "min_length": "at least",
            "pattern": "matches",
        }
        found = (
            f"{sign} {value}"
            for one in self._metas()
            for bound, sign in signs.items()
            if (value := getattr(one, bound)) is not None
        )
        return ", ".join(found)

    def _metas(self) -> Iterator[Meta]:
        yield from (one for one in get_args(self.annotation) if isinstance(one, Meta))


@cache
def all_settings() -> dict[str, Setting]:
    """Return every setting by its dotted name, in the order of the dataclasses."""
    return {one.name: one for one in _settings_of(Settings, "")}


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a question that names the nearest of some names, empty where none is near."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def _settings_of(options: type[Any], prefix: str) -> Iterator[Setting]:
    types = get_type_hints(options, include_extras=True)
    for field in fields(options):
        name, annotation = prefix + field.name, types[field.name]
        if is_dataclass(annotation):
            yield from _settings_of(annotation, f"{name}.")  # type: ignore[arg-type]  # a class
        else:
            yield Setting(name, annotation, _default(field))


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default
