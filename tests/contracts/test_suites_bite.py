"""The contract suites of the database's ports turn red for adapters that are wrong."""

import asyncio
import inspect
from collections.abc import Collection as Several
from collections.abc import Mapping, Sequence
from dataclasses import replace
from uuid import UUID

import pytest

from schemas.dead_letter import NO_FACTS
from schemas.events import ScopeDeleted
from tests.contracts.test_catalog import CatalogContract
from tests.contracts.test_claims import ClaimsContract
from tests.contracts.test_crashes import CrashesContract
from tests.contracts.test_holds import HoldsContract
from tests.contracts.test_ledger import LedgerContract
from tests.contracts.test_poison import PoisonContract
from tests.contracts.test_store import StoreContract
from tests.support.store_worlds import MemoryWorld
from worker.adapters.memory_database import DocumentRow, MemoryDatabase
from worker.adapters.memory_ledger import MemoryLedger
from worker.adapters.memory_partitions import MemoryCrashes, MemoryHolds
from worker.adapters.memory_poison import MemoryPoisons
from worker.adapters.memory_store import MemoryCatalog, MemoryClaims, MemoryStore
from worker.core.isolation import Alone, CrashEntry
from worker.core.model import (
    Base,
    ChangeSet,
    Claim,
    Collection,
    DocumentKey,
    Partition,
    Progress,
    Rank,
)
from worker.errors import WorkerError
from worker.ports import (
    DeadLetter,
    LetterPlace,
    Poison,
    PoisonKey,
    Query,
    Recorded,
    Refusal,
    Verdict,
    Write,
)

SUITES = {
    "claims": ClaimsContract,
    "crashes": CrashesContract,
    "holds": HoldsContract,
    "store": StoreContract,
    "ledger": LedgerContract,
    "poisons": PoisonContract,
    "catalog": CatalogContract,
}


class ComparesNumbersOnly(MemoryDatabase):
    """Protocol, C12."""

    def is_live(self, claim: Claim) -> bool:
        row = self.state.claims.get((claim.group, claim.partition))
        return row is not None and row.epoch == claim.epoch and claim.history == self.history


class IgnoresHistory(MemoryDatabase):
    def is_live(self, claim: Claim) -> bool:
        return super().is_live(claim._replace(history=self.history))


class TakesMissingClaimsForGood(MemoryDatabase):
    def is_live(self, claim: Claim) -> bool:
        return (claim.group, claim.partition) not in self.state.claims or super().is_live(claim)


class ClaimsWithoutLock(MemoryDatabase):
    async def writers_gone(self, group: str, partition: Partition, *, end: bool) -> None:
        pass


class LowersProgress(MemoryClaims):
    async def save_progress(self, progress: Mapping[Claim, Progress]) -> dict[Partition, int]:
        for claim in progress:
            if self._database.is_live(claim):
                self._database.state.progress.pop((claim.group, claim.partition), None)
        return await super().save_progress(progress)


class BeginsOnlyUpwards(MemoryClaims):
    async def begin(self, claim: Claim, start: int) -> None:
        now = await self.next_offset(claim.group, claim.partition)
        await super().begin(claim, max(start, now or 0))


class ForgetsTheTopic(MemoryClaims):
    async def begin(self, claim: Claim, start: int) -> None:
        await super().begin(claim._replace(topic_id=None), start)


class LosesTheTopicOnTheWay(MemoryClaims):
    async def save_progress(self, progress: Mapping[Claim, Progress]) -> dict[Partition, int]:
        saved = await super().save_progress(progress)
        table = self._database.state.progress
        table.update({place: far._replace(topic_id=None) for place, far in table.items()})
        return saved


class KeepsTheEpoch(MemoryClaims):
    async def claim(self, group: str, partition: Partition, owner: str) -> Claim:
        old = self._database.state.claims.get((group, partition))
        claim = await super().claim(group, partition, owner)
        if old is not None and old.owner == owner:
            self._database.state.claims[group, partition] = old
            return claim._replace(epoch=old.epoch, claim_id=old.claim_id)
        return claim


class DoesNotCheckTheBase(MemoryStore):
    def _applies(self, change: ChangeSet) -> bool:
        row = self._database.state.documents.get(change.key)
        return super()._applies(replace(change, base=row.stored if row else None))


