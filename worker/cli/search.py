"""The command `search`."""

import asyncio
import shutil
from typing import Annotated

from cyclopts import validators

from worker.cli.output import say, show, show_json
from worker.cli.parameters import DEFAULTS, Json, WithSettings, option
from worker.ops.search import Found, Query

SNIPPET_LINES = 2
Words = Annotated[str, option("What to look for.")]
Name = Annotated[str, option("Where to look.")]
Tenant = Annotated[str, option("Whose documents.")]
K = Annotated[int, option("How many chunks.", validator=validators.Number(gte=1, lte=1000))]


def search(
    words: Words,
    /,
    *,
    collection: Name,
    tenant: Tenant,
    k: K = 5,
    json: Json = False,
    settings: WithSettings = DEFAULTS,
) -> None:
    """Search for words."""
    from worker.app import jobs

    found = asyncio.run(jobs.search(settings, Query(words, collection, tenant, k)))
    if json:
        show_json([one._asdict() for one in found])
        return
    for one in found:
        show(_text(one, shutil.get_terminal_size((100, 24)).columns))
    if not found:
        say(f"the tenant {tenant!r} has nothing in the collection {collection!r}")


def _text(one: Found, columns: int) -> str:
    heading = f"  {one.heading}" if one.heading else ""
    content = " ".join(one.content.split())
    room = SNIPPET_LINES * max(20, columns - 4)
    snippet = content if len(content) <= room else content[: room - 1] + "…"
    return f"{one.rank}. {one.score:.3f}  {one.document}{heading}\n   {snippet}"
