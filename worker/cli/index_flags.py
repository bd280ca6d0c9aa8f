"""The flags that say which index a collection should have."""

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from worker.cli.parameters import option
from worker.core.vector_index import DEFAULT_INDEX as _NEW
from worker.core.vector_index import VectorIndex


def _flag(help_: str) -> Parameter:
    return option(help_, show_default=False)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class IndexFlags:
    """What is said of the index; None: it stays as it is."""

    index: Annotated[
        Literal["hnsw", "ivfflat", "none"] | None,
        _flag(
            f"Kind of the index [a new collection's: {_NEW.kind}]; with none, searches "
            "compare all rows."
        ),
    ] = None
    m: Annotated[
        int | None, _flag(f"HNSW: neighbours of a row [a new collection's: {_NEW.m}].")
    ] = None
    ef_construction: Annotated[
        int | None,
        _flag(
            "HNSW: candidates that are looked at for them [a new collection's: "
            f"{_NEW.ef_construction}]."
        ),
    ] = None
    lists: Annotated[
        int | None, _flag("IVFFlat: lists [a new collection's: by the rows when it is built].")
    ] = None
    build_at_rows: Annotated[
        int | None,
        _flag(
            "From how many chunks on there is one [a new collection's: "
            f"{_NEW.build_at_rows}]; below, searches compare them all. 0: always."
        ),
    ] = None

    def on(self, known: VectorIndex) -> VectorIndex:
        """Return an index with what is said."""
        said: dict[str, Any] = {
            name: value for name, value in asdict(self).items() if value is not None
        }
        if "index" in said:
            said["kind"] = said.pop("index")
        return replace(known, **said)


UNSAID = IndexFlags()
