"""All cases of the model: as built, then one mechanism removed at a time."""

from tests.model.cases import AGAIN_CHECKS, Case, known, no_need, without

STAYS = {"MaxRebalances": 1}
MOVES = {"MaxRebalances": 2}
COMES_BACK = {"MaxRebalances": 3}
DIES = {"MaxRebalances": 1, "MaxCrashes": 1}
RESTORED = {"MaxRebalances": 1, "Restores": 1}
AGAIN = {"MaxRebalances": 1, "Recreates": "stopped"}
EARLY = {"MaxRebalances": 1, "Recreates": "early"}
RUNNING = {"MaxRebalances": 1, "Recreates": "running"}
PURGED = {"MaxRebalances": 1, "MaxReplays": 1, "Trims": True}
PURGED_CHECKS = ("S2", "S3", "S3Table", "S5", "S6")
RESTORED_CHECKS = ("S2", "S3Table", "S4", "S5", "S6", "S7")

BUILT = [
    Case("built: two versions, moved", "two", MOVES),
    Case("built: moved and drained", "one", MOVES | {"Drains": True, "MaxFaults": 1}),
    Case("built: moved, a fault", "one", MOVES | {"MaxFaults": 1}),
    Case("built: away and back", "one", COMES_BACK),
    Case("built: two versions, two faults", "two", STAYS | {"MaxFaults": 2}),
    Case("built: a crash", "two", DIES),
    Case("built: older after newer, upsert after delete", "fall", STAYS | {"MaxFaults": 1}),
    Case("built: mixed log", "mixed", STAYS | {"MaxFaults": 1}),
    Case("built: poison, moved", "bad", MOVES | {"MaxFaults": 1}),
    Case("built: poison over an older version", "poison", STAYS | {"MaxFaults": 2}),
    Case("built: poison for some attempts", "maybe", DIES),
    Case("built: held in a flood", "poison", STAYS | {"MaxHolds": 1, "MaxFaults": 1}),
    Case("built: delete without version", "null", STAYS | {"MaxFaults": 1}),
    Case("built: delete without version, then a replay", "null, replay", STAYS),
    Case("built: replay of a dead letter", "replay", STAYS | {"MaxFaults": 1}),
    Case("built: an origin that is forged", "forged", STAYS | {"MaxFaults": 1}),
    Case("built: same content", "same", STAYS | {"MaxFaults": 1}),
    Case(
        "built: rewound by an operator",
        "others",
        STAYS | {"MaxRewinds": 1},
        checks=("Rewound", "S2", "S3"),
    ),
    Case("built: database restored", "two", RESTORED, checks=RESTORED_CHECKS),
    Case("built: database restored, moved", "one", RESTORED | MOVES, checks=RESTORED_CHECKS),
    Case("built: a key in two partitions", "moves", STAYS),
    Case("built: equal versions in two partitions", "tie", STAYS),
    Case("built: scope delete", "scope", STAYS),
    Case("built: topic created again", "again", AGAIN, checks=AGAIN_CHECKS),
    Case("built: topic created again, shorter", "again, tombstone", AGAIN, checks=AGAIN_CHECKS),
    Case("built: topic created again early", "again, tombstone", EARLY, checks=AGAIN_CHECKS),
    Case("built: topic created again as it runs", "again", RUNNING, checks=AGAIN_CHECKS),
    Case("built: topic created again, poison", "again, poison", AGAIN, checks=AGAIN_CHECKS),
    Case("built: tombstones purged", "dead", PURGED | {"MaxRewinds": 1}, checks=PURGED_CHECKS),
    Case("built: drains", "one", MOVES, checks=("L1",)),
    Case("built: drains, held", "bad", {"MaxHolds": 1}, checks=("L1",)),
]

# What the protocol does not keep as it is built.
KNOWN = [
    known("known: false alarm behind a start written back", "AlarmsEver", "one", MOVES),
    known("known: delete without version across partitions", "S2", "crossed", STAYS),
]

