"""
What the pipeline needs from outside, in our words.

Each port has one contract suite (`tests/contracts`), run on memory and on the real thing.
Every call may raise the `TransientError` of its technology: the outcome of a write is then
unknown, and the caller repeats it, which changes nothing. All times are seconds.
"""

from worker.ports.dead_letters import (
    DeadLetter,
    DeadLetters,
    Ledger,
    LetterPlace,
    Poison,
    PoisonKey,
    Poisons,
    Recorded,
    Refusal,
)
from worker.ports.embedding import Embedder, EmbeddingRequest
from worker.ports.partitions import Claims, Crashes, Hold, Holds, Verdict
from worker.ports.runtime import Clock, Offload, Spawn
from worker.ports.source import Assignments, BatchSpan, PolledBatch, Source
from worker.ports.store import Catalog, Query, Store, Write

__all__ = [
    "Assignments",
    "BatchSpan",
    "Catalog",
    "Claims",
    "Clock",
    "Crashes",
    "DeadLetter",
    "DeadLetters",
    "Embedder",
    "EmbeddingRequest",
    "Hold",
    "Holds",
    "Ledger",
    "LetterPlace",
    "Offload",
    "Poison",
    "PoisonKey",
    "Poisons",
    "PolledBatch",
    "Query",
    "Recorded",
    "Refusal",
    "Source",
    "Spawn",
    "Store",
    "Verdict",
    "Write",
]
