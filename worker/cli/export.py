"""The command `export`."""

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from worker.cli.output import say, show_json
from worker.cli.parameters import DEFAULTS, Json, WithSettings, option, switch
from worker.cli.progress import end_told
from worker.core.exports import Dtype, RowFormat
from worker.core.progress import WatchEach
from worker.errors import TransientError

if TYPE_CHECKING:  # it loads client libraries, which the help does without
    from worker.app.export_job import Exported

Collection = Annotated[str, option("What to export.")]
Out = Annotated[Path, option("Folder for it, made where it is missing.")]
Tenant = Annotated[str | None, option("Only this one's documents.")]
As = Annotated[
    Dtype, option("Numbers of the vectors; float16 is exact for collections in halfvec.")
]
Metadata = Annotated[RowFormat, option("Rows as JSON lines or as Parquet.")]
Content = Annotated[bool, option("With the text of each chunk.")]
Force = Annotated[
    bool,
    switch("--force", "Replace a finished export, or an unfinished one of other settings."),
]


def export(
    *,
    collection: Collection,
    out: Out,
    tenant: Tenant = None,
    dtype: As = "float32",
    metadata: Metadata = "jsonl",
    content: Content = False,
    force: Force = False,
    json: Json = False,
    settings: WithSettings = DEFAULTS,
) -> None:
    """Export a collection."""
    from worker.app.export_job import Request
    from worker.app.export_job import export as run

    request = Request(collection, tenant, dtype, metadata, content)
    started = time.monotonic()
    with _kept_when_ended() as watch:
        exported = run(settings, request, out, partial(watch, collection), force=force)
    _sum_up(exported, out, time.monotonic() - started, json=json)


@contextmanager
def _kept_when_ended() -> Iterator[WatchEach]:
    """Say that nothing is lost, where an export that has begun ends before its time."""
    words = "ended; what was written down stays, and the same command goes on from there"
    try:
        with end_told((KeyboardInterrupt, TransientError), words) as watch:
            yield watch
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            say("what was written down stays: make room, and the same command goes on")
        raise


def _sum_up(exported: "Exported", out: Path, seconds: float, *, json: bool) -> None:
    manifest, run = exported
    if json:
        facts = {"folder": out, "kept_rows": run.kept_rows, "seconds": round(seconds, 3)}
        show_json({**facts, "manifest": manifest})
        return
    if not manifest.rows and manifest.tenant is not None:
        say(f"there is nothing of a tenant {manifest.tenant!r} in {manifest.collection!r}")
    if run.found_rows:
        say(f"of {run.found_rows:,} rows that were there {run.kept_rows:,} are kept: unchanged")
    rate = (manifest.rows - run.kept_rows) / max(seconds, 1e-3)
    names = " and ".join(manifest.files)
    say(
        f"{manifest.rows:,} rows of {manifest.documents:,} documents in {seconds:.1f} s "
        f"({rate:,.0f}/s): {names} in {out}"
    )
