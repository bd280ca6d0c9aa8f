"""
Which commands there are, in which group, and the example that stands below each one's help.

Commands are named, not imported: a module is loaded when its command is called, and loads the
client libraries only inside of it. So the help of all comes without them.
"""

from typing import NamedTuple

from cyclopts import App, Group

WORK = Group("Work", sort_key=0)
SET_UP = Group("Set up", sort_key=1)
LOOK = Group("Look", sort_key=2)
OPERATE = Group("Operate", sort_key=3)

SETTINGS_HELP = (
    "Every setting is a flag too (--kafka.group), a variable (EMBEDFLEET_KAFKA_GROUP) and a "
    "key of the TOML file ([kafka] group): see `embedfleet config --explain`."
)


class Command(NamedTuple):
    """One command: its words, where it is, its line in the help, its examples."""

    name: str
    path: str
    help: str
    examples: tuple[str, ...]
    group: Group | str = "Commands"
    has_settings: bool = True


class Family(NamedTuple):
    """Commands under one word."""

    name: str
    help: str
    group: Group
    commands: tuple[Command, ...]


COMMANDS: tuple[Command | Family, ...] = (
    Command(
        "demo",
        "worker.cli.demo:demo",
        "See it work: Kafka, PostgreSQL, a model and three workers, started here and ended.",
        ("embedfleet demo", "embedfleet demo --keep-running"),
        WORK,
        has_settings=False,
    ),
    Command(
        "run",
        "worker.cli.run_worker:run",
        "Run a worker until a signal: documents from Kafka become vectors in PostgreSQL.",
        ("embedfleet run", "embedfleet run --config fleet.toml --kafka.group docs"),
        WORK,
    ),
    Command(
        "bulk-load",
        "worker.cli.bulk_load:bulk_load",
        "Be a worker that loads what is in the topics now without vector indexes, and builds "
        "them then: several times faster for a first load.",
        (
            "embedfleet bulk-load --yes",
            "embedfleet bulk-load --auto --threshold 100000",
        ),
        WORK,
    ),
    Command(
        "publish",
        "worker.cli.publish:publish",
        "Publish documents to Kafka: events as JSON lines, or a folder of text files.",
        (
            "embedfleet publish events.jsonl",
            "psql -XAt -c 'select event from outbox' | embedfleet publish -",
            "embedfleet publish docs/ --collection docs --tenant acme",
        ),
        WORK,
    ),
    Command(
        "search",
        "worker.cli.search:search",
        "Search a collection for the chunks nearest to some words.",
        ('embedfleet search "rotate a key" --collection docs --tenant acme --k 3',),
        WORK,
    ),
    Command(
        "export",
        "worker.cli.export:export",
        "Export a collection for numpy and index jobs: vectors as .npy, rows, a manifest.",
        (
            "embedfleet export --collection docs --out docs-export",
            "embedfleet export --collection docs --out acme --tenant acme --dtype float16",
        ),
        WORK,
    ),
    Family(
        "migrate",
        "The tables in PostgreSQL.",
        SET_UP,
        (
            Command(
                "up",
                "worker.cli.migrate:up",
                "Create or update the schema, its tables and the vector extension.",
                ("embedfleet migrate up --database.url postgresql://me@localhost/docs",),
            ),
            Command(
                "status",
                "worker.cli.migrate:status",
                "Show which migrations have been applied; exit 1 where one is missing.",
                ("embedfleet migrate status --json",),
            ),
        ),
    ),
    Family(
        "topics",
        "The topics in Kafka.",
        SET_UP,
        (
            Command(
                "create",
                "worker.cli.topics:create",
                "Create the document topics and the dead-letter topic, as far as missing.",
                (
                    "embedfleet topics create --partitions 12 --replication 3",
                    "embedfleet topics create --cleanup delete --retention-hours 168",
                ),
            ),
            Command(
                "recreated",
                "worker.cli.topics:recreated",
                "Say that a topic was deleted and created again: its progress is forgotten.",
                ("embedfleet topics recreated documents --yes",),
            ),
        ),
    ),
    Family(
        "collections",
        "Collections: a model, a way of chunking, a table, a view.",
        SET_UP,
        (
            Command(
                "create",
                "worker.cli.collections:create",
                "Create a collection; again with the same settings changes nothing.",
                ("embedfleet collections create docs --model bge-m3 --dimensions 1024",),
            ),
            Command(
                "list",
                "worker.cli.collections:list_all",
                "List the collections.",
                ("embedfleet collections list",),
            ),
            Command(
                "show",
                "worker.cli.collections:show_one",
                "Show one collection.",
                ("embedfleet collections show docs --json",),
            ),
        ),
    ),
    Command(
        "doctor",
        "worker.cli.doctor:doctor",
        "Check broker, topics, database, collections and provider; exit 1 where one fails.",
        ("embedfleet doctor", "embedfleet doctor --json"),
        LOOK,
    ),
    Command(
        "bench",
        "worker.cli.bench:bench",
        "Measure workers on this Kafka and this PostgreSQL, in a topic and a schema of their "
        "own that are removed at the end.",
        (
            "embedfleet bench",
            "embedfleet bench --workers 4 --latency 0.2 --requests-per-minute 3000",
            "embedfleet bench --documents 200 --model text-embedding-3-small --yes",
        ),
        LOOK,
    ),
    Command(
        "config",
        "worker.cli.config:config",
        "Show the effective settings and where each comes from; secrets are masked.",
        ("embedfleet config", "embedfleet config --explain"),
        LOOK,
    ),
    Command(
        "health",
        "worker.cli.health:health",
        "Ask the worker on this machine whether it is alive; exit 1 where it is not.",
        ("embedfleet health",),
        LOOK,
    ),
    Command(
        "version",
        "worker.cli.version:version",
        "Show the versions of embedfleet, Python and the main libraries.",
        ("embedfleet version --json",),
        LOOK,
        has_settings=False,
    ),
    Family(
        "partitions",
        "Partitions: who owns them and how far they are done.",
        OPERATE,
        (
            Command(
                "list",
                "worker.cli.partitions:list_all",
                "List the partitions of the group with owner, progress and problems.",
                ("embedfleet partitions list --json",),
            ),
            Command(
                "resume",
                "worker.cli.partitions:resume",
                "Let a partition go on that is held in a flood of dead letters.",
                ("embedfleet partitions resume documents/3",),
            ),
            Command(
                "skip",
                "worker.cli.partitions:skip",
                "Go past records that cannot be read: they are never stored. "
                "All workers of the group must be stopped before.",
                ("embedfleet partitions skip documents/3 --to 5120 --yes",),
            ),
        ),
    ),
    Family(
        "index",
        "Vector indexes: how they are, and how they are built without stopping anybody.",
        OPERATE,
        (
            Command(
                "status",
                "worker.cli.indexes:status",
                "Show size, state and use of each index; exit 1 where one is due or not valid.",
                (
                    "embedfleet index status",
                    "embedfleet index status docs --recall 100 --json",
                ),
            ),
            Command(
                "advise",
                "worker.cli.indexes:advise",
                "Say what to build, with which memory, and what readers should set, and why.",
                ("embedfleet index advise docs",),
            ),
            Command(
                "set",
                "worker.cli.indexes:set_index",
                "Say what index a collection should have: what is not said stays as it is, and "
                "nothing is built or dropped.",
                ("embedfleet index set docs --m 32 --ef-construction 128",),
            ),
            Command(
                "build",
                "worker.cli.indexes:build",
                "Build an index while readers and writers go on, or repair what a kill left.",
                (
                    "embedfleet index build docs",
                    "embedfleet index build --due --index.parallel-workers 4",
                ),
            ),
            Command(
                "drop",
                "worker.cli.indexes:drop",
                "Drop an index for good: searches compare all rows.",
                ("embedfleet index drop docs --yes",),
            ),
        ),
    ),
    Family(
        "dlq",
        "Dead letters: what could not pass, why, and what becomes of it.",
        OPERATE,
        (
            Command(
                "list",
                "worker.cli.dead_letters:list_all",
                "List the dead letters by their cause, each with a sample.",
                (
                    "embedfleet dlq list",
                    "embedfleet dlq list --each --tenant acme --since 2026-11-01",
                ),
            ),
            Command(
                "show",
                "worker.cli.dead_letters:show_one",
                "Say what happened to one record, and what to do.",
                ("embedfleet dlq show documents/3/5120",),
            ),
            Command(
                "stats",
                "worker.cli.dead_letters:stats",
                "Count the dead letters by reason, tenant or day, and by what became of them.",
                ("embedfleet dlq stats --by reason --by tenant --json",),
            ),
            Command(
                "replay",
                "worker.cli.dead_letters:replay",
                "Send dead letters through the workers again; exit 1 where one could not be.",
                (
                    "embedfleet dlq replay --reason unknown_collection --dry-run",
                    "embedfleet dlq replay --reason unknown_collection --rate 50 --yes",
                    "embedfleet dlq replay documents/3/5120 --value-file repaired.json",
                ),
            ),
            Command(
                "discard",
                "worker.cli.dead_letters:discard",
                "Give dead letters up: their versions are never stored.",
                ("embedfleet dlq discard --reason undecodable --until 2026-11-01 --yes",),
            ),
        ),
    ),
)


def add_commands(app: App, commands: tuple[Command | Family, ...] = COMMANDS) -> None:
    """Register commands by name; none of their modules is imported."""
    for place, one in enumerate(commands):
        if isinstance(one, Family):
            family = App(
                name=one.name, help=one.help, help_epilogue="", group=one.group, sort_key=place
            )
            add_commands(family, one.commands)
            app.command(family)
        else:
            settings_help = f"\n{SETTINGS_HELP}\n" if one.has_settings else ""
            app.command(
                one.path,
                name=one.name,
                help=one.help,
                help_epilogue=f"{_examples(one)}\n{settings_help}",
                group=one.group,
                sort_key=place,
            )


def _examples(command: Command) -> str:
    title = "Example" if len(command.examples) == 1 else "Examples"
    return "\n".join([f"{title}:", *(f"  {line}" for line in command.examples)])
