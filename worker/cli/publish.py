"""The command `publish`."""

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from worker.cli.output import say, show_json
from worker.cli.parameters import DEFAULTS, Json, WithSettings, option
from worker.errors import ConfigError, WorkerError
from worker.ops.publish import STDIN, Bad, Publication, Read, Source

SHOWN_BAD = 20

Paths = Annotated[
    list[str],
    option(
        "Files of JSON lines, - for stdin, text files, or folders of *.txt, *.md, *.markdown, "
        "*.rst: there a document's id is its path, its version the time of its last change. "
        "Hidden files are left out; deleted files are not noticed.",
        negative="",
        allow_leading_hyphen=True,
    ),
]
Collection = Annotated[str | None, option("Of the texts in folders and text files.")]
Tenant = Annotated[str | None, option("Of the texts in folders and text files.")]
Topic = Annotated[str | None, option("Where to [default: the first of kafka.topics].")]


def publish(
    paths: Paths,
    /,
    *,
    collection: Collection = None,
    tenant: Tenant = None,
    topic: Topic = None,
    json: Json = False,
    settings: WithSettings = DEFAULTS,
) -> int:
    """Publish documents."""
    from worker.app.publish_job import publish as send

    sources = [_source(path, tenant, collection) for path in paths]
    if (tenant or collection) and not any(one.is_text for one in sources):
        raise ConfigError("--tenant and --collection are for text files: events name their own")
    publication = Publication(on_bad=_Complaints())
    started = time.monotonic()
    try:
        with _progress(publication, sources):
            asyncio.run(send(settings, topic or settings.kafka.topics[0], sources, publication))
    except WorkerError as error:
        if not publication.published:
            raise
        raise type(error)(f"{error}; published before: {publication.published}") from error
    _sum_up(publication, time.monotonic() - started, json=json)
    return 1 if publication.bad else 0


def _source(path: str, tenant: str | None, collection: str | None) -> Source:
    if path != STDIN and not Path(path).exists():
        raise ConfigError(f"there is no file or folder {path!r}")
    source = Source(path, tenant, collection)
    if path != STDIN and source.is_text and not (tenant and collection):
        what = "a folder" if Path(path).is_dir() else "a text file"
        raise ConfigError(f"{path} is {what}: say --collection and --tenant")
    return source


class _Complaints:
    """Tells of bad lines, of the first ones only: a wrong file has a million of them."""

    def __init__(self) -> None:
        self._told = 0

    def __call__(self, bad: Bad) -> None:
        self._told += 1
        if self._told <= SHOWN_BAD:
            say(f"{bad.where}: {bad.reason}")
        elif self._told == SHOWN_BAD + 1:
            say("more bad lines are counted and not shown; --json has a thousand of them")


@contextmanager
def _progress(publication: Publication, sources: list[Source]) -> Iterator[None]:
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    sizes = [one.size_bytes for one in sources]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    columns = (
        TextColumn("{task.fields[published]} published"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("publish", total=total, published=0)

        def advance(read: Read) -> None:
            bar.update(task, advance=read.size_bytes, published=publication.published)

        publication.on_read = advance
        yield


def _sum_up(publication: Publication, seconds: float, *, json: bool) -> None:
    if json:
        show_json(
            {
                "published": publication.published,
                "bad": publication.bad,
                "first_bad": [one._asdict() for one in publication.first_bad],
                "seconds": round(seconds, 3),
            }
        )
        return
    rate = publication.published / max(seconds, 1e-3)
    say(
        f"{publication.published} published in {seconds:.1f} s ({rate:,.0f}/s), "
        f"{publication.bad} bad"
    )
