"""An embedding provider."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from worker.core.dialects import InputType
from worker.core.model import (
    Vector,
)


class EmbeddingRequest(NamedTuple):
    """
    Texts for one call of the provider; it never mixes models or tenants' secrets.

    `input_type` tells texts that are searched from those that are searched for: some models
    embed the two differently.
    """

    model: str
    dimensions: int
    texts: Sequence[str]
    traceparents: Sequence[str] = ()
    input_type: InputType = "document"


class Embedder(Protocol):
    """An embedding provider."""

    async def embed(self, request: EmbeddingRequest) -> list[Vector]:
        """
        Return one vector a text, in order; one call, no retry.

        Raises:
            RejectedInput: at least one of the texts is refused.
            ProviderUnavailable: no answer, or none that can be used.
        """

    async def close(self) -> None:
        """Release the connections. Safe to call twice."""
