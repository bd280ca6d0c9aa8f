"""
Real text embeddings without a network or a GPU: WordLlama's static token vectors, 256 of them.

A vector is the mean of its text's token vectors, of unit length. Each text is computed on its
own, so a vector never depends, not even in its last bit, on the texts that came with it; and
long texts do not pad short ones to their length in memory, as WordLlama's own `embed` does.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from worker.errors import ConfigError

NAME = "wordllama-256"
DIMENSIONS = (64, 128, 256)
"""Lengths the model was trained for: it may be cut to any of them (Matryoshka)."""

Vectors = npt.NDArray[np.float32]


class Embedded(NamedTuple):
    """Vectors in the order of the texts, and what they cost."""

    vectors: Vectors
    tokens: Sequence[int]


class WordLlamaModel:
    """The model, loaded once (1 s, 100 MB); `embed` is CPU work, and threads may call it."""

    def __init__(self) -> None:
        try:
            import wordllama
        except ImportError as error:
            raise ConfigError(
                "local embeddings need the extra embedfleet[embedded]; or set "
                "OPENAI_BASE_URL to an OpenAI-compatible server"
            ) from error
        model = wordllama.WordLlama.load(
            cache_dir=Path(wordllama.__file__).parent, disable_download=True
        )
        model.tokenizer.no_padding()
        self._tokenizer = model.tokenizer
        self._table: Vectors = model.embedding
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str], dimensions: int = 256) -> Embedded:
        """
        Return one vector a text.

        Raises:
            ValueError: a text is empty.
        """
        # One call at a time: the tokenizer itself uses all cores.
        with self._lock:
            encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        tokens = [encoding.ids for encoding in encodings]
        vectors = np.empty((len(texts), dimensions), np.float32)
        for row, ids in zip(vectors, tokens, strict=True):
            if not ids:
                raise ValueError("a text without tokens has no vector")
            total = self._table[ids, :dimensions].sum(axis=0)
            row[:] = total / np.linalg.norm(total)
        return Embedded(vectors, [len(ids) for ids in tokens])
