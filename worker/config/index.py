"""The settings of index builds: who begins them, and what they may take of the server."""

from dataclasses import dataclass
from typing import Annotated

from worker.config.about import about


@dataclass(frozen=True, kw_only=True)
class IndexBuildOptions:
    """How vector indexes are built; which one a collection has is said by the collection."""

    build_due: Annotated[
        bool,
        about(
            "A worker that has caught up builds indexes that are due; else an operator does."
        ),
    ] = True
    check_seconds: Annotated[
        float, about("How often a worker looks for indexes that are due.", gt=0)
    ] = 60
    max_memory_bytes: Annotated[
        int,
        about(
            "Memory of the server that one build may take; a graph that does not fit is "
            "finished on disk, 4 to 14 times slower.",
            ge=64 * 1024 * 1024,
        ),
    ] = 1024 * 1024 * 1024
    parallel_workers: Annotated[
        int | None,
        about(
            "Processes of the server that help to build; none: as many as it is set up for.",
            ge=0,
            le=1024,
        ),
    ] = None
