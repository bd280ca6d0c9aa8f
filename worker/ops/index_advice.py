"""
What should be done about a collection's index, and why: facts in, advice out.

Pure. Every piece of advice says its reason, with the figures of this collection; what is only
guessed says so. The bounds have their reasons beside them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from worker.config import IndexBuildOptions
from worker.core.index_facts import ServerResources
from worker.core.model import Collection
from worker.core.vector_index import (
    FEW_ROWS,
    MIB,
    Place,
    Places,
    State,
    build_bytes,
    build_seconds,
    index_bytes,
    lists_for,
    memory_bytes,
    probes_for,
    scan_seconds,
)

_SMALL_SHARE = 0.01
"""For ten hits of such a tenant a scan of the index passes by a thousand rows of others."""
_LISTED_TENANTS = 5
_LONG = 1.5
"""So many of the larger unit are told in it."""
_CACHE_SHARE_FOR_A_BUILD = 0.5
"""More than half of what the server may cache is taken from all others."""


class Advice(NamedTuple):
    """What to do, why, and by which command; `is_wrong`: something is not as it should be."""

    what: str
    why: str
    do: str = ""
    is_wrong: bool = False


@dataclass(frozen=True, kw_only=True)
class Situation:
    """
    What is known of one collection and its server.

    `tenants` are shares of the chunks, the largest first, by a sample; `rows_per_second` is how
    fast the index was built last, None where it was not yet; `built_as` is what stands behind
    `create index on`.
    """

    collection: Collection
    state: State
    found: Places
    rows: int
    built_as: str
    rows_per_second: float | None
    tenants: list[tuple[str, float]]
    server: ServerResources
    options: IndexBuildOptions

    @property
    def need_bytes(self) -> int:
        """Return the memory that a build needs."""
        one = self.collection
        return build_bytes(one.index, self.rows, one.dimensions, one.storage)

    @property
    def fits(self) -> bool:
        """Tell whether a build may take what it needs."""
        return self.need_bytes <= self.options.max_memory_bytes

    @property
    def helpers(self) -> int:
        """Return how many processes help to build."""
        asked = self.options.parallel_workers
        set_up = self.server.maintenance_workers if asked is None else asked
        return min(set_up, self.server.parallel_workers)

    @property
    def scan(self) -> str:
        """Say how long a search takes that compares all rows."""
        seconds = scan_seconds(self.rows, self.collection.dimensions)
        return f"about {seconds:.2g} s for {self.rows:,} rows"


def advise_on(one: Situation) -> list[Advice]:
    """Return what is to be said of a collection, what is wrong first."""
    index = one.collection.index
    advice = [_on_state(one)]
    if index.kind != "none":
        advice += [*_on_build(one), *_on_parameters(one), *_on_readers(one)]
        advice += [*_on_size(one), *_on_tenants(one)]
    return advice


def _on_state(one: Situation) -> Advice:
    name = one.collection.name
    build = f"embedfleet index build {name}"
    if one.state in (State.MISSING, State.DUE):
        why = f"there is none, so a search without a filter compares everything: {one.scan}"
        what = f"build the {one.collection.index.kind} index"
        return Advice(what, why, build, is_wrong=True)
    if one.state is State.INVALID:
        why = "a build was ended: readers cannot use it, and every write pays for it"
        return Advice("repair the index, which is not valid", why, build, is_wrong=True)
    if one.state is State.DIFFERS:
        why = f"it is {_described(one.found)}"
        return Advice(f"build it as it should be, {_wanted(one)}", why, build)
    if one.state is State.UNWANTED:
        why = "the collection should have none, and every write pays for this one"
        return Advice("drop the index", why, f"embedfleet index drop {name} --yes")
    return _on_good_state(one)


def _on_good_state(one: Situation) -> Advice:
    name, index = one.collection.name, one.collection.index
    if one.state in (State.BUILDING, State.BUSY):
        return Advice("wait", "somebody works on it", f"embedfleet index status {name}")
    if one.state is State.EARLY:
        why = f"below {index.build_at_rows:,} rows comparing all of them is fast: {one.scan}"
        return Advice("build nothing yet", why)
    if one.state is State.VALID:
        return Advice("nothing", f"the index is as it should be: {_wanted(one)}")
    if one.rows < FEW_ROWS:
        return Advice("nothing", f"it needs no index: {one.scan}")
    why = f"every search compares all rows of its tenant, or of all: {one.scan}"
    do = f"embedfleet index set {name} --index hnsw && embedfleet index build {name}"
    return Advice("give it an index, unless searches must be exact", why, do)


def _on_build(one: Situation) -> Iterator[Advice]:
    index, need = one.collection.index, _mib(one.need_bytes)
    if one.rows_per_second is not None:
        seconds = one.rows / one.rows_per_second
        why = f"the last one went at {one.rows_per_second:,.0f} rows/s"
    else:
        processes = 1 + one.helpers
        dimensions = one.collection.dimensions
        seconds = build_seconds(one.rows, dimensions, index, processes=processes, fits=one.fits)
        why = (
            f"a guess for {processes} processes, by builds of 20,000 rows elsewhere: there was "
            "no build here yet, and it may be three times as much"
        )
    yield Advice(f"expect a build to take about {_duration(seconds)}", why)
    if one.fits:
        why = f"index.max_memory_bytes allows {_mib(one.options.max_memory_bytes)}"
        yield Advice(f"it takes {need} of memory", why)
        return
    why = (
        f"a build needs {need} for {one.rows:,} rows, and may take "
        f"{_mib(one.options.max_memory_bytes)}: what does not fit is 4 to 14 times slower"
    )
    if index.kind == "ivfflat":
        why = f"it needs {need} to learn its lists, and ends without them"
    yield Advice(_more_memory(one), why)


def _more_memory(one: Situation) -> str:
    enough = -(-memory_bytes(one.need_bytes) // MIB)
    more = f"set index.max_memory_bytes to {enough * MIB} ({enough:,} MiB)"
    if one.need_bytes <= _CACHE_SHARE_FOR_A_BUILD * one.server.cache_bytes:
        return more
    narrower = " store as halfvec," if one.collection.storage == "vector" else ""
    return (
        f"{more} on a server with more memory than this one's {_mib(one.server.cache_bytes)} "
        f"(effective_cache_size);{narrower} divide it into collections, or use ivfflat"
    )


def _on_parameters(one: Situation) -> Iterator[Advice]:
    index = one.collection.index
    measure = f"embedfleet index status {one.collection.name} --recall 100"
    if index.kind == "hnsw":
        why = (
            "pgvector's own are 16 and 64; more of either is better recall, for a longer build "
            "and slower writes: measure before you raise them"
        )
        yield Advice(f"m {index.m}, ef_construction {index.ef_construction}", why, measure)
        return
    lists = index.lists or lists_for(one.rows)
    why = f"pgvector's manual has {lists_for(one.rows):,} for {one.rows:,} rows; "
    why += "build it anew when the rows have doubled: lists are learned once"
    do = f"embedfleet index build {one.collection.name} --rebuild"
    yield Advice(f"{lists:,} lists", why, do)


def _on_readers(one: Situation) -> Iterator[Advice]:
    if one.collection.index.kind == "ivfflat":
        lists = one.collection.index.lists or lists_for(one.rows)
        why = "the square root of the lists, by pgvector's manual; 1, the default, finds little"
        do = f"set ivfflat.probes = {probes_for(lists)}"
        yield Advice("let readers look at more lists", why, do)
        scan, why = "set ivfflat.iterative_scan = relaxed_order", _FILTERS
        yield Advice("let their scans go on", why, scan)
        return
    why = "a query that asks for more than hnsw.ef_search (40) rows gets no more, and recall "
    why += "falls before that"
    do = "set hnsw.ef_search = 100"
    yield Advice("raise ef_search to twice the rows that readers ask for", why, do)
    yield Advice("let their scans go on", _FILTERS, "set hnsw.iterative_scan = strict_order")


_FILTERS = "the index knows no tenants: without it a query with a filter gets too few rows"


def _on_size(one: Situation) -> Iterator[Advice]:
    collection, server = one.collection, one.server
    size = index_bytes(one.rows, collection.dimensions, collection.storage)
    if size <= server.shared_buffers_bytes:
        return
    place = "shared_buffers" if size <= server.cache_bytes else "effective_cache_size"
    held = server.shared_buffers_bytes if size <= server.cache_bytes else server.cache_bytes
    why = f"the index takes about {_mib(size)}, {place} is {_mib(held)}"
    if size > server.cache_bytes:
        yield Advice("give the server more memory", f"{why}: searches will read from disk")
    else:
        yield Advice("raise shared_buffers where you can", why)


def _on_tenants(one: Situation) -> Iterator[Advice]:
    """Name tenants that are large by themselves, and small among all."""
    name = one.collection.name
    helped = [
        (tenant, share)
        for tenant, share in one.tenants
        if share <= _SMALL_SHARE and share * one.rows >= FEW_ROWS
    ]
    for tenant, share in helped[:_LISTED_TENANTS]:
        why = (
            f"it has {share:.2%} of the rows, about {share * one.rows:,.0f}: too many to "
            f"compare, and for ten hits the index of all passes by {10 / share:,.0f}; queries "
            "must name the tenant as a constant, or set plan_cache_mode = force_custom_plan"
        )
        yield Advice(f"build an index of tenant {tenant} alone", why, _partial(one, tenant))
    if (more := len(helped) - _LISTED_TENANTS) > 0:
        why = "each is an index more to write to: only where their searches are slow"
        yield Advice(f"{more} more tenants of {name} are like that", why)


def _partial(one: Situation, tenant: str) -> str:
    quoted = tenant.replace("'", "''")
    return f"create index concurrently on {one.built_as} where tenant = '{quoted}'"


def _wanted(one: Situation) -> str:
    index = one.collection.index
    if index.kind == "ivfflat":
        return f"ivfflat, {index.lists or 'as many as the rows need'} lists"
    return f"hnsw, m {index.m}, ef_construction {index.ef_construction}"


def _described(found: Places) -> str:
    main = found[Place.MAIN]
    if main.kind not in ("hnsw", "ivfflat"):
        return f"{main.kind}, which readers cannot use"
    what = f"ivfflat with {main.lists} lists"
    if main.kind == "hnsw":
        what = f"hnsw with m {main.m} and ef_construction {main.ef_construction}"
    return f"{what}; readers keep it until the other one is there"


def _mib(size: int) -> str:
    return f"{-(-size // MIB):,} MiB"


def _duration(seconds: float) -> str:
    hours, minutes = seconds / 3600, seconds / 60
    if hours > _LONG:
        return f"{hours:.1f} h"
    return f"{minutes:.1f} min" if minutes > _LONG else f"{max(1, round(seconds))} s"
