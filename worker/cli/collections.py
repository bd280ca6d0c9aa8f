"""The commands `collections create`, `list` and `show`."""

import asyncio
from dataclasses import asdict
from typing import Annotated, Literal

from worker.cli.index_flags import UNSAID, IndexFlags
from worker.cli.output import say, show, show_json, show_table
from worker.cli.parameters import DEFAULTS, Json, WithSettings, option
from worker.core.model import ChunkingOptions, Collection
from worker.core.vector_index import DEFAULT_INDEX

Name = Annotated[str, option("As the events name it; its view is NAME_chunks.")]
Model = Annotated[str, option("Embedding model, as the provider calls it.")]
Dimensions = Annotated[int, option("Length of the model's vectors.")]
Storage = Annotated[
    Literal["halfvec", "vector"], option("halfvec takes 2 bytes a dimension, vector 4.")
]
Metric = Annotated[
    Literal["cosine", "l2", "inner_product"], option("How near is measured, and indexed.")
]
Chunking = Annotated[
    Literal["text", "markdown", "code", "fixed", "none"], option("How texts are split.")
]
Size = Annotated[int, option("Characters of a chunk at most.")]
Overlap = Annotated[int, option("Characters that neighbours share.")]


def create(
    name: Name,
    /,
    *,
    model: Model,
    dimensions: Dimensions,
    storage: Storage = "halfvec",
    metric: Metric = "cosine",
    chunking: Chunking = "text",
    size: Size = 1200,
    overlap: Overlap = 0,
    index: IndexFlags = UNSAID,
    json: Json = False,
    settings: WithSettings = DEFAULTS,
) -> None:
    """Create a collection."""
    from worker.app import jobs

    wanted = Collection(
        id=0,
        name=name,
        model=model,
        dimensions=dimensions,
        storage=storage,
        metric=metric,
        chunking=ChunkingOptions(chunking, size, overlap),
        index=index.on(DEFAULT_INDEX),
    )
    created = asyncio.run(jobs.create_collection(settings, wanted))
    if json:
        show_json(asdict(created))
    else:
        say(f"the collection {created.name} is there; readers query its view {name}_chunks")


def list_all(*, json: Json = False, settings: WithSettings = DEFAULTS) -> None:
    """List the collections."""
    from worker.app import jobs

    found = asyncio.run(jobs.list_collections(settings))
    if json:
        show_json([asdict(one) for one in found])
        return
    head = (
        "name",
        "model",
        "dimensions",
        "storage",
        "metric",
        "chunking",
        "size",
        "generation",
    )
    show_table(head, map(_row, found), empty="there are no collections")


def show_one(name: Name, /, *, json: Json = False, settings: WithSettings = DEFAULTS) -> None:
    """Show one collection."""
    from worker.app import jobs

    found = asdict(asyncio.run(jobs.show_collection(settings, name)))
    if json:
        show_json(found)
        return
    for part in ("chunking", "index"):
        found |= {f"{part}.{key}": value for key, value in found.pop(part).items()}
    for key, value in found.items():
        show(f"{key}: {value}")


def _row(one: Collection) -> tuple[object, ...]:
    return (
        one.name,
        one.model,
        one.dimensions,
        one.storage,
        one.metric,
        one.chunking.strategy,
        one.chunking.size,
        one.generation,
    )
