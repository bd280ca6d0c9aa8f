"""
Files and tables that are made from the code: `python -m tests.support.generate` writes them.

`GENERATED` are whole files, by their path in the repository. `BLOCKS` are parts of README.md,
between `<!-- generated:NAME -->` and `<!-- /generated:NAME -->`; a name without a place in the
README is no error. A new table is one function and one line in `BLOCKS`.
"""

import json
import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from schemas import specification
from schemas.dead_letter import Reason
from tests.support import manifests
from worker.cli.setting_names import Setting, all_settings
from worker.core.dialects import DIALECTS
from worker.core.failure_class import FailureClass
from worker.core.taxonomy import TABLE
from worker.telemetry.instruments import INSTRUMENTS, Kind

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def reasons() -> str:
    """Every reason code of a dead letter."""
    rows = [(f"`{reason}`", reason.what, reason.remedy) for reason in Reason]
    return table(("reason", "what happened", "what to do"), rows)


def provider_errors() -> str:
    """Every way in which a provider fails, and what the worker does."""
    rows = [
        (
            _statuses(row.statuses),
            row.says,
            DIALECTS[row.dialect].title if row.dialect else "",
            row.meaning.value,
            f"`{row.reason}`" if row.meaning is FailureClass.CONTENT else "",
        )
        for row in TABLE
    ]
    classes = [(one.value, one.reaction) for one in FailureClass]
    failures = table(("status", "what the answer says", "only", "class", "reason"), rows)
    return failures + "\n\n" + table(("class", "what the worker does"), classes)


def dialects() -> str:
    """Every dialect, with what is special about its requests."""
    titles = ("`embedding.dialect`", "API", "inputs", "tokens", "truncation", "note")
    rows = [
        (
            f"`{one.name}`",
            one.title,
            f"{one.max_inputs or ''}",
            f"{one.max_request_tokens or ''}",
            f"`{one.truncation}` is sent as false" if one.truncation else "",
            one.note,
        )
        for one in DIALECTS.values()
    ]
    return table(titles, rows)


def configuration() -> str:
    """Every setting of a worker."""
    titles = ("setting", "environment", "default", "bounds", "meaning")
    rows = [
        (
            f"`{one.name}`",
            f"`{one.variable}`",
            _default(one.default),
            _bounds(one),
            one.description,
        )
        for one in all_settings().values()
    ]
    return table(titles, rows)


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


def planted() -> str:
    """Every planted bug, and the run that catches it."""
    from tests.planted.picture import picture  # the tests that it names import pytest

    return picture()


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


def _bounds(setting: Setting) -> str:
    choices = " or ".join(f"`{choice}`" for choice in setting.choices)
    return choices or (f"`{setting.bounds}`" if setting.bounds else "")


def _statuses(statuses: Collection[int]) -> str:
    match statuses:
        case range(start=100, stop=1000):
            return "any other, none"
        case range():
            return f"{statuses.start // 100}xx"
        case _:
            return ", ".join(map(str, statuses)) or "none"


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
    "tests/planted/README.md": planted,
    **{path: partial(str, text) for path, text in manifests.generated().items()},
}

BLOCKS: dict[str, Callable[[], str]] = {
    "reasons": reasons,
    "provider_errors": provider_errors,
    "dialects": dialects,
    "instruments": instruments,
    "configuration": configuration,
}

if __name__ == "__main__":
    main()
