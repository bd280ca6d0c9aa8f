"""The command `bulk-load`."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import validators

from worker.cli.indexes import tell
from worker.cli.output import say, show_json
from worker.cli.parameters import DEFAULTS, Json, WithSettings, option, switch
from worker.cli.progress import end_told
from worker.config import Settings, TelemetryOptions
from worker.errors import ConfigError, WorkerError
from worker.ops.bulk_load import Ended

if TYPE_CHECKING:  # it loads client libraries, which the help does without
    from worker.app.bulk_load_job import Loaded

_WORTH_IT_RECORDS = 50_000

Collections = Annotated[
    tuple[str, ...],
    option(
        "Whose index is done without; may be given several times [default: all]. All that is "
        "in the topics is loaded.",
        negative="",
        show_default=False,
    ),
]
Auto = Annotated[
    bool, switch("--auto", "Only a first load that is worth it; else say why not, and exit 0.")
]
Threshold = Annotated[
    int | None,
    option(
        "Records that must wait for --auto to load: fewer are done within minutes anyway "
        f"[default: {_WORTH_IT_RECORDS:,}].",
        validator=validators.Number(gte=1),
    ),
]
Yes = Annotated[
    bool, switch("--yes", "Also where readers will miss an index until it is built anew.")
]

_UNFINISHED = (
    "the load has not ended, and what it dropped is not built again yet: call it again, and it "
    "goes on; or workers go on, and build indexes that are due when they have caught up"
)


def bulk_load(
    *,
    collection: Collections = (),
    auto: Auto = False,
    threshold: Threshold = None,
    yes: Yes = False,
    json: Json = False,
    settings: WithSettings = DEFAULTS,
) -> int:
    """Load without an index, and build it then."""
    from worker.app import bulk_load_job
    from worker.app.process import log_as, run_loop

    if threshold is not None and not auto:
        raise ConfigError("--threshold is for --auto: without it everything is loaded")
    log_as(_quiet(settings.telemetry))
    asked = bulk_load_job.Asked(
        names=collection, auto=auto, threshold=threshold or _WORTH_IT_RECORDS, yes=yes
    )
    with end_told((WorkerError, KeyboardInterrupt), _UNFINISHED) as watch:
        loaded = run_loop(bulk_load_job.run(settings, asked, watch))
        if loaded == bulk_load_job.Loaded():
            raise KeyboardInterrupt
    if json:
        show_json(_facts(loaded))
    return _sum_up(loaded, settings)


def _quiet(options: TelemetryOptions) -> TelemetryOptions:
    """Log what is wrong only, for people: the rest is told otherwise."""
    level = "warning" if options.log_level == "info" else options.log_level
    return replace(options, log_level=level, log_format="console")


def _facts(loaded: "Loaded") -> dict[str, Any]:
    ended = loaded.ended
    return {
        "done": ended is not None,
        "why_not": loaded.why_not,
        "would_miss": [{"collection": one.name, "rows": one.rows} for one in loaded.missed],
        "records": 0 if ended is None else ended.records,
        "halted": {part.name: why for part, why in ended.halted.items()} if ended else {},
        "indexes": [built._asdict() for built in loaded.built],
    }


def _sum_up(loaded: "Loaded", settings: Settings) -> int:
    if loaded.missed:
        names = ", ".join(f"{one.name} ({one.rows:,} chunks)" for one in loaded.missed)
        say(
            f"searches of {names} would compare all chunks until the load is done and the "
            "index is built anew; nothing was done: say --yes"
        )
        return 1
    if loaded.why_not is not None:
        say(f"nothing was done: {loaded.why_not}; workers do the rest")
    for built in loaded.built:
        tell(built)
    return 0 if loaded.ended is None else _tell_end(loaded.ended, settings)


def _tell_end(ended: Ended, settings: Settings) -> int:
    say(f"the group {settings.kafka.group} is done with {ended.records:,} records")
    for partition, why in ended.halted.items():
        say(f"{partition.name} is halted, {ended.left[partition]:,} records are left: {why}")
    return 1 if ended.halted else 0
