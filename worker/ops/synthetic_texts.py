"""
Texts for benchmarks: made-up words in sentences and paragraphs, decided by chance alone.

Slices of one long text at random places, so that no chunk is like another one.
"""

import random

_SENTENCES_GO_ON = 0.8
"""Of five sentences four are followed by another one of their paragraph."""
_CORPUS_WORDS = 200_000
_SYLLABLES = ("ka", "lo", "mi", "ren", "tu", "sa", "vel", "or", "in", "dra", "pe", "qu", "sto")


class SyntheticTexts:
    """Texts of any length below a million characters; the same `chance`, the same texts."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        words = (
            "".join(chance.choices(_SYLLABLES, k=chance.randint(1, 4)))
            for _ in range(_CORPUS_WORDS)
        )
        self._corpus = " ".join(words)

    def take(self, characters: int) -> str:
        """Return a text of about so many characters."""
        start = self._chance.randrange(len(self._corpus) - characters)
        return self._paragraphs(self._corpus[start : start + characters].split())

    def _paragraphs(self, words: list[str]) -> str:
        text, begin = "", 0
        while begin < len(words):
            length = self._chance.randint(6, 24)
            text += " ".join(words[begin : begin + length]).capitalize()
            text += ". " if self._chance.random() < _SENTENCES_GO_ON else ".\n\n"
            begin += length
        return text.strip()
