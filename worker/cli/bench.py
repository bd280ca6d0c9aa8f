"""The command `bench`."""

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import validators

from worker.cli.masking import mask_url
from worker.cli.output import say, show, show_json, show_table
from worker.cli.parameters import DEFAULTS, Json, WithSettings, option, switch
from worker.cli.progress import watched
from worker.config import Settings
from worker.core.packing import estimate_tokens
from worker.errors import ConfigError

if TYPE_CHECKING:  # it loads client libraries, which the help does without
    from worker.app.bench_job import Asked
    from worker.ops.bench import Measurement

_LATENCY_SECONDS = 0.05
_SHARES = (0.5, 0.99)

Documents = Annotated[
    int, option("New documents of the first workload.", validator=validators.Number(gte=100))
]
Characters = Annotated[
    int, option("Length of a document.", validator=validators.Number(gte=100, lte=500_000))
]
Size = Annotated[
    int,
    option("Characters of a chunk at most.", validator=validators.Number(gte=1, lte=100_000)),
]
Workers = Annotated[
    int,
    option(
        "Workers, each a process on this machine.", validator=validators.Number(gte=1, lte=64)
    ),
]
Partitions = Annotated[
    int, option("Partitions of the topic.", validator=validators.Number(gte=1, lte=1000))
]
Replication = Annotated[
    int | None,
    option("Its replicas [default: the broker's].", validator=validators.Number(gte=1)),
]
Dimensions = Annotated[
    int, option("Length of the vectors.", validator=validators.Number(gte=1, lte=4000))
]
Index = Annotated[bool, switch("--index", "With an HNSW index from the beginning.")]
Model = Annotated[
    str | None,
    option(
        "Let the provider of the settings embed with this model, which it may bill "
        "[default: a scripted provider on this machine, which is free]."
    ),
]
Latency = Annotated[
    float | None,
    option(
        "Seconds that the scripted provider takes for a request [default: "
        f"{_LATENCY_SECONDS}].",
        validator=validators.Number(gte=0, lte=60),
    ),
]
Quota = Annotated[
    int | None,
    option(
        "Requests a minute that the scripted provider takes [default: any number].",
        validator=validators.Number(gte=1),
    ),
]
Yes = Annotated[bool, switch("--yes", "With --model: send the texts, whatever that costs.")]


def bench(
    *,
    documents: Documents = 10_000,
    characters: Characters = 4_000,
    size: Size = 1_200,
    workers: Workers = 1,
    partitions: Partitions = 8,
    replication: Replication = None,
    dimensions: Dimensions = 1536,
    index: Index = False,
    model: Model = None,
    latency: Latency = None,
    requests_per_minute: Quota = None,
    yes: Yes = False,
    json: Json = False,
    settings: WithSettings = DEFAULTS,
) -> int:
    """Measure workers on this Kafka and this PostgreSQL."""
    from worker.app import bench_job
    from worker.app.process import run_loop
    from worker.ops.bench import WORKLOADS

    if workers > partitions:
        raise ConfigError(f"{workers} workers need as many partitions: say --partitions")
    if model is not None and requests_per_minute is not None:
        raise ConfigError(
            "--requests-per-minute is what the scripted provider takes; with --model say "
            "--embedding.requests-per-minute, for each worker"
        )
    if model is not None and latency is not None:
        raise ConfigError("--latency is the scripted provider's; leave it away with --model")
    asked = bench_job.Asked(
        documents=documents,
        characters=characters,
        chunk_characters=size,
        workers=workers,
        partitions=partitions,
        replication=replication,
        dimensions=dimensions,
        has_index=index,
        model=model,
        latency_seconds=_LATENCY_SECONDS if latency is None else latency,
        requests_per_minute=requests_per_minute,
    )
    if model is not None and not yes:
        # The texts, made of ASCII letters, are embedded in two of the three workloads.
        tokens = 2 * documents * estimate_tokens("a" * characters)
        say(
            f"nothing was done: say --yes, to send up to about {tokens:,} tokens to "
            f"{settings.embedding.url}"
        )
        return 1
    found: list[Measurement] = []
    try:
        with watched() as watch:
            job = bench_job.run(settings, asked, partial(watch, "bench"), found.append)
            left = run_loop(job)
    except BaseException:
        if found:
            say(f"ended after {len(found)} of {WORKLOADS} workloads:")
            with suppress(OSError):  # what has ended it is told
                _tell(found, asked, settings, json=json)
        raise
    _tell(found, asked, settings, json=json)
    if left is not None:
        say(f"left behind: {left}")
        return 1
    return 0


def _tell(
    found: list["Measurement"], asked: "Asked", settings: Settings, *, json: bool
) -> None:
    if json:
        show_json([_facts(one) for one in found])
    else:
        _show(found, asked, settings)


def _show(found: list["Measurement"], asked: "Asked", settings: Settings) -> None:
    from worker.ops.bench import WORKLOADS

    who = "one worker" if asked.workers == 1 else f"{asked.workers} workers"
    provider = (
        f"a scripted provider of {asked.latency_seconds:g} s"
        if asked.model is None
        else f"{asked.model} of {mask_url(settings.embedding.url)}"
    )
    show(
        f"{who}, {asked.partitions} partitions, documents of {asked.characters:,} characters, "
        f"{asked.dimensions:,} dimensions, {provider}\n"
    )
    head = ("workload", "documents/s", "cpu us each", "chunks embedded", "requests for 1,000")
    show_table(head, map(_row, found), empty="")
    show("")
    if len(found) == WORKLOADS:
        show(f"searchable after: {', '.join(map(_late, _lateness(found[-1]).items()))}")
    peak = max(one.peak_bytes for one in found)
    show(f"memory of a worker: {peak / 2**20:.0f} MiB at most")
    if refused := sum(one.used.refused for one in found):
        show(f"429s: {refused / sum(one.used.requests for one in found):.1%} of requests")


def _row(one: "Measurement") -> tuple[object, ...]:
    packed = one.requests_for_1000_chunks
    return (
        one.workload,
        f"{one.rate:,.0f}",
        f"{one.cpu_us:,.0f}",
        f"{one.used.embedded:,}",
        None if packed is None else f"{packed:.1f}",
    )


def _lateness(one: "Measurement") -> dict[float, float | None]:
    from worker.ops.bench import within_seconds

    return {share: within_seconds(one.late, share) for share in _SHARES}


def _late(share_and_bound: tuple[float, float | None]) -> str:
    share, bound = share_and_bound
    return f"{share:.0%} within {'a day or more' if bound is None else f'{bound:g} s'}"


def _facts(one: "Measurement") -> dict[str, Any]:
    return {
        "workload": one.workload,
        "documents": one.used.settled,
        "seconds": one.seconds,
        "documents_per_second": one.rate,
        "cpu_us": one.cpu_us,
        "chunks_embedded": one.used.embedded,
        "requests": one.used.requests,
        "refused": one.used.refused,
        "peak_bytes": one.peak_bytes,
        "within_seconds": {str(share): bound for share, bound in _lateness(one).items()},
    }
