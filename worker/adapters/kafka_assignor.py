"""
Which member of the group gets which partitions, and whether all of them work for one table.

Round robin, as the library does it. Every member says for which fleet it works when it joins;
the leader gives partitions to members of its own fleet only, and the others learn from what
they are given whose group it is. Without this, two fleets with one group and two databases
would have half of the documents each, and nobody would know.

A member that says nothing counts as one of us: it is of a version before this one.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import (
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)

from worker.errors import TransientError

logger = logging.getLogger(__name__)

# Of the second that a last commit and the giving back of claims leave of a rebalance.
_LOOK_SECONDS = 0.5


class Fleet:
    """
    The name of the table that a worker writes, as of the last look; `look` asks anew.

    A table keeps its workers and gets another name where its database is upgraded, or comes
    back on another server: each rebalance looks.
    """

    def __init__(self, name: str = "", ask: Callable[[], Awaitable[str]] | None = None) -> None:
        self.name = name
        self._ask = ask

    async def look(self) -> None:
        """Ask for the name; where nobody answers in time it is what it was."""
        if self._ask is None:
            return
        with suppress(TransientError, TimeoutError):
            async with asyncio.timeout(_LOOK_SECONDS):
                self.name = await self._ask()


class FleetAssignor(RoundRobinPartitionAssignor):  # type: ignore[misc]  # the library has no types
    """The assignor of one member; `other_fleet` is whose group it is, if it is not ours."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.other_fleet: str | None = None

    @property
    def _name(self) -> bytes:
        return self._fleet.name.encode()

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """Return what this member says when it joins."""
        return ConsumerProtocolMemberMetadata(self.version, list(topics), self._name)

    def assign(
        self, cluster: Any, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """Share the partitions among the members of this fleet; called where this one leads."""
        ours = {
            name: member for name, member in members.items() if self._is_ours(member.user_data)
        }
        if strangers := len(members) - len(ours):
            logger.error(
                "%d members of the group work for another table and get nothing", strangers
            )
        shares = super().assign(cluster, ours)
        return {
            name: ConsumerProtocolMemberAssignment(
                self.version, shares[name].assignment if name in shares else [], self._name
            )
            for name in members
        }

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        """Take note of whose group it is."""
        told = assignment.user_data
        self.other_fleet = None if self._is_ours(told) else told.decode(errors="replace")

    def _is_ours(self, fleet: bytes | None) -> bool:
        return not fleet or fleet == self._name