class ComparesRevisionsOnly(MemoryStore):
    def _applies(self, change: ChangeSet) -> bool:
        row = self._database.state.documents.get(change.key)
        base, stored = change.base, row.stored if row else None
        if base is not None and stored is not None and base.revision == stored.revision:
            change = replace(change, base=stored)
        return super()._applies(change)


class DoesNotCheckTheRank(MemoryStore):
    def _applies(self, change: ChangeSet) -> bool:
        row = self._database.state.documents.get(change.key)
        return (change.base is None) == (row is None)


class DoesNotCheckTheScope(MemoryStore):
    def _scope_version(self, key: DocumentKey) -> int | None:
        return None


class ForgetsToRemoveChunks(MemoryStore):
    def _write(self, write: Write) -> None:
        super()._write(write._replace(change=replace(write.change, remove=())))


class CommitsEachWrite(MemoryStore):
    async def apply(self, writes: Sequence[Write]) -> list[Verdict]:
        return [(await super(CommitsEachWrite, self).apply([write]))[0] for write in writes]


class FencesTheWholeCall(MemoryStore):
    async def apply(self, writes: Sequence[Write]) -> list[Verdict]:
        if not all(self._database.is_live(write.claim) for write in writes):
            return [Verdict.FENCED] * len(writes)
        return await super().apply(writes)


class SweepsTheBarrierToo(MemoryStore):
    def _sweep(self, key: DocumentKey, row: DocumentRow) -> None:
        del self._database.state.documents[key]


class SweepsAnybodys(MemoryStore):
    async def delete_scope(self, claim: Claim, scope: ScopeDeleted, rank: Rank) -> Verdict:
        for key, row in list(self._database.state.documents.items()):
            if (row.stored.version or 0) <= scope.version:
                self._sweep(key, row)
        return await super().delete_scope(claim, scope, rank)


class LosesWhatALateBarrierKeeps(MemoryStore):
    def _write(self, write: Write) -> None:
        super()._write(write._replace(change=replace(write.change, keeps_row=False)))


class AnswersInTheOrderOfKeys(MemoryStore):
    async def read(self, queries: Sequence[Query]) -> list[Base]:
        return await super().read(sorted(queries, key=lambda query: query.key))


class RecordsWithoutFence(MemoryLedger):
    async def record(self, letters: Sequence[DeadLetter]) -> list[Recorded | None]:
        return self._record(letters, frozenset(letter.claim for letter in letters))


class ForgetsWhenItWasFirst(MemoryLedger):
    async def record(self, letters: Sequence[DeadLetter]) -> list[Recorded | None]:
        found = await super().record(letters)
        return [one and one._replace(first_seen_ms=one.last_seen_ms) for one in found]


class CountsEachLetterOfARecord(MemoryLedger):
    def _record(
        self, letters: Sequence[DeadLetter], live: frozenset[Claim]
    ) -> list[Recorded | None]:
        each = super()._record
        return [one for letter in letters for one in each([letter], live)]


class DropsFacts(MemoryLedger):
    async def record(self, letters: Sequence[DeadLetter]) -> list[Recorded | None]:
        return await super().record([replace(one, facts=NO_FACTS) for one in letters])


class MakesPendingAgain(MemoryLedger):
    async def record(self, letters: Sequence[DeadLetter]) -> list[Recorded | None]:
        recorded = await super().record(letters)
        rows = self._database.state.letters
        rows.update({place: row._replace(state="pending") for place, row in rows.items()})
        return recorded


class MarksEveryGroup(MemoryLedger):
    async def mark_published(self, group: str, places: Sequence[LetterPlace]) -> None:
        for other, _ in list(self._database.state.claims):
            await super().mark_published(other, places)


class MarksWhateverTopicThereIs(MemoryLedger):
    async def mark_published(self, group: str, places: Sequence[LetterPlace]) -> None:
        both = [place._replace(incarnation=one) for place in places for one in (0, 1)]
        await super().mark_published(group, both)


class PublishesAtOnce(MemoryLedger):
    async def record(self, letters: Sequence[DeadLetter]) -> list[Recorded | None]:
        recorded = await super().record(letters)
        rows = self._database.state.letters
        rows.update({place: row._replace(state="published") for place, row in rows.items()})
        return recorded


