"""
What there is of a collection's vector index, and what its server has to build one.

Values as they were found; `vector_index` judges them. Pure.
"""

from datetime import datetime
from typing import NamedTuple

from worker.core.model import Collection
from worker.core.vector_index import Places, State, judge


class BuildProgress(NamedTuple):
    """
    How far a build is: PostgreSQL's phase, and how much of that is done, None: it is not told.

    A phase that waits for a transaction of somebody names the process; a drop has no other.
    """

    phase: str
    share: float | None


class Holder(NamedTuple):
    """Who works on a collection's index; nulls: somebody of another role."""

    pid: int
    application: str | None
    since: datetime | None

    @property
    def name(self) -> str:
        """Say who it is."""
        since = f" since {self.since:%Y-%m-%d %H:%M:%S %Z}" if self.since else ""
        return f"{self.application or 'somebody'} (PostgreSQL's process {self.pid}{since})"


class IndexFacts(NamedTuple):
    """
    What there is of one collection: rows are chunks.

    `rows_per_second` is how fast the index was built last, None where that is not known.
    """

    collection: Collection
    rows: int
    is_exact: bool
    table_bytes: int
    index_bytes: int
    found: Places
    progress: BuildProgress | None
    holder: Holder | None
    rows_per_second: float | None

    @property
    def state(self) -> State:
        """Say how the index is."""
        return judge(
            self.collection.index,
            self.found,
            self.rows,
            is_building=self.progress is not None,
            is_busy=self.holder is not None,
        )


class ServerResources(NamedTuple):
    """What the server says of its memory, and of the processes that may help to build."""

    shared_buffers_bytes: int
    cache_bytes: int
    maintenance_workers: int
    parallel_workers: int