WITHOUT = [
    without("no guard", "S1", "two", DIES, Guard=False),
    without("no fence", "S4", "one", MOVES, Fence="none"),
    without("fence without a lock", "S4", "one", MOVES, Fence="plain"),
    without("blind change set", "S6", "moves", STAYS, BaseCheck="blind"),
    without("base named by its revision", "S6", "swept", STAYS, BaseCheck="revision"),
    without(
        "no claim per assignment, blind change set",
        "S6",
        "three",
        DIES,
        ClaimEach=False,
        BaseCheck="blind",
    ),
    without(
        "no claim id after a restore",
        "S4",
        "one",
        MOVES | RESTORED,
        ClaimIds=False,
        Histories=False,
    ),
    without("restore not noticed", "S2", "one", RESTORED, Histories=False),
    without("fenced, not claimed again", "L1", "one", MOVES, Reclaim=False),
    without("parked is settled at once", "S3", "two", STAYS, Parking="early"),
    without("parked by version alone", "Settled", "crossed", STAYS, Parking="version"),
    without(
        "released, but what is parked settles",
        "S3",
        "two",
        MOVES | {"Drains": True},
        ReleasesParked=False,
    ),
    without("released completes", "S3", "one", MOVES | {"Drains": True}, ReleasedKeeps=False),
    without(
        "released completes in the tracker of a later claim",
        "S3",
        "one",
        COMES_BACK,
        TrackerDies=False,
        ReleasedKeeps=False,
    ),
    without(
        "fenced completes, saved without a claim",
        "S3",
        "one",
        MOVES,
        ReleasedKeeps=False,
        SaveFenced=False,
    ),
    without("tracked after the poll", "S3", "one", STAYS, Tracking="late"),
    without("Kafka before the table", "Behind", "one", STAYS, TableFirst=False),
    without("start where Kafka says", "S2", "one", RESTORED, StartAt="kafka"),
    without("no second look", "Alarms", "one", MOVES, SecondLook=False),
    without(
        "start not written back",
        "Rewound",
        "others",
        STAYS | {"MaxRewinds": 1},
        WriteBack=False,
    ),
    without("letter before its row", "NoStray", "bad", MOVES, LedgerFirst=False),
    without("marked before the acknowledgement", "S7", "bad", STAYS, AckFirst=False),
    without("completed before the mark", "S3Table", "bad", STAYS, MarkFirst=False),
    without("replay ranked where it stands", "S2", "replay", STAYS, Vouched="never"),
    without("origin not vouched for", "S3", "forged", STAYS, Vouched="always"),
    without("no barriers", "S5", "null, replay", STAYS, Barriers=False),
    without("same content settles", "S2", "same", STAYS, Bump=False),
    without("held goes on as it was", "L1", "bad", {"MaxHolds": 1}, HoldAnew=False),
    without("no landmark, no ids", "S2", "again", AGAIN, Landmarks=False, TopicIds="none"),
    without("no ids, created again early", "S2", "again, tombstone", EARLY, TopicIds="none"),
    without("ids compared at the claim only", "S2", "again", RUNNING, TopicIds="claim"),
    Case(
        "progress saved where none was begun",
        "again",
        RUNNING,
        {"SaveUpdates": False},
        ("S3Table",),
        "S3Table",
    ),
    without("marks of the claim's topic", "S7", "again, poison", AGAIN, MarkNames="claim"),
    without("orders without incarnation", "S2", "again", AGAIN, Incarnations=False),
    without(
        "word that keeps the progress",
        "S2",
        "again",
        AGAIN,
        WordForgets=False,
        Landmarks=False,
        TopicIds="none",
    ),
    without("scope without its barrier", "S2", "scope", STAYS, ScopeBarrier=False),
    without("writes that do not look at scopes", "S2", "scope", STAYS, ScopeChecked=False),
    without("purged too young", "S5", "dead", PURGED, Purging="young"),
    without("ties by offset", "S2", "tie", STAYS, Ties="offset"),
    Case(
        "word without a new epoch",
        "again, tombstone",
        AGAIN,
        {"WordFences": False},
        checks=AGAIN_CHECKS,
    ),
    Case("no landmark", "again", AGAIN, {"Landmarks": False}, checks=AGAIN_CHECKS),
    no_need("progress saved without a claim", "one", MOVES, SaveFenced=False),
]

CASES = [*BUILT, *WITHOUT, *KNOWN]
