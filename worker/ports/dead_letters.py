"""What cannot pass: the ledger, the dead-letter topic, and chunks that were refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from schemas.dead_letter import NO_FACTS, Facts, Reason
from worker.core.model import (
    Claim,
    Order,
    Record,
)


@dataclass(frozen=True, slots=True, eq=False)
class DeadLetter:
    """A record that cannot pass, with what is known about it. `detail` holds no secret."""

    record: Record
    claim: Claim
    reason: Reason
    stage: str
    detail: str = ""
    facts: Facts = NO_FACTS
    origin: Order | None = None
    tenant: str | None = None
    collection: str | None = None
    document_id: str | None = None
    version: int | None = None
    traceparent: str | None = None
    passes: int = 0


class Recorded(NamedTuple):
    """
    What the ledger says of a letter: how often it was recorded, and when first and last.

    In milliseconds of its clock. The first time is that of the first attempt, also after a
    crash or a rewind. `is_published`: the topic has acknowledged it before.
    """

    attempts: int
    first_seen_ms: int
    last_seen_ms: int
    is_published: bool


class LetterPlace(NamedTuple):
    """What names a letter of a group: where its record stands, in which topic of that name."""

    topic: str
    partition: int
    offset: int
    incarnation: int = 0


class Ledger(Protocol):
    """The dead letters as the database knows them: the truth for replay."""

    async def record(self, letters: Sequence[DeadLetter]) -> list[Recorded | None]:
        """
        Write pending rows under the fence; None of a letter whose claim is not the newest.

        Recording one again counts an attempt, and changes the state only where the reason is
        another one: then it is pending again. Letters of one record in one call are one row,
        the last of them, and one attempt.
        """

    async def mark_published(self, group: str, places: Sequence[LetterPlace]) -> None:
        """Mark rows whose letters the dead-letter topic has acknowledged."""


class DeadLetters(Protocol):
    """The dead-letter topic."""

    async def publish(self, letter: DeadLetter, recorded: Recorded) -> None:
        """
        Publish one letter, as the ledger has it, and wait for the acknowledgement.

        Raises:
            BrokerUnavailable: the outcome is unknown.
        """

    async def close(self) -> None:
        """Release the connection. Safe to call twice."""


class PoisonKey(NamedTuple):
    """What names a refused chunk: whose it is, who refused it, and the hash of its text."""

    tenant: str
    model: str
    chunk_hash: bytes


class Refusal(NamedTuple):
    """Why a chunk was refused; `detail` is without prose of the provider's."""

    reason: Reason
    detail: str


class Poison(NamedTuple):
    """A chunk that is known to be refused; `seen_at`: when it last was."""

    reason: Reason
    detail: str
    seen_at: datetime


class Poisons(Protocol):
    """The chunks that the embedding provider has refused for their text."""

    async def known(self, keys: Sequence[PoisonKey]) -> dict[PoisonKey, Poison]:
        """Return those of the chunks that are known to be refused."""

    async def remember(self, refusals: Mapping[PoisonKey, Refusal]) -> None:
        """Write down what was refused just now, in the place of what was known of it."""

    async def forget(self, keys: Sequence[PoisonKey]) -> None:
        """Know nothing of these chunks any more."""
