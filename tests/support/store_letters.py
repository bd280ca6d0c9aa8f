"""Dead letters for tests of the ledger."""

from schemas.dead_letter import Reason
from worker.core.model import Claim, Position, Record
from worker.ports import DeadLetter


def letter(
    claim: Claim, offset: int = 0, *, reason: Reason = Reason.UNDECODABLE, **facts: object
) -> DeadLetter:
    record = Record(Position(*claim.partition, offset), 1_700_000_000_000, b"key", b"value")
    return DeadLetter(record=record, claim=claim, reason=reason, stage="intake", **facts)