class EndsWhateverThereIs(MemoryCrashes):
    async def end(self, claims: Several[Claim]) -> None:
        crashes = self._database.state.crashes
        crashes.update({place: entry._replace(ended=True) for place, entry in crashes.items()})


class ForgetsTheMark(MemoryCrashes):
    async def mark(self, claim: Claim, alone: Alone | None) -> None:
        await super().mark(claim, None)


class MarksForAnybody(MemoryCrashes):
    async def mark(self, claim: Claim, alone: Alone | None) -> None:
        crashes, place = self._database.state.crashes, (claim.group, claim.partition)
        crashes[place] = crashes[place]._replace(alone=alone)


class CountsARepeatedBegin(MemoryCrashes):
    async def begin(self, claim: Claim, owner: str, start: int) -> CrashEntry:
        crashes, place = self._database.state.crashes, (claim.group, claim.partition)
        if place in crashes:
            crashes[place] = crashes[place]._replace(claim_id=UUID(int=1 << 99))
        return await super().begin(claim, owner, start)


class ForgetsTheWordWhenHeldAgain(MemoryHolds):
    async def hold(self, claim: Claim, problem: str) -> None:
        self._database.state.holds.pop((claim.group, claim.partition), None)
        await super().hold(claim, problem)


class ResumesByLifting(MemoryHolds):
    async def resume(self, group: str, partition: Partition) -> bool:
        return self._database.state.holds.pop((group, partition), None) is not None


class LiftsForAnybody(MemoryHolds):
    async def lift(self, claim: Claim) -> None:
        self._database.state.holds.pop((claim.group, claim.partition), None)


class KnowsOfEveryTenant(MemoryPoisons):
    async def known(self, keys: Sequence[PoisonKey]) -> dict[PoisonKey, Poison]:
        poisons = self._database.state.poisons
        rows = {key[1:]: poison for key, poison in poisons.items()}
        return {key: rows[key[1:]] for key in keys if key[1:] in rows}


class KnowsOfEveryModel(MemoryPoisons):
    async def known(self, keys: Sequence[PoisonKey]) -> dict[PoisonKey, Poison]:
        poisons = self._database.state.poisons
        rows = {(key.tenant, key.chunk_hash): poison for key, poison in poisons.items()}
        places = {key: (key.tenant, key.chunk_hash) for key in keys}
        return {key: rows[place] for key, place in places.items() if place in rows}


class KeepsTheFirstRefusal(MemoryPoisons):
    async def remember(self, refusals: Mapping[PoisonKey, Refusal]) -> None:
        known = await self.known(list(refusals))
        new = {key: refusal for key, refusal in refusals.items() if key not in known}
        await super().remember(new)


class ForgetsTheWholeTenant(MemoryPoisons):
    async def forget(self, keys: Sequence[PoisonKey]) -> None:
        tenants = {key.tenant for key in keys}
        poisons = self._database.state.poisons
        await super().forget([key for key in poisons if key.tenant in tenants])


class NeverForgets(MemoryPoisons):
    async def forget(self, keys: Sequence[PoisonKey]) -> None:
        pass


class TellsNobodyOfPoison(MemoryStore):
    async def read(self, queries: Sequence[Query]) -> list[Base]:
        return [replace(base, has_poison=False) for base in await super().read(queries)]


class TellsAllOfPoison(MemoryStore):
    async def read(self, queries: Sequence[Query]) -> list[Base]:
        poisons = self._database.state.poisons
        found = await super().read(queries)
        return [replace(base, has_poison=bool(poisons)) for base in found]


class OverwritesACollection(MemoryCatalog):
    async def create(self, collection: Collection) -> Collection:
        self._database.state.collections.pop(collection.name, None)
        return await super().create(collection)


class ForgetsTheOrderOfNames(MemoryCatalog):
    async def collections(self) -> list[Collection]:
        return sorted(await super().collections(), key=lambda found: found.id)


class GivesEveryCollectionOneId(MemoryCatalog):
    async def create(self, collection: Collection) -> Collection:
        created = replace(await super().create(collection), id=1)
        self._database.state.collections[collection.name] = created
        return created


