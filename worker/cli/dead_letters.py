"""The commands `dlq list`, `show`, `stats`, `replay` and `discard`."""

import asyncio
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, validators

from schemas.dead_letter import Reason
from worker.cli.dead_letter_output import (
    Report,
    counted,
    details,
    explained,
    progress,
    second,
    show_letters,
)
from worker.cli.output import say, show, show_json, show_table
from worker.cli.parameters import (
    DEFAULTS,
    MAX_OFFSET,
    MAX_PARTITION,
    Json,
    WithSettings,
    Yes,
    is_number,
    option,
    switch,
    within,
)
from worker.config import Settings
from worker.core.letters import OPEN, Selection, State
from worker.core.model import Position
from worker.errors import ConfigError, WorkerError

DISCARDABLE = (State.PUBLISHED, State.PARKED, State.REPLAYED)

Place = Annotated[str, option("TOPIC/PARTITION/OFFSET of the record, as `list` names it.")]
Places = Annotated[
    tuple[str, ...],
    option(
        "TOPIC/PARTITION/OFFSET of records, in whatever state.",
        negative="",
        show_default=False,
    ),
]
Each = Annotated[bool, switch("--each", "Each letter by itself, not in groups.")]
Limit = Annotated[int, option("Of letters, with --each.", validator=validators.Number(gte=1))]
Value = Annotated[bool, switch("--value", "Show the value too: it is the document's text.")]
By = Annotated[
    tuple[Literal["reason", "tenant", "day"], ...],
    option(
        "What is counted apart; may be given several times [default: reason].",
        negative="",
        show_default=False,
    ),
]
Rate = Annotated[float, option("Letters a second at most.", validator=validators.Number(gt=0))]
MaxReplays = Annotated[
    int,
    option("A letter replayed so often is parked instead.", validator=validators.Number(gte=1)),
]
DryRun = Annotated[bool, switch("--dry-run", "Only say what it would do.")]
Force = Annotated[
    bool,
    switch(
        "--force", "Also what was replayed too often, killed workers, or has a version to come."
    ),
]
Sure = Annotated[
    bool,
    switch("--yes", "Do it; without, only one letter is sent that is named by its position."),
]
ValueFile = Annotated[
    Path | None,
    option(
        "Send this event instead, under its own key: a JSON file, or - for stdin. One letter.",
        allow_leading_hyphen=True,
    ),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which letters; without any, all that nobody has dealt with."""

    reason: Annotated[
        tuple[str, ...],
        option("Code; may be given several times.", negative="", show_default=False),
    ] = ()
    fingerprint: Annotated[str | None, option("Of one group of `dlq list`.")] = None
    tenant: Annotated[str | None, option("Whose documents.")] = None
    collection: Annotated[str | None, option("Name of the collection.")] = None
    document: Annotated[str | None, option("Id of the document.")] = None
    key: Annotated[str | None, option("Key of the record, as Kafka has it.")] = None
    since: Annotated[
        datetime | None, option("First seen at or after; UTC where no zone is named.")
    ] = None
    until: Annotated[datetime | None, option("First seen before.")] = None
    state: Annotated[
        tuple[
            Literal["pending", "published", "parked", "replayed", "discarded", "resolved"], ...
        ],
        option(
            "May be given several times [default: published and parked; of `stats`, all].",
            negative="",
            show_default=False,
        ),
    ] = ()

    @property
    def narrow(self) -> bool:
        """Whether anything at all is asked for."""
        return self != Filters()


NO_FILTERS = Filters()


def list_all(
    *,
    each: Each = False,
    limit: Limit = 100,
    filters: Filters = NO_FILTERS,
    json: Json = False,
    settings: WithSettings = DEFAULTS,
) -> None:
    """List dead letters."""
    from worker.app import dead_letter_job

    chosen = _selection(settings, filters)
    if each:
        found, left = asyncio.run(dead_letter_job.letters(settings, chosen, limit))
        show_letters(found, json=json)
        if left:
            say(f"{left} more: --limit")
        return
    groups = asyncio.run(dead_letter_job.groups(settings, chosen))
    if json:
        show_json([one._asdict() for one in groups])
        return
    head = ("letters", "reason", "fingerprint", "tenants", "last_seen", "sample", "detail")
    rows = [
        (
            *(one.letters, one.reason, one.fingerprint, one.tenants, second(one.last_seen)),
            *(one.sample, one.detail),
        )
        for one in groups
    ]
    show_table(head, rows, empty="there are no such dead letters")


def show_one(
    place: Place,
    /,
    *,
    value: Value = False,
    json: Json = False,
    settings: WithSettings = DEFAULTS,
) -> None:
    """Explain one dead letter."""
    from worker.app import dead_letter_job

    shown = asyncio.run(dead_letter_job.show(settings, parsed(place)))
    if shown.problem is not None:
        say(shown.problem)
    if json:
        show_json(details(shown, value=value))
        return
    for line in explained(shown, value=value):
        show(line)


def stats(
    *,
    by: By = ("reason",),
    filters: Filters = NO_FILTERS,
    json: Json = False,
    settings: WithSettings = DEFAULTS,
) -> None:
    """Count dead letters, in whatever state."""
    from worker.app import dead_letter_job

    columns = tuple(dict.fromkeys(by))
    chosen = _selection(settings, filters, states=())
    found = asyncio.run(dead_letter_job.stats(settings, chosen, columns))
    if json:
        show_json([{**one.of, "letters": one.letters, "states": one.states} for one in found])
        return
    rows = [(*one.of.values(), one.letters, *one.states.values()) for one in found]
    show_table((*columns, "letters", *State), rows, empty="there are no such dead letters")


def replay(
    places: Places = (),
    /,
    *,
    value_file: ValueFile = None,
    rate: Rate = 100,
    max_replays: MaxReplays = 3,
    force: Force = False,
    dry_run: DryRun = False,
    filters: Filters = NO_FILTERS,
    yes: Sure = False,
    json: Json = False,
    settings: WithSettings = DEFAULTS,
) -> int:
    """Send dead letters through the workers again."""
    from worker.app import dead_letter_job

    asked = dead_letter_job.Asked(
        rate_per_second=rate,
        max_replays=max_replays,
        dry_run=dry_run,
        yes=yes,
        force=force,
        repaired=_repaired(places, value_file),
    )
    chosen = _chosen(settings, places, filters)
    report = Report()
    try:
        with progress(report):
            asyncio.run(
                dead_letter_job.replay(
                    settings, chosen, asked, on_begin=report.begin, on_ended=report.add
                )
            )
    except WorkerError as error:
        if not report.fates:
            raise
        raise type(error)(f"{error}; before that: {report.sentence}") from error
    except KeyboardInterrupt:
        say(f"interrupted; before that: {report.sentence}")
        raise
    return report.sum_up(json=json, dry_run=dry_run)


def discard(
    places: Places = (),
    /,
    *,
    filters: Filters = NO_FILTERS,
    yes: Yes = False,
    json: Json = False,
    settings: WithSettings = DEFAULTS,
) -> int:
    """Give dead letters up."""
    from worker.app import dead_letter_job

    if not places and not filters.narrow:
        raise ConfigError("name the letters to discard, or a filter: --reason, --tenant ...")
    chosen = _chosen(settings, places, filters, states=DISCARDABLE)
    if not set(chosen.states) <= set(DISCARDABLE):
        raise ConfigError(f"only letters that are {', '.join(DISCARDABLE)} can be discarded")
    count = asyncio.run(dead_letter_job.discard(settings, chosen, really=yes))
    if json:
        show_json({"letters": count, "done": yes})
    if not count:
        say(f"nothing to give up: no such letter is {' or '.join(chosen.states)}")
        return 1
    if not yes:
        say(f"{counted(count)} would be given up and never stored: say --yes")
        return 1
    say(f"given up: {counted(count)}, never stored")
    return 0


def parsed(name: str) -> Position:
    """Return the position that TOPIC/PARTITION/OFFSET names."""
    rest, _, offset = name.rpartition("/")
    topic, _, number = rest.rpartition("/")
    if not (topic and is_number(number) and is_number(offset)):
        raise ConfigError(f"{name!r} is no TOPIC/PARTITION/OFFSET, as in documents/3/5120")
    return Position(topic, within(number, MAX_PARTITION), within(offset, MAX_OFFSET))


def _selection(
    settings: Settings, filters: Filters, *, states: tuple[State, ...] = OPEN
) -> Selection:
    """Return what the filters mean; `states` where they name none."""
    unknown = [code for code in filters.reason if code not in set(Reason)]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no reason: there are {', '.join(Reason)}")
    return Selection(
        group=settings.kafka.group,
        states=tuple(State(state) for state in filters.state) or states,
        reasons=filters.reason,
        fingerprint=filters.fingerprint,
        tenant=filters.tenant,
        collection=filters.collection,
        document=filters.document,
        key=None if filters.key is None else filters.key.encode(),
        since=_in_utc(filters.since),
        until=_in_utc(filters.until),
    )


def _chosen(
    settings: Settings,
    places: tuple[str, ...],
    filters: Filters,
    *,
    states: tuple[State, ...] = (),
) -> Selection:
    """Return the letters at these places, of these states, or else what the filters mean."""
    if not places:
        return _selection(settings, filters)
    if filters.narrow:
        raise ConfigError("name letters, or filters, not both")
    positions = tuple(map(parsed, places))
    return Selection(group=settings.kafka.group, positions=positions, states=states)


def _in_utc(moment: datetime | None) -> datetime | None:
    if moment is None or moment.tzinfo is not None:
        return moment
    return moment.replace(tzinfo=UTC)


def _repaired(places: tuple[str, ...], file: Path | None) -> bytes | None:
    if file is None:
        return None
    if len(places) != 1:
        raise ConfigError("--value-file repairs one letter: name it by TOPIC/PARTITION/OFFSET")
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
