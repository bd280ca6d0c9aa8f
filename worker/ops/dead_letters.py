"""
One-shot job: send dead letters through the workers again, as far as that can change anything.

Works from the ledger: what is in the dead-letter topic without a row there is nobody's. A
letter that a committed row covers is resolved, not sent; one that was replayed too often is
parked, one that killed workers or whose version is ahead of its record is refused, unless it
is forced or repaired; one that still cannot be read is left as it is. What is sent goes to the
topic, the partition and the key it came with, and says where it first stood, so that workers
rank it there: it never overtakes what was stored since and brings nothing deleted back.

A replay is counted before it is sent, and its letter marked after the acknowledgement, each
only where the row has not changed meanwhile: it may break off anywhere, and be done again.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

import msgspec

from schemas import cloud_events
from schemas.bounds import Limits, Undecodable
from schemas.codec import Decoded, decode_record, key_of
from schemas.dead_letter import Header, Origin, with_origin, with_replays
from schemas.events import Event, JsonEvent, ScopeDeleted, Tombstone
from worker.core.letters import Letter, Original, State, covered, objection, origin_of
from worker.core.model import DocumentKey, Order, Partition, Rank
from worker.errors import ConfigError, PermanentError
from worker.ports import Clock, Query, Store

_LOOK_UP_LETTERS = 500
_EVENT: msgspec.json.Decoder[JsonEvent] = msgspec.json.Decoder(JsonEvent)
# With either of them the value would be read as a CloudEvent.
_ENVELOPE_HEADERS = (cloud_events.SPEC_VERSION, "content-type")


class Fate(StrEnum):
    """What a replay does with a letter."""

    REPLAYED = "replayed"
    SUPERSEDED = "superseded"
    PARKED = "parked"
    UNREADABLE = "unreadable"
    REFUSED = "refused"
    GONE = "gone"
    BUSY = "busy"


WELL = (Fate.REPLAYED, Fate.SUPERSEDED)
"""What needs nobody's attention."""


class Ended(NamedTuple):
    """What was done with one letter, and why where it was not sent."""

    letter: Letter
    fate: Fate
    why: str = ""


class Dispositions(Protocol):
    """What the ledger is told, as `worker.adapters.pg_dead_letters` does it."""

    async def begin_replay(
        self, letter: Letter, document: DocumentKey | None, version: int | None
    ) -> bool:
        """Count a replay before it is sent; False where the letter is not the same any more."""

    async def move(self, letter: Letter, state: State) -> None:
        """Put a letter into another state, where it still is in the one it was read in."""


class Originals(Protocol):
    """The records of letters, as `worker.adapters.kafka_letters` reads them."""

    def read(
        self, letters: Sequence[Letter]
    ) -> AsyncGenerator[tuple[Letter, Original | None], None]:
        """Yield the record of each letter, in no order; None of one that is gone."""


class Sending(Protocol):
    """Where replays go, as `worker.adapters.kafka_letters` sends them."""

    async def send(
        self, partition: Partition, key: bytes, value: bytes | None, headers: Sequence[Header]
    ) -> None:
        """
        Send a record and wait until all replicas in sync have it.

        Raises:
            PermanentError: it is larger than the topic takes.
        """


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """
    How letters are replayed.

    With `force` also those that were replayed `max_replays` times, and those that would fail
    again by their reason (`objection`). `repaired` stands in the place of the value of the one
    letter there is.
    """

    limits: Limits
    rate_per_second: float
    max_replays: int
    force: bool = False
    repaired: bytes | None = None