# Not every exception: a check that cannot run says nothing. AttributeError: no row, where one
# is expected.
FAILURES = (
    AssertionError,
    AttributeError,
    WorkerError,
    TimeoutError,
    ExceptionGroup,
    pytest.fail.Exception,
)

DATABASES = (
    ComparesNumbersOnly,
    IgnoresHistory,
    TakesMissingClaimsForGood,
)
PLANTED = [
    *((suite, "database", bug) for suite in ("claims", "store", "ledger") for bug in DATABASES),
    ("claims", "database", ClaimsWithoutLock),
    ("claims", "claims", LowersProgress),
    ("claims", "claims", BeginsOnlyUpwards),
    ("claims", "claims", KeepsTheEpoch),
    ("claims", "claims", ForgetsTheTopic),
    ("claims", "claims", LosesTheTopicOnTheWay),
    *((suite, "database", bug) for suite in ("crashes", "holds") for bug in DATABASES),
    ("crashes", "crashes", EndsWhateverThereIs),
    ("crashes", "crashes", ForgetsTheMark),
    ("crashes", "crashes", MarksForAnybody),
    ("crashes", "crashes", CountsARepeatedBegin),
    ("holds", "holds", ForgetsTheWordWhenHeldAgain),
    ("holds", "holds", ResumesByLifting),
    ("holds", "holds", LiftsForAnybody),
    ("store", "store", DoesNotCheckTheBase),
    ("store", "store", ComparesRevisionsOnly),
    ("store", "store", DoesNotCheckTheRank),
    ("store", "store", DoesNotCheckTheScope),
    ("store", "store", ForgetsToRemoveChunks),
    ("store", "store", CommitsEachWrite),
    ("store", "store", FencesTheWholeCall),
    ("store", "store", SweepsTheBarrierToo),
    ("store", "store", SweepsAnybodys),
    ("store", "store", LosesWhatALateBarrierKeeps),
    ("store", "store", AnswersInTheOrderOfKeys),
    ("ledger", "ledger", RecordsWithoutFence),
    ("ledger", "ledger", ForgetsWhenItWasFirst),
    ("ledger", "ledger", CountsEachLetterOfARecord),
    ("ledger", "ledger", DropsFacts),
    ("ledger", "ledger", MakesPendingAgain),
    ("ledger", "ledger", MarksEveryGroup),
    ("ledger", "ledger", MarksWhateverTopicThereIs),
    ("ledger", "ledger", PublishesAtOnce),
    ("poisons", "poisons", KnowsOfEveryTenant),
    ("poisons", "poisons", KnowsOfEveryModel),
    ("poisons", "poisons", KeepsTheFirstRefusal),
    ("poisons", "poisons", ForgetsTheWholeTenant),
    ("poisons", "poisons", NeverForgets),
    ("poisons", "store", TellsNobodyOfPoison),
    ("poisons", "store", TellsAllOfPoison),
    ("catalog", "catalog", OverwritesACollection),
    ("catalog", "catalog", ForgetsTheOrderOfNames),
    ("catalog", "catalog", GivesEveryCollectionOneId),
]


async def red_checks(suite: str, part: str = "", bug: type | None = None) -> list[str]:
    """Run a suite's checks, each in a fresh memory; return the names of those that fail."""
    contract, red = SUITES[suite](), []
    for name, check in inspect.getmembers(contract, inspect.iscoroutinefunction):
        if list(inspect.signature(check).parameters) != ["world"]:
            continue
        world = MemoryWorld(bug() if bug and part == "database" else None)
        if bug and part != "database":
            setattr(world, part, bug(world.database))
        try:
            async with asyncio.timeout(5):
                await world.prepare()
                await check(world)
        except FAILURES:
            red.append(name)
    return red


@pytest.mark.parametrize(
    ("suite", "part", "bug"), PLANTED, ids=[f"{row[0]}-{row[2].__name__}" for row in PLANTED]
)
async def test_a_planted_bug_turns_its_suite_red(suite: str, part: str, bug: type) -> None:
    assert await red_checks(suite, part, bug)


@pytest.mark.parametrize("suite", SUITES)
async def test_the_same_checks_are_green_without_a_bug(suite: str) -> None:
    assert await red_checks(suite) == []
