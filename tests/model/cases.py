"""
What the model is asked: the protocol as it is built, and without one mechanism at a time.

`MECHANISMS` are those as the code has them; `CALM` is a world in which nothing goes wrong.
A case names what it removes, what may go wrong, what is checked, and what TLC must find.
"""

from dataclasses import dataclass, field
from typing import Any

HOLDS = "holds"
"""What TLC finds where nothing is wrong."""

MECHANISMS: dict[str, Any] = {
    "Ties": "timestamp",
    "Barriers": True,
    "Fence": "share",
    "Guard": True,
    "BaseCheck": "exact",
    "ClaimEach": True,
    "ClaimIds": True,
    "Histories": True,
    "Reclaim": True,
    "Parking": "position",
    "ReleasesParked": True,
    "ReleasedKeeps": True,
    "TrackerDies": True,
    "Tracking": "batch",
    "TableFirst": True,
    "SaveUpdates": True,
    "SaveFenced": True,
    "StartAt": "min",
    "SecondLook": True,
    "WriteBack": True,
    "LedgerFirst": True,
    "AckFirst": True,
    "MarkFirst": True,
    "MarkNames": "letter",
    "Vouched": "ledger",
    "Bump": True,
    "HoldAnew": True,
    "Landmarks": True,
    "TopicIds": "run",
    "Incarnations": True,
    "WordFences": True,
    "WordForgets": True,
    "ScopeBarrier": True,
    "ScopeChecked": True,
    "Purging": "safe",
}
CALM: dict[str, Any] = {
    "Workers": 2,
    "MaxRebalances": 1,
    "MaxFaults": 0,
    "MaxCrashes": 0,
    "MaxHolds": 0,
    "MaxReplays": 0,
    "MaxRewinds": 0,
    "Restores": 0,
    "Recreates": "never",
    "Drains": False,
    "Trims": False,
}
INVARIANTS = ("S2", "S3", "S3Table", "S4", "S5", "S6", "S7", "NoStray", "Behind", "Alarms")
PROPERTIES = ("S1", "Settled")
LIVENESS = ("L1",)
ALL = (*INVARIANTS, *PROPERTIES)
AGAIN_CHECKS = ("S2", "S3Table", "S4", "S5", "S6", "S7", "S1")


@dataclass(frozen=True)
class Case:
    """One run of TLC: `without` are mechanisms, `world` is what happens, `finds` the answer."""

    name: str
    scenario: str
    world: dict[str, Any] = field(default_factory=dict)
    without: dict[str, Any] = field(default_factory=dict)
    checks: tuple[str, ...] = ALL
    finds: str = HOLDS

    @property
    def constants(self) -> dict[str, Any]:
        """All constants of the module for this case."""
        return MECHANISMS | CALM | {"Scenario": self.scenario} | self.world | self.without


def without(
    name: str, finds: str, scenario: str, world: dict[str, Any], **removed: Any
) -> Case:
    """Return a case without some mechanisms, which checks only what then breaks."""
    return Case(name, scenario, world, removed, (finds,), finds)


def no_need(name: str, scenario: str, world: dict[str, Any], **removed: Any) -> Case:
    """Return a case without a mechanism that another one backs: nothing breaks."""
    return Case(name, scenario, world, removed)


def known(name: str, finds: str, scenario: str, world: dict[str, Any]) -> Case:
    """Return a case in which something breaks as it is built."""
    return Case(name, scenario, world, {}, (finds,), finds)