class Replay:
    """A replay under way; without a `sender` it is a dry run, which changes nothing."""

    def __init__(
        self,
        ledger: Dispositions,
        store: Store,
        originals: Originals,
        sender: Sending | None,
        options: ReplayOptions,
        *,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._originals = originals
        self._sender = sender
        self._options = options
        self._clock = clock
        self._sleep = sleep
        self._next_turn = clock()
        self.fates: Counter[Fate] = Counter()

    async def run(self, letters: Sequence[Letter]) -> AsyncGenerator[Ended, None]:
        """
        Deal with each letter, one after the other; what is covered already comes first.

        Raises:
            BrokerUnavailable, StoreUnavailable: the rest is as it was, but for one letter that
                may be there again.
        """
        left: list[Letter] = []
        for start in range(0, len(letters), _LOOK_UP_LETTERS):
            for ended in await self._sift(letters[start : start + _LOOK_UP_LETTERS], left):
                yield self._count(ended)
        async with aclosing(self._originals.read(left)) as records:
            async for letter, original in records:
                yield self._count(await self._replay(letter, original))

    def _count(self, ended: Ended) -> Ended:
        self.fates[ended.fate] += 1
        return ended

    async def _sift(self, letters: Sequence[Letter], left: list[Letter]) -> list[Ended]:
        """End what is decided without the record; add the rest to `left`."""
        superseded = await self._superseded(letters)
        ends: list[Ended] = []
        for letter in letters:
            if letter.state is State.PENDING:
                why = "its worker has not finished with it"
                ends.append(Ended(letter, Fate.BUSY, why))
            elif letter.place in superseded:
                ends.append(await self._resolve(letter))
            elif (problem := self._objection(letter)) is not None:
                ends.append(Ended(letter, Fate.REFUSED, problem))
            elif letter.replays >= self._options.max_replays and not self._options.force:
                ends.append(await self._park(letter))
            else:
                left.append(letter)
        return ends

    def _objection(self, letter: Letter) -> str | None:
        is_wanted = self._options.force or self._options.repaired is not None
        return None if is_wanted else objection(letter)

    async def _superseded(self, letters: Sequence[Letter]) -> set[Order]:
        if self._options.repaired is not None:
            return set()
        named = [(letter, key) for letter in letters if (key := letter.document_key)]
        bases = await self._store.read([Query(key, letter.group) for letter, key in named])
        return {
            letter.place
            for (letter, _), base in zip(named, bases, strict=True)
            if covered(Rank(letter.version, letter.origin), base)
        }

    async def _replay(self, letter: Letter, original: Original | None) -> Ended:
        if self._options.repaired is not None:
            original = repair(original, self._options.repaired, self._options.limits)
        if original is None:
            return Ended(letter, Fate.GONE, "neither topic holds it any more")
        try:
            decoded = decode_record(*original, self._options.limits)
        except Undecodable as error:
            return Ended(letter, Fate.UNREADABLE, str(error))
        document, version = _named(decoded.event)
        origin = await self._origin(letter, decoded, document)
        if document and await self._covers(document, Rank(version, origin), letter):
            return await self._resolve(letter)
        return await self._send(letter, original, origin, (document, version))

    async def _origin(
        self, letter: Letter, decoded: Decoded, document: DocumentKey | None
    ) -> Order:
        claimed = None if decoded.origin is None else Order(*decoded.origin)
        earlier = origin_of(letter, claimed)
        if earlier is None or document is None:
            return letter.origin
        (base,) = await self._store.read([Query(document, letter.group, earlier)])
        return earlier if base.origin_known else letter.origin

    async def _covers(self, document: DocumentKey, rank: Rank, letter: Letter) -> bool:
        (base,) = await self._store.read([Query(document, letter.group)])
        return covered(rank, base)

    async def _send(
        self,
        letter: Letter,
        original: Original,
        origin: Order,
        said: tuple[DocumentKey | None, int | None],
    ) -> Ended:
        if self._sender is None:
            return Ended(letter, Fate.REPLAYED)
        await self._turn()
        if not await self._ledger.begin_replay(letter, *said):
            return Ended(letter, Fate.BUSY, "it has changed meanwhile")
        headers = with_origin(original.headers, Origin(*origin))
        headers = with_replays(headers, letter.replays + 1)
        assert original.key is not None, "a record without a key cannot be read"
        try:
            # Its own partition, whatever its key says: elsewhere no origin is believed.
            await self._sender.send(letter.partition, original.key, original.value, headers)
        except PermanentError as error:
            return Ended(letter, Fate.REFUSED, str(error))
        await self._ledger.move(letter, State.REPLAYED)
        return Ended(letter, Fate.REPLAYED)

    async def _turn(self) -> None:
        """Wait for the turn of the next letter, so that no second sees more than the rate."""
        now = self._clock()
        if self._next_turn > now:
            await self._sleep(self._next_turn - now)
        self._next_turn = max(self._next_turn, now) + 1 / self._options.rate_per_second

    async def _resolve(self, letter: Letter) -> Ended:
        if self._sender is not None:
            await self._ledger.move(letter, State.RESOLVED)
        return Ended(letter, Fate.SUPERSEDED)

    async def _park(self, letter: Letter) -> Ended:
        if self._sender is not None:
            await self._ledger.move(letter, State.PARKED)
        why = f"it was replayed {letter.replays} times and failed again"
        return Ended(letter, Fate.PARKED, why)


def repair(original: Original | None, value: bytes, limits: Limits) -> Original:
    """
    Return the record with an event of the operator's in its place, under that event's key.

    Raises:
        ConfigError: a worker would not accept the value.
    """
    headers = () if original is None else original.headers
    kept = tuple((name, content) for name, content in headers if name not in _ENVELOPE_HEADERS)
    try:
        key = key_of(_EVENT.decode(value))
        decode_record(key, value, kept, limits)
    except Undecodable as error:
        raise ConfigError(f"a worker would not accept the value: {error}") from error
    except (ValueError, RecursionError) as error:
        # Also msgspec's errors, UnicodeDecodeError and InvalidKey.
        raise ConfigError(f"the value is no event: {error}") from error
    return Original(key, value, kept)


def _named(event: Event) -> tuple[DocumentKey | None, int | None]:
    """Return document and version of an event; of a scope's, none."""
    if isinstance(event, ScopeDeleted):
        return None, None
    key = DocumentKey(event.tenant, event.collection, event.id)
    return key, None if isinstance(event, Tombstone) else event.version
