"""The one-shot job `export` put together."""

import asyncio
from pathlib import Path
from typing import NamedTuple

from worker.adapters.export_folder import ExportFolder
from worker.adapters.export_parquet import check_parquet
from worker.adapters.pg_catalog import PostgresCatalog
from worker.adapters.pg_export import ExportSnapshot
from worker.app.jobs import opened
from worker.config import Settings
from worker.core.exports import Dtype, Manifest, RowFormat, Subject
from worker.core.model import Collection
from worker.core.progress import Watch
from worker.ops import export as exporting
from worker.ops import search as searching


class Request(NamedTuple):
    """What is to be exported, and how; `tenant` None: of all."""

    collection: str
    tenant: str | None
    dtype: Dtype
    metadata: RowFormat
    content: bool


class Exported(NamedTuple):
    """A finished export, and the run that finished it."""

    manifest: Manifest
    run: exporting.Done


def export(
    settings: Settings, request: Request, path: Path, watch: Watch, *, force: bool
) -> Exported:
    """
    Write an export, or go on with one that is unfinished.

    Raises:
        ConfigError: there is no such collection, or another export is there.
        StoreUnavailable, OSError: the connection is lost, or the disk is full; what was written
            down stays.
    """
    if request.metadata == "parquet":
        check_parquet()
    collection, subject = asyncio.run(subject_of(settings, request))
    with ExportFolder.open(path, subject, force=force) as folder:
        done = asyncio.run(_read(settings, collection, subject, folder, watch))
        # Outside of any loop, which would hold Ctrl-C up until it is over.
        return Exported(folder.finish(done.moment, watch), done)


async def subject_of(settings: Settings, request: Request) -> tuple[Collection, Subject]:
    """
    Return the collection that is asked for, and what an export of it is of.

    Raises:
        ConfigError: there is no such collection.
    """
    async with opened(settings.database) as database:
        collection = await searching.named(PostgresCatalog(database), request.collection)
        name = await database.name()
    subject = Subject(
        database=name,
        collection=collection.name,
        collection_id=collection.id,
        generation=collection.generation,
        model=collection.model,
        embedding_space=collection.embedding_space,
        dimensions=collection.dimensions,
        storage=collection.storage,
        metric=collection.metric,
        tenant=request.tenant,
        dtype=request.dtype,
        metadata=request.metadata,
        content=request.content,
    )
    return collection, subject


async def _read(
    settings: Settings,
    collection: Collection,
    subject: Subject,
    folder: ExportFolder,
    watch: Watch,
) -> exporting.Done:
    async with ExportSnapshot.open(settings.database, collection, subject) as snapshot:
        return await exporting.read(snapshot, folder, watch)
