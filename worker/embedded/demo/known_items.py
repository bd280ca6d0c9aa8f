"""
Does the search find what it should, and is it as good as an exact one?

A known-item check: sentences are held back from documents before they are published and asked
for afterwards. The exact search is over vectors that are computed here, outside the worker,
from the texts as stored, so an index or a vector that is wrong shows as a difference.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from worker.embedded.demo.corpus import Document

QUERIES = 50
DEPTHS = (1, 5, 10)
LEAST_AGREEMENT = 0.95
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
SENTENCE_CHARACTERS = range(60, 240)
SENTENCES_PER_DOCUMENT = 6

Vectors = npt.NDArray[np.float32]


class Question(NamedTuple):
    """A sentence that is in no published text, and the document it was taken from."""

    text: str
    tenant: str
    document_id: str


class Place(NamedTuple):
    """A chunk: its document and its place in it."""

    document_id: str
    seq: int


@dataclass(frozen=True)
class Stored:
    """The chunks of a tenant as they are shown, with vectors computed from their texts."""

    places: Sequence[Place]
    vectors: Vectors

    def nearest(self, vector: Vectors, k: int) -> list[Place]:
        """Return the exact answer: the cosine of everything, sorted."""
        lengths = np.linalg.norm(self.vectors, axis=1) * np.linalg.norm(vector)
        cosines = self.vectors @ vector / lengths
        return [self.places[index] for index in np.argsort(-cosines, kind="stable")[:k]]


def hold_back(
    documents: Sequence[Document], chance: random.Random
) -> tuple[list[Document], list[Question]]:
    """Take one sentence each out of some documents; returns what is left, and the sentences."""
    published = list(documents)
    questions: list[Question] = []
    for index in chance.sample(range(len(documents)), len(documents)):
        document = documents[index]
        sentence = _sentence(document.text, chance)
        if sentence is None:
            continue
        text = document.text.replace(sentence, "", 1)
        published[index] = Document(document.tenant, document.id, text)
        words = " ".join(sentence.split())
        questions.append(Question(words, document.tenant, document.id))
        if len(questions) == QUERIES:
            break
    return published, questions


def hits(found: Sequence[Sequence[Place]], questions: Sequence[Question]) -> dict[int, float]:
    """Return depth -> share of the questions whose document is among the first so many."""
    return {
        depth: sum(
            question.document_id in {place.document_id for place in places[:depth]}
            for places, question in zip(found, questions, strict=True)
        )
        / len(questions)
        for depth in DEPTHS
    }


def agreement(found: Sequence[Sequence[Place]], exact: Sequence[Sequence[Place]]) -> float:
    """Return the share of the exact answers that the search gave too."""
    same = sum(len(set(one) & set(other)) for one, other in zip(found, exact, strict=True))
    return same / max(1, sum(map(len, exact)))


def _sentence(text: str, chance: random.Random) -> str | None:
    sentences = SENTENCE.split(text)
    if len(sentences) < SENTENCES_PER_DOCUMENT:
        return None
    fitting = [
        sentence
        for sentence in sentences[1:]
        if len(sentence) in SENTENCE_CHARACTERS and text.count(sentence) == 1
    ]
    return chance.choice(fitting) if fitting else None
