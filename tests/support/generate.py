"""
Files and tables that are made from the code: `python -m tests.support.generate` writes them.

`GENERATED` are whole files, by their path in the repository. `BLOCKS` are parts of README.md,
between `<!-- generated:NAME -->` and `<!-- /generated:NAME -->`; a name without a place in the
README is no error. A new table is one function and one line in `BLOCKS`.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from msgspec import Meta

from schemas import specification
from schemas.dead_letter import Reason
from worker.config import Settings
from worker.telemetry.instruments import INSTRUMENTS, Kind

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
ENVIRONMENT_PREFIX = "EMBEDFLEET_"

_BOUNDS = {
    "gt": "> {}",
    "ge": "≥ {}",
    "lt": "< {}",
    "le": "≤ {}",
    "min_length": "at least {}",
    "max_length": "at most {}",
    "pattern": "`{}`",
}


def reasons() -> str:
    """Every reason code of a dead letter."""
    rows = [(f"`{reason}`", reason.what, reason.remedy) for reason in Reason]
    return table(("reason", "what happened", "what to do"), rows)


def configuration() -> str:
    """Every setting of a worker."""
    titles = ("setting", "environment", "default", "bounds", "meaning")
    return table(titles, list(_settings(Settings, ())))


def instruments() -> str:
    """Every metric of a worker."""
    titles = ("metric", "Prometheus", "kind", "unit", "attributes", "meaning")
    rows = [
        (
            f"`{one.full_name}`",
            f"`{one.prometheus_name}`",
            "histogram" if one.kind is Kind.BUCKETS else one.kind.value,
            one.unit,
            ", ".join(one.attributes),
            one.meaning,
        )
        for one in INSTRUMENTS
    ]
    return table(titles, rows)


def table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [titles, ("---",) * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def replace_blocks(text: str, blocks: dict[str, Callable[[], str]]) -> str:
    """Return a text with its marked blocks made anew."""
    for name, make in blocks.items():
        start, end = f"<!-- generated:{name} -->", f"<!-- /generated:{name} -->"
        block = f"{start}\n\n{make()}\n\n{end}"
        pattern = re.escape(start) + ".*?" + re.escape(end)
        text = re.sub(pattern, lambda _, block=block: block, text, flags=re.DOTALL)
    return text


def main() -> None:
    """Write what is out of date, and say so."""
    wanted = {ROOT / path: make() for path, make in GENERATED.items()}
    wanted[README] = replace_blocks(README.read_text(encoding="utf-8"), BLOCKS)
    for path, text in wanted.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")  # noqa: T201 a command's answer


def _json(make: Callable[[], Any]) -> Callable[[], str]:
    return lambda: json.dumps(make(), indent=2, ensure_ascii=False) + "\n"


def _settings(options: type, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    hints = get_type_hints(options, include_extras=True)
    for field in fields(options):
        names = (*path, field.name)
        if is_dataclass(hints[field.name]):
            yield from _settings(hints[field.name], names)
        else:
            yield _setting(field, hints[field.name], names)


def _setting(field: Field[Any], hint: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    meta = next((note for note in notes if isinstance(note, Meta)), Meta())
    bounds = [*_choices(kind), *_bounds(meta)]
    return (
        f"`{'.'.join(names)}`",
        f"`{ENVIRONMENT_PREFIX}{'_'.join(names).upper()}`",
        _default(field.default),
        ", ".join(bounds),
        meta.description or "",
    )


def _bounds(meta: Meta) -> Iterator[str]:
    for name, form in _BOUNDS.items():
        value = getattr(meta, name)
        if value is not None:
            yield form.format(value)


def _choices(kind: Any) -> Iterator[str]:
    if get_origin(kind) in (Union, UnionType):
        for member in get_args(kind):
            yield from _choices(member)
    elif get_origin(kind) is Literal:
        yield " or ".join(f"`{choice}`" for choice in get_args(kind))


def _default(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


GENERATED: dict[str, Callable[[], str]] = {
    "schemas/json/event.schema.json": _json(specification.json_schema),
    "schemas/json/dead-letter-headers.schema.json": _json(
        specification.dead_letter_headers_schema
    ),
    "schemas/json/asyncapi.json": _json(specification.async_api),
}

BLOCKS: dict[str, Callable[[], str]] = {
    "reasons": reasons,
    "instruments": instruments,
    "configuration": configuration,
}

if __name__ == "__main__":
    main()
