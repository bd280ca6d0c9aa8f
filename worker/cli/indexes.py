"""The commands `index status`, `set`, `build`, `drop` and `advise`."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import validators

from worker.cli.index_flags import UNSAID, IndexFlags
from worker.cli.output import say, show, show_json, show_table
from worker.cli.parameters import DEFAULTS, Json, WithSettings, Yes, option, switch
from worker.cli.progress import end_told
from worker.core.vector_index import WRONG, State, VectorIndex
from worker.errors import ConfigError
from worker.ops.index_build import Built

if TYPE_CHECKING:  # it loads client libraries, which the help does without
    from worker.app.index_job import IndexRow
    from worker.core.index_facts import IndexFacts

Names = Annotated[
    tuple[str, ...], option("Collections [default: all].", negative="", show_default=False)
]
Chosen = Annotated[tuple[str, ...], option("Collections.", negative="", show_default=False)]
Name = Annotated[str, option("The collection.")]
Queries = Annotated[
    int | None,
    option(
        "Measure with so many stored vectors how much of the nearest readers are given.",
        name="--recall",
        validator=validators.Number(gte=1, lte=10_000),
    ),
]
Nearest = Annotated[
    int, option("How many nearest are asked for.", validator=validators.Number(gte=1, lte=1000))
]
Due = Annotated[bool, switch("--due", "All that are due or not valid; for cron.")]
Rebuild = Annotated[bool, switch("--rebuild", "Also what is as it should be, in its place.")]

_NAMELESS = "name the collections"
_INTERRUPTED = "interrupted: what was begun is not valid; call it again, and it begins anew"
_DROP_INTERRUPTED = (
    "interrupted: there should be no index any more, and there may be one still, or what is "
    "left of it; call it again, and it goes on"
)


def status(
    names: Names = (),
    /,
    *,
    recall: Queries = None,
    k: Nearest = 10,
    json: Json = False,
    settings: WithSettings = DEFAULTS,
) -> int:
    """Show how the indexes are."""
    from worker.app import index_job

    rows = asyncio.run(index_job.status(settings, names, queries=recall, k=k))
    if json:
        show_json([_facts(row) for row in rows])
    else:
        _show(rows)
    return 1 if any(row.facts.state in WRONG for row in rows) else 0


def set_index(
    name: Name,
    /,
    *,
    index: IndexFlags = UNSAID,
    json: Json = False,
    settings: WithSettings = DEFAULTS,
) -> None:
    """Say what index a collection should have; nothing is built or dropped."""
    from worker.app import index_job

    if index == UNSAID:
        raise ConfigError("say what to change: --index, --m, --build-at-rows ...")
    wanted, state = asyncio.run(index_job.set_index(settings, name, index.on))
    if json:
        show_json({"collection": name, "index": wanted.index, "state": state})
        return
    say(f"{name} should have: {_parameters(wanted.index)}; its index now: {state}")
    if wanted.index.kind == "none" and index.index is None:
        say(f"kept for later: `embedfleet index set {name} --index hnsw` gives it an index")
    if state is State.DIFFERS:
        say(f"`embedfleet index build {name}` builds it; readers keep what they have till then")


def build(
    names: Chosen = (),
    /,
    *,
    due: Due = False,
    rebuild: Rebuild = False,
    json: Json = False,
    settings: WithSettings = DEFAULTS,
) -> None:
    """Build indexes, or bring them to what they should be."""
    from worker.app import index_job

    if bool(names) == due:
        raise ConfigError(f"{_NAMELESS} whose index is to be built, or say --due; not both")
    if due and rebuild:
        raise ConfigError("--rebuild is for collections that are named")
    done: list[Built] = []
    try:
        with end_told((KeyboardInterrupt,), _INTERRUPTED) as watch:
            asyncio.run(
                index_job.build(
                    settings, names, rebuild=rebuild, watch=watch, ended=done.append
                )
            )
    finally:
        for built in done:
            tell(built)
    if json:
        show_json([built._asdict() for built in done])
    elif not done:
        say("no index is due")


def drop(
    names: Chosen = (),
    /,
    *,
    yes: Yes = False,
    json: Json = False,
    settings: WithSettings = DEFAULTS,
) -> int:
    """Drop indexes for good."""
    from worker.app import index_job

    if not names:
        raise ConfigError(f"{_NAMELESS} whose index is to be dropped")
    found: list[IndexFacts] = []
    try:
        with end_told((KeyboardInterrupt,), _DROP_INTERRUPTED) as watch:
            asyncio.run(
                index_job.drop(settings, names, really=yes, watch=watch, ended=found.append)
            )
    finally:
        for one in found:
            _tell_dropped(one, really=yes)
    if json:
        show_json(
            [
                {"collection": one.collection.name, "bytes": one.index_bytes, "done": yes}
                for one in found
            ]
        )
    return 0 if yes else 1


def _tell_dropped(facts: "IndexFacts", *, really: bool) -> None:
    name = facts.collection.name
    if not facts.found:
        built = "is built" if really else "would be built"
        end = "" if really else ": say --yes"
        say(f"{name} has no index, and none {built} before `embedfleet index set` says so{end}")
        return
    what = f"the index of {name} ({_size(facts.index_bytes)})"
    if really:
        say(f"{what} is gone, and none is built again before `embedfleet index set` says so")
    else:
        say(f"{what} would be dropped, and searches compare all rows: say --yes")


def advise(
    names: Names = (), /, *, json: Json = False, settings: WithSettings = DEFAULTS
) -> int:
    """Say what to do about the indexes, and why."""
    from worker.app import index_job

    found = asyncio.run(index_job.advise(settings, names))
    if json:
        show_json({name: [one._asdict() for one in advice] for name, advice in found.items()})
    else:
        for name, advice in found.items():
            show(f"{name}:")
            for one in advice:
                show(f"  {'! ' if one.is_wrong else ''}{one.what}: {one.why}")
                if one.do:
                    show(f"      {one.do}")
    if not found:
        say("there are no collections")
    return 1 if any(one.is_wrong for advice in found.values() for one in advice) else 0


def _show(rows: list["IndexRow"]) -> None:
    head = ("collection", "rows", "table", "index", "should_be", "state", "serves", "recall")
    lines = [
        (
            row.facts.collection.name,
            f"{'' if row.facts.is_exact else '~'}{row.facts.rows}",
            _size(row.facts.table_bytes),
            _size(row.facts.index_bytes),
            _parameters(row.facts.collection.index),
            _state(row),
            None if row.serves is None else ("yes" if row.serves else "no"),
            None if row.recall is None else f"{row.recall.share:.3f}",
        )
        for row in rows
    ]
    show_table(head, lines, empty="there are no collections")
    for row in rows:
        if row.facts.state in WRONG:
            name = row.facts.collection.name
            say(f"the index of {name} is {row.facts.state}: `embedfleet index build {name}`")
        elif row.facts.holder is not None:
            say(f"{row.facts.collection.name} is being worked on by {row.facts.holder.name}")


def _state(row: "IndexRow") -> str:
    progress = row.facts.progress
    if row.facts.state is not State.BUILDING or progress is None:
        return row.facts.state
    share = "" if progress.share is None else f" {progress.share:.0%}"
    return f"{row.facts.state}{share} ({progress.phase})"


def _facts(row: "IndexRow") -> dict[str, Any]:
    facts = row.facts
    return {
        "collection": facts.collection.name,
        "should_be": facts.collection.index,
        "state": row.facts.state,
        "found": [
            {"place": place or "main", **one._asdict()} for place, one in facts.found.items()
        ],
        "rows": facts.rows,
        "rows_are_exact": facts.is_exact,
        "table_bytes": facts.table_bytes,
        "index_bytes": facts.index_bytes,
        "progress": facts.progress and facts.progress._asdict(),
        "worked_on_by": facts.holder and facts.holder._asdict(),
        "rows_per_second": facts.rows_per_second,
        "serves_readers": row.serves,
        "recall": row.recall and row.recall._asdict(),
    }


def tell(built: Built) -> None:
    """Say what was done about an index."""
    for notice in built.notices:
        say(f"{built.collection}: PostgreSQL says: {notice}")
    if not built.did:
        say(f"{built.collection}: its index is as it should be, nothing was done")
        return
    rate = ""
    if built.rows is not None and built.seconds is not None:
        per_second = built.rows / max(built.seconds, 1e-3)
        rate = f": {built.rows} rows in {built.seconds:.1f} s ({per_second:,.0f}/s)"
    say(f"{built.collection}: {', '.join(built.did)}{rate}")


def _parameters(index: VectorIndex) -> str:
    match index.kind:
        case "hnsw":
            words = f"hnsw m={index.m} ef_construction={index.ef_construction}"
        case "ivfflat":
            words = f"ivfflat lists={index.lists or 'by rows'}"
        case _:
            return "none"
    return f"{words} from {index.build_at_rows} rows" if index.build_at_rows else words


def _size(size: int) -> str:
    from rich.filesize import decimal

    return decimal(size) if size else "-"
