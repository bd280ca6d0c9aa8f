"""One-shot jobs on dead letters put together: look at them, send them again, give them up."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from typing import NamedTuple

from schemas.bounds import Limits
from worker.adapters.kafka_letters import KafkaLetters, Sender
from worker.adapters.kafka_topics import Topics
from worker.adapters.pg_client import Database
from worker.adapters.pg_dead_letters import By, Count, Group, PostgresDeadLetters
from worker.adapters.pgvector_store import PgvectorStore
from worker.app.jobs import opened
from worker.config import KafkaOptions, Settings
from worker.core.letters import Letter, Original, Selection, covered
from worker.core.model import Position, Rank
from worker.errors import BrokerUnavailable, ConfigError
from worker.ops.dead_letters import Ended, Replay, ReplayOptions
from worker.ports import Query


class Shown(NamedTuple):
    """
    One letter with its record.

    `superseded` None: the ledger does not know the document. `original` None: the record is
    gone, or could not be looked for, which `problem` says.
    """

    letter: Letter
    superseded: bool | None
    original: Original | None
    problem: str | None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a replay is to do; without `yes` it sends one letter that is named, no more."""

    rate_per_second: float
    max_replays: int
    dry_run: bool = False
    yes: bool = False
    force: bool = False
    repaired: bytes | None = None


async def groups(settings: Settings, selection: Selection) -> list[Group]:
    """Return letters by reason and fingerprint."""
    async with opened(settings.database) as database:
        return await PostgresDeadLetters(database).groups(selection)


async def letters(
    settings: Settings, selection: Selection, limit: int
) -> tuple[list[Letter], int]:
    """Return the first letters in the order of the log, and how many more there are."""
    async with opened(settings.database) as database:
        ledger = PostgresDeadLetters(database)
        found = await ledger.select(selection, limit)
        if len(found) < limit:
            return found, 0
        return found, max(0, await _count(ledger, selection) - len(found))


async def stats(settings: Settings, selection: Selection, by: Sequence[By]) -> list[Count]:
    """Return how many letters there are."""
    async with opened(settings.database) as database:
        return await PostgresDeadLetters(database).stats(selection, by)


async def show(settings: Settings, position: Position) -> Shown:
    """
    Return one letter.

    Raises:
        ConfigError: there is none at that position.
    """
    selection = Selection(group=settings.kafka.group, positions=(position,))
    async with opened(settings.database) as database:
        (letter,) = await _selected(database, selection)
        superseded = await _is_superseded(database, letter)
    try:
        original, problem = await _original(settings.kafka, letter), None
    except (BrokerUnavailable, ConfigError) as error:
        original, problem = None, f"the record cannot be looked for: {error}"
    return Shown(letter, superseded, original, problem)


async def discard(settings: Settings, selection: Selection, *, really: bool) -> int:
    """Give letters up, or only count them; returns how many."""
    async with opened(settings.database) as database:
        ledger = PostgresDeadLetters(database)
        if selection.positions:
            await _selected(database, replace(selection, states=()))
        if really:
            return await ledger.discard(selection)
        return await _count(ledger, selection)


async def _count(ledger: PostgresDeadLetters, selection: Selection) -> int:
    return sum(group.letters for group in await ledger.groups(selection))


async def replay(
    settings: Settings,
    selection: Selection,
    asked: Asked,
    *,
    on_begin: Callable[[int, bool], object],
    on_ended: Callable[[Ended], object],
) -> None:
    """
    Send letters again, or only say what that would do.

    `on_begin` is told how many there are, and whether it really happens.

    Raises:
        ConfigError: a position, a topic or the repaired value is wrong.
    """
    limits = Limits(max_text_bytes=settings.ingest.max_text_bytes, nul=settings.ingest.nul)
    options = ReplayOptions(
        limits=limits,
        rate_per_second=asked.rate_per_second,
        max_replays=asked.max_replays,
        force=asked.force,
        repaired=asked.repaired,
    )
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(opened(settings.database))
        chosen = await _selected(database, selection)
        is_sure = asked.yes or len(selection.positions) == 1
        really = is_sure and not asked.dry_run
        on_begin(len(chosen), really)
        if not chosen:
            return
        await _check_topics(settings.kafka, chosen)
        sender = (
            await stack.enter_async_context(Sender.open(settings.kafka)) if really else None
        )
        job = Replay(
            PostgresDeadLetters(database),
            PgvectorStore(database),
            KafkaLetters(settings.kafka),
            sender,
            options,
            clock=time.monotonic,
            sleep=asyncio.sleep,
        )
        async with aclosing(job.run(chosen)) as ends:
            async for ended in ends:
                on_ended(ended)


async def _selected(database: Database, selection: Selection) -> list[Letter]:
    found = await PostgresDeadLetters(database).select(selection)
    there = {letter.position for letter in found}
    for position in selection.positions:
        if position not in there:
            name = "/".join(map(str, position))
            raise ConfigError(
                f"the ledger of the group {selection.group!r} has no dead letter {name}"
            )
    return found


async def _is_superseded(database: Database, letter: Letter) -> bool | None:
    if letter.document_key is None:
        return None
    query = Query(letter.document_key, letter.group)
    (base,) = await PgvectorStore(database).read([query])
    return covered(Rank(letter.version, letter.origin), base)


async def _original(options: KafkaOptions, letter: Letter) -> Original | None:
    if letter.position.topic not in await _topics(options, {letter.position.topic}):
        return None
    async with aclosing(KafkaLetters(options).read([letter])) as records:
        _, original = await anext(records)
    return original


async def _check_topics(options: KafkaOptions, chosen: Sequence[Letter]) -> None:
    places = {letter.partition for letter in chosen}
    found = await _topics(options, {place.topic for place in places})
    for topic, number in sorted(places):
        if number >= found.get(topic, 0):
            raise ConfigError(f"there is no partition {topic}/{number} to send a replay to")


async def _topics(options: KafkaOptions, names: Iterable[str]) -> dict[str, int]:
    """Return how many partitions each topic has; the client would wait for a missing one."""
    found = await Topics(replace(options, topics=tuple(sorted(names)))).describe()
    if options.dead_letter_topic not in found:
        raise ConfigError(f"there is no topic {options.dead_letter_topic!r}")
    return {topic: description.partitions for topic, description in found.items()}
