"""
Which member of the group gets which partitions, and whether all of them work for one table.

Round robin, as the library does it. Every member says for which fleet it works when it joins;
the leader gives partitions to members of its own fleet only, and the others learn from what
they are given whose group it is. Without this, two fleets with one group and two databases
would have half of the documents each, and nobody would know.

A member that says nothing counts as one of us: it is of a version before this one.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import (
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)

logger = logging.getLogger(__name__)


class FleetAssignor(RoundRobinPartitionAssignor):  # type: ignore[misc]  # the library has no types
    """The assignor of one member; `other_fleet` is whose group it is, if it is not ours."""

    def __init__(self, fleet: str) -> None:
        self._fleet = fleet.encode()
        self.other_fleet: str | None = None

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """Return what this member says when it joins."""
        return ConsumerProtocolMemberMetadata(self.version, list(topics), self._fleet)

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
                self.version, shares[name].assignment if name in shares else [], self._fleet
            )
            for name in members
        }

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        """Take note of whose group it is."""
        told = assignment.user_data
        self.other_fleet = None if self._is_ours(told) else told.decode(errors="replace")

    def _is_ours(self, fleet: bytes | None) -> bool:
        return not fleet or fleet == self._fleet
