"""The contract of the port `Ledger`, on memory and on PostgreSQL."""

from uuid import UUID

import pytest

from schemas.dead_letter import Facts, Reason
from tests.support.store_changes import GROUP, PARTITION, at
from tests.support.store_letters import letter
from tests.support.store_worlds import MemoryWorld, PostgresWorld, World
from worker.core.model import Partition
from worker.ports import DeadLetter, LetterPlace, Recorded


async def recorded(world: World, found: DeadLetter) -> Recorded:
    (answer,) = await world.ledger.record([found])
    assert answer is not None
    return answer


class LedgerContract:
    """What the ledger promises."""

    async def test_a_letter_is_pending_until_it_is_published(self, world: World) -> None:
        claim = await world.claim()
        found = letter(claim, 7, detail="why", tenant="tenant", version=3, origin=at(2))
        await recorded(world, found)
        (row,) = await world.letters()
        assert row == (
            *(GROUP, PARTITION, 0, 7, "pending", 1),
            *("undecodable", "why", Facts(), "tenant", 3, at(2)),
        )
        await world.ledger.mark_published(GROUP, [LetterPlace(*found.record.position)])
        assert await world.letters() == [row._replace(state="published")]

    async def test_a_stale_claim_records_nothing(self, world: World) -> None:
        old = await world.claim()
        claim = await world.claim()
        stale = [
            old,
            claim._replace(claim_id=UUID(int=1 << 100)),
            claim._replace(history="of another server"),
            claim._replace(group="nobody's"),
        ]
        letters = [letter(other, number) for number, other in enumerate(stale)]
        assert await world.ledger.record(letters) == [None] * len(stale)
        assert await world.letters() == []

    async def test_a_fenced_letter_keeps_no_other_from_being_recorded(
        self, world: World
    ) -> None:
        old, other = await world.claim(), await world.claim(Partition("documents", 1))
        new = await world.claim()
        letters = [letter(old, 1), letter(other, 2), letter(new, 3)]
        fenced, *recorded = await world.ledger.record(letters)
        assert (fenced, [one.attempts for one in recorded]) == (None, [1, 1])
        assert [row.offset for row in await world.letters()] == [3, 2]

    async def test_recording_again_for_the_same_reason_counts_and_keeps_the_state(
        self, world: World
    ) -> None:
        claim = await world.claim()
        await recorded(world, letter(claim, 7, detail="first"))
        await world.ledger.mark_published(GROUP, [LetterPlace(*PARTITION, 7)])
        claim = await world.claim()
        assert (await recorded(world, letter(claim, 7, detail="again"))).is_published
        (row,) = await world.letters()
        assert (row.state, row.attempts, row.detail) == ("published", 2, "again")

    async def test_recording_again_for_another_reason_asks_for_another_letter(
        self, world: World
    ) -> None:
        claim = await world.claim()
        await recorded(world, letter(claim, 7, facts=Facts(400, "req_1")))
        await world.ledger.mark_published(GROUP, [LetterPlace(*PARTITION, 7)])
        claim = await world.claim()
        facts = Facts(sqlstate="23514", constraint="short")
        again = letter(claim, 7, reason=Reason.OVERSIZE, detail="again", facts=facts)
        assert not (await recorded(world, again)).is_published
        (row,) = await world.letters()
        assert (row.state, row.attempts) == ("pending", 2)
        assert (row.reason, row.detail, row.facts) == ("oversize", "again", facts)

    async def test_a_record_that_is_met_again_keeps_the_time_when_it_was_first_recorded(
        self, world: World
    ) -> None:
        first = await recorded(world, letter(await world.claim(), 7))
        assert (first.attempts, first.is_published) == (1, False)
        assert first.first_seen_ms == first.last_seen_ms
        await world.next_millisecond()
        again = await recorded(world, letter(await world.claim(), 7))
        assert (again.attempts, again.is_published) == (2, False)
        assert again.first_seen_ms == first.first_seen_ms
        assert again.last_seen_ms > first.last_seen_ms

    async def test_two_letters_of_one_record_are_one_row(self, world: World) -> None:
        claim = await world.claim()
        letters = [letter(claim, 7, detail="first"), letter(claim, 7, detail="last")]
        first, last = await world.ledger.record(letters)
        assert first == last
        (row,) = await world.letters()
        assert (row.detail, row.attempts, last.attempts) == ("last", 1, 1)

    async def test_texts_that_postgresql_refuses_are_recorded_all_the_same(
        self, world: World
    ) -> None:
        claim = await world.claim()
        found = letter(
            claim,
            detail="nul \0, half \ud800, " + "long " * 1_000,
            tenant="\0",
            collection="\ud800",
            document_id="\0",
            traceparent="\0",
            version=2**63,
        )
        await recorded(world, found)
        (row,) = await world.letters()
        assert row.detail.startswith("nul \ufffd, half ?, long")
        assert len(row.detail) < 4_000
        assert (row.tenant, row.version) == ("\ufffd", None)

    async def test_publishing_marks_only_the_rows_that_are_named(self, world: World) -> None:
        claim, other = await world.claim(), await world.claim(group="other")
        letters = [letter(claim, 1), letter(claim, 2), letter(other, 1)]
        await world.ledger.record(letters)
        places = [
            LetterPlace(*PARTITION, 1),
            LetterPlace(*PARTITION, 99),
            LetterPlace("x", 0, 2),
        ]
        await world.ledger.mark_published(GROUP, places)
        await world.ledger.mark_published(GROUP, [])
        states = [(row.group, row.offset, row.state) for row in await world.letters()]
        assert states == [
            (GROUP, 1, "published"),
            (GROUP, 2, "pending"),
            ("other", 1, "pending"),
        ]

    async def test_letters_of_a_topic_made_anew_are_rows_of_their_own(
        self, world: World
    ) -> None:
        await world.ledger.record([letter(await world.claim(), 1)])
        await world.renew_topic(PARTITION, 1)
        await world.ledger.record([letter(await world.claim(), 1)])
        for published in (0, 1):
            place = LetterPlace(*PARTITION, 1, incarnation=published)
            await world.ledger.mark_published(GROUP, [place])
            states = [row.state for row in await world.letters()]
            assert states == ["published", "published" if published else "pending"]

    async def test_nothing_to_record_records_nothing(self, world: World) -> None:
        assert await world.ledger.record([]) == []


class TestLedgerInMemory(LedgerContract):
    @pytest.fixture
    def world(self, in_memory: MemoryWorld) -> World:
        return in_memory


@pytest.mark.real
class TestLedgerOnPostgres(LedgerContract):
    @pytest.fixture
    def world(self, on_postgres: PostgresWorld) -> World:
        return on_postgres
