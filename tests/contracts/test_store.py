"""The contract of the port `Store`, on memory and on PostgreSQL."""

import asyncio
from dataclasses import replace
from uuid import UUID

import pytest

from schemas.dead_letter import Reason
from schemas.events import ScopeDeleted
from tests.support.store_changes import (
    ARTICLES,
    GROUP,
    KEY,
    PARTITION,
    at,
    based_on,
    chunk,
    delete,
    key,
    upsert,
    vector,
    vector_of,
    write,
)
from tests.support.store_letters import letter
from tests.support.store_worlds import MemoryWorld, PostgresWorld, Row, World, floats, verdicts
from worker.core.model import Base, Claim, Partition, Rank, StoredChunk
from worker.errors import PermanentError
from worker.ports import Query, Verdict, Write

APPLIED, BASE_CHANGED, FENCED = Verdict.APPLIED, Verdict.BASE_CHANGED, Verdict.FENCED


def scope(version: int, *, collection: str | None = None, tenant: str = "tenant"):
    named = {} if collection is None else {"collection": collection}
    return ScopeDeleted(tenant=tenant, version=version, **named)


async def delete_scope(world: World, claim: Claim, version: int, **reach: str) -> Verdict:
    rank = Rank(version, at(1_000))
    return await world.store.delete_scope(claim, scope(version, **reach), rank)


class StoreContract:
    """What the store promises."""

    async def test_what_was_never_stored_has_no_row(self, world: World) -> None:
        assert await world.base() == Base()
        assert await world.base(key(collection="unknown")) == Base()
        assert await world.store.read([]) == []

    async def test_an_upsert_is_read_back_with_its_chunks_in_order(self, world: World) -> None:
        claim = await world.claim()
        texts = ["one", "two", "three"]
        assert await world.put(claim, version=7, offset=3, texts=texts) is APPLIED
        document = (await world.base()).document
        assert (document.revision, document.version, document.order) == (1, 7, at(3))
        assert (document.barrier, document.deleted) == (None, False)
        assert document.content_hash == b"one\ntwo\nthree"
        assert document.chunks == tuple(
            StoredChunk(found.id, found.seq, found.start, found.end)
            for found in (chunk(text, seq) for seq, text in enumerate(texts))
        )

    async def test_texts_and_vectors_are_stored_as_they_are(self, world: World) -> None:
        claim = await world.claim()
        texts = ["", "ünïcödé 🦜", 'it\'s a "quote" \\ \n\t{}', "x" * 10_000]
        assert await world.put(claim, version=1, texts=texts) is APPLIED
        chunks = await world.chunks()
        assert [found.content for found in chunks] == texts
        assert [found.vector for found in chunks] == [
            floats(vector_of(text, ARTICLES.dimensions)) for text in texts
        ]

    async def test_the_other_columns_are_stored_as_they_are(self, world: World) -> None:
        claim = await world.claim()
        row = Row({"a": [1, "ü"]}, "text/markdown", "0af7651916cd43dd8448eb211c80319c", -1)
        columns = {
            "metadata": '{"a": [1, "ü"]}'.encode(),
            "content_type": row.content_type,
            "trace_id": row.trace_id,
        }
        for occurred_at_ms in (-1, 0, 1_700_000_000_123, 253_402_300_799_999):
            await world.put(
                claim, version=occurred_at_ms + 2, occurred_at_ms=occurred_at_ms, **columns
            )
            assert await world.row() == row._replace(occurred_at_ms=occurred_at_ms)
        await world.put(claim, version=2**63 - 1)
        assert await world.row() == Row(None, None, None, None)

    async def test_answers_come_in_the_order_of_the_questions(self, world: World) -> None:
        claim = await world.claim()
        for number in (1, 2, 3):
            await world.put(claim, of=key(f"d{number}"), version=number, texts=[f"t{number}"])
        names = ["d3", "absent", "d1", "d3", "d2"]
        keys = [key(name) for name in names]
        keys.insert(2, key("d1", collection="unknown"))
        keys.insert(3, key("d1", tenant="other"))
        bases = await world.store.read([Query(found, GROUP) for found in keys])
        versions = [base.document and base.document.version for base in bases]
        assert versions == [3, None, None, None, 1, 3, 2]

    async def test_documents_of_two_collections_stand_alone(self, world: World) -> None:
        claim = await world.claim()
        named = replace(ARTICLES, name="books", dimensions=3, storage="vector")
        books = await world.catalog.create(named)
        of = key(collection="books")
        changes = [
            upsert(books, Base(), of=of, version=2, texts=["same"]),
            upsert(world.articles, Base(), version=1, texts=["same"]),
        ]
        assert await verdicts(world, claim, changes) == [APPLIED, APPLIED]
        bases = await world.store.read([Query(of, GROUP), Query(KEY, GROUP)])
        assert [base.document.version for base in bases] == [2, 1]
        assert [found.vector for found in await world.chunks(of)] == [
            floats(vector_of("same", 3))
        ]
        assert await world.drop(claim, version=3) is APPLIED
        assert await world.texts(of) == ["same"]

    async def test_an_edit_rewrites_only_what_changed(self, world: World) -> None:
        claim = await world.claim()
        await world.put(claim, version=1, texts=["one", "two", "three"])
        await world.put(claim, version=2, offset=1, texts=["zero", "three", "one"])
        assert [(found.seq, found.content) for found in await world.chunks()] == [
            (0, "zero"),
            (1, "three"),
            (2, "one"),
        ]
        document = (await world.base()).document
        assert (document.revision, document.version) == (2, 2)

    async def test_equal_chunks_of_a_document_are_told_apart(self, world: World) -> None:
        claim = await world.claim()
        twins = (chunk("same", 0), chunk("same", 1, occurrence=1))
        change = replace(upsert(world.articles, Base(), version=1), insert=twins)
        assert await verdicts(world, claim, [change]) == [APPLIED]
        assert await world.texts() == ["same", "same"]
        base = await world.base()
        change = replace(
            upsert(world.articles, base, version=2), move=(replace(twins[1], seq=0),)
        )
        change = replace(change, remove=(twins[0].id,))
        assert await verdicts(world, claim, [change]) == [APPLIED]
        assert [stored.id for stored in (await world.base()).document.chunks] == [twins[1].id]

    async def test_a_moved_chunk_keeps_its_text_and_vector(self, world: World) -> None:
        claim = await world.claim()
        await world.put(claim, version=1, texts=["text"])
        moved = replace(chunk("text", 5), heading="Title", start=1, end=9)
        change = replace(
            upsert(world.articles, await world.base(), version=2, texts=["text"]), move=(moved,)
        )
        assert await verdicts(world, claim, [change]) == [APPLIED]
        (found,) = await world.chunks()
        assert found == (5, "text", "Title", 1, 9, floats(vector_of("text", 2)))

    async def test_where_no_row_was_read_a_row_is_not_overwritten(self, world: World) -> None:
        claim = await world.claim()
        change = upsert(world.articles, Base(), version=2, texts=["new"])
        await world.put(claim, version=1, texts=["old"])
        assert await verdicts(world, claim, [change]) == [BASE_CHANGED]
        assert await world.texts() == ["old"]

    async def test_a_row_that_has_moved_on_is_not_overwritten(self, world: World) -> None:
        """The torn change set (protocol, C6)."""
        claim = await world.claim()
        await world.put(claim, version=1, texts=["x", "y"])
        late = upsert(world.articles, await world.base(), version=3, offset=2, texts=["x", "w"])
        await world.put(claim, version=2, offset=1, texts=["y", "z"])
        assert await verdicts(world, claim, [late]) == [BASE_CHANGED]
        assert await world.texts() == ["y", "z"]
        document = (await world.base()).document
        assert (document.revision, document.version) == (2, 2)

    async def test_a_row_that_is_gone_is_not_made_again_by_half(self, world: World) -> None:
        claim = await world.claim()
        await world.put(claim, version=1, texts=["x", "y"])
        late = upsert(world.articles, await world.base(), version=20, texts=["x", "w"])
        await delete_scope(world, claim, 10)
        assert await verdicts(world, claim, [late]) == [BASE_CHANGED]
        assert (await world.base()).document is None
        assert await world.texts() == []

    async def test_a_row_made_anew_is_not_taken_for_the_old_one(self, world: World) -> None:
        """Both have the same revision: that alone does not name a base."""
        claim = await world.claim()
        await world.put(claim, version=1, texts=["x", "y"])
        late = upsert(world.articles, await world.base(), version=20, offset=3, texts=["x"])
        await delete_scope(world, claim, 10)
        await world.put(claim, version=15, offset=2, texts=["z"])
        assert (await world.base()).document.revision == late.base.revision
        assert await verdicts(world, claim, [late]) == [BASE_CHANGED]
        assert await world.texts() == ["z"]

    async def test_the_rank_decides_beside_the_base(self, world: World) -> None:
        """Two independent walls: an older change on the right base is refused too."""
        claim = await world.claim()
        await world.put(claim, version=5, order=at(10, timestamp_ms=100), texts=["stored"])
        base = await world.base()
        older = [
            (4, at(11, timestamp_ms=200)),
            (5, at(10, timestamp_ms=100)),
            (5, at(9, timestamp_ms=200)),
            (5, at(99, partition=1, timestamp_ms=99)),
            (5, at(9, topic="a", timestamp_ms=100)),
        ]
        for version, order in older:
            change = upsert(world.articles, base, version=version, order=order, texts=["late"])
            assert await verdicts(world, claim, [change]) == [BASE_CHANGED], (version, order)
            change = delete(world.articles, base, version=version, order=order)
            assert await verdicts(world, claim, [change]) == [BASE_CHANGED], (version, order)
        assert await world.texts() == ["stored"]
        assert (await world.base()) == base

    @staticmethod
    def newer_orders():
        return [
            at(11, timestamp_ms=0),
            at(0, incarnation=1),
            at(0, partition=1, timestamp_ms=101),
            at(0, partition=1, timestamp_ms=100),
            at(0, topic="z", timestamp_ms=100),
        ]

    async def test_of_equal_versions_the_later_record_stands(self, world: World) -> None:
        claim = await world.claim()
        for number, order in enumerate(self.newer_orders()):
            of = key(f"d{number}")
            await world.put(claim, of=of, version=5, order=at(10, timestamp_ms=100))
            assert await world.put(claim, of=of, version=5, order=order) is APPLIED, order
            assert (await world.base(of)).document.order == order

    async def test_a_delete_leaves_a_tombstone_without_chunks(self, world: World) -> None:
        claim = await world.claim()
        await world.put(claim, version=1, texts=["one", "two"], metadata=b"{}")
        assert await world.drop(claim, version=2, offset=1) is APPLIED
        document = (await world.base()).document
        assert (document.version, document.deleted, document.chunks) == (2, True, ())
        assert await world.chunks() == []
        assert await world.row() == Row(None, None, None, None)

    async def test_a_delete_of_what_was_never_stored_keeps_older_upserts_out(
        self, world: World
    ) -> None:
        claim = await world.claim()
        assert await world.drop(claim, version=5, offset=0) is APPLIED
        assert await world.put(claim, version=4, offset=1, texts=["late"]) is BASE_CHANGED
        assert await world.texts() == []
        assert await world.put(claim, version=6, offset=2, texts=["new"]) is APPLIED
        assert await world.texts() == ["new"]

    async def test_a_delete_without_version_beats_what_stands_before_it(
        self, world: World
    ) -> None:
        """Whatever the versions are (protocol, C8 and C9)."""
        claim = await world.claim()
        await world.put(claim, version=5, offset=0, texts=["a"])
        assert await world.drop(claim, version=None, offset=10) is APPLIED
        document = (await world.base()).document
        assert (document.version, document.order, document.barrier) == (None, at(10), at(10))
        assert await world.put(claim, version=99, offset=9, texts=["b"]) is BASE_CHANGED
        assert await world.put(claim, version=3, offset=11, texts=["c"]) is APPLIED
        document = (await world.base()).document
        assert (document.version, document.barrier) == (3, at(10))
        assert await world.put(claim, version=99, offset=9, texts=["d"]) is BASE_CHANGED
        assert await world.texts() == ["c"]

    async def test_a_delete_without_version_of_what_was_never_stored_is_kept(
        self, world: World
    ) -> None:
        claim = await world.claim()
        assert await world.drop(claim, version=None, offset=10) is APPLIED
        assert await world.put(claim, version=9, offset=5, texts=["late"]) is BASE_CHANGED
        assert await world.drop(claim, version=9, offset=6) is BASE_CHANGED
        document = (await world.base()).document
        assert (document.deleted, document.barrier, document.revision) == (True, at(10), 1)

    async def test_a_late_delete_without_version_only_raises_the_barrier(
        self, world: World
    ) -> None:
        claim = await world.claim()
        columns = {"metadata": b'{"a":1}', "content_type": "text/plain", "occurred_at_ms": 5}
        await world.put(claim, version=5, offset=10, texts=["stays"], **columns)
        before, row = (await world.base()).document, await world.row()
        assert await world.drop(claim, version=None, offset=7) is APPLIED
        after = (await world.base()).document
        assert after == replace(before, revision=2, barrier=at(7))
        assert (await world.row(), await world.texts()) == (row, ["stays"])
        assert await world.drop(claim, version=None, offset=6) is BASE_CHANGED
        assert await world.put(claim, version=99, offset=7, texts=["late"]) is BASE_CHANGED

    async def test_a_stale_claim_writes_nothing(self, world: World) -> None:
        old = await world.claim()
        claim = await world.claim()
        stale = [
            old,
            claim._replace(epoch=claim.epoch + 1),
            claim._replace(claim_id=UUID(int=1 << 100)),
            claim._replace(history="of another server"),
            claim._replace(partition=Partition("nobody's", 0)),
        ]
        change = upsert(world.articles, Base(), version=1, texts=["zombie"])
        for other in stale:
            assert await world.store.apply([write(change, other)]) == [FENCED]
            assert await delete_scope(world, other, 10) is FENCED
        assert await world.base() == Base()
        assert await world.chunks() == []

    async def test_fenced_documents_drop_out_and_the_others_go_on(self, world: World) -> None:
        old, other = await world.claim(), await world.claim(Partition("documents", 1))
        new = await world.claim()
        writes = [
            write(upsert(world.articles, Base(), of=key(name), version=1, texts=[name]), claim)
            for name, claim in (("d", old), ("c", new), ("b", other), ("a", old))
        ]
        assert await world.store.apply(writes) == [FENCED, APPLIED, APPLIED, FENCED]
        texts = [await world.texts(key(name)) for name in "abcd"]
        assert texts == [[], ["b"], ["c"], []]

    async def test_a_refused_document_keeps_no_other_from_being_written(
        self, world: World
    ) -> None:
        claim = await world.claim()
        await world.put(claim, of=key("b"), version=1, texts=["old"])
        base = await world.base(key("b"))
        await world.put(claim, of=key("b"), version=2, texts=["newer"])
        changes = [
            upsert(world.articles, base, of=key("b"), version=3, texts=["torn"]),
            upsert(world.articles, Base(), of=key("c"), version=1, texts=["c"]),
            upsert(world.articles, Base(), of=key("b"), version=4, texts=["torn"]),
            upsert(world.articles, Base(), of=key("a"), version=1, texts=["a"]),
        ]
        answer = [BASE_CHANGED, APPLIED, BASE_CHANGED, APPLIED]
        assert await verdicts(world, claim, changes) == answer
        texts = [await world.texts(key(name)) for name in "abc"]
        assert texts == [["a"], ["newer"], ["c"]]

    async def test_of_two_writes_of_one_key_the_first_applies(self, world: World) -> None:
        claim = await world.claim()
        changes = [
            upsert(world.articles, Base(), version=number, texts=[f"v{number}"])
            for number in (1, 2)
        ]
        assert await verdicts(world, claim, changes) == [APPLIED, BASE_CHANGED]
        assert await world.texts() == ["v1"]

    async def test_nothing_to_apply_applies_nothing(self, world: World) -> None:
        assert await world.store.apply([]) == []

    async def test_a_value_that_is_refused_writes_nothing_at_all(self, world: World) -> None:
        claim = await world.claim()
        good = upsert(world.articles, Base(), of=key("a"), version=1, texts=["good"])
        plain = upsert(world.articles, Base(), version=1, texts=["text"])
        (found,) = plain.insert
        refused = [
            write(replace(plain, insert=(replace(found, content="nul \0"),)), claim),
            write(replace(plain, insert=(replace(found, content="half \ud800"),)), claim),
            write(replace(plain, insert=(replace(found, heading="\0"),)), claim),
            write(replace(plain, metadata=rb'{"a": "\u0000"}'), claim),
            write(replace(plain, content_type="\0"), claim),
            write(replace(plain, key=key("nul \0")), claim),
            Write(plain, claim, {found.id: vector(1, 2, 3)}),
            Write(plain, claim, {found.id: vector(1)}),
            Write(plain, claim, {found.id: vector(1, 70_000)}),
            Write(plain, claim, {found.id: vector(1, float("nan"))}),
            Write(plain, claim, {found.id: vector(1, float("inf"))}),
        ]
        states = []
        for bad in refused:
            with pytest.raises(PermanentError) as error:
                await world.store.apply([write(good, claim), bad])
            assert error.value.reason is Reason.REJECTED_BY_STORE
            states.append(error.value.facts.sqlstate)
        in_vectors = [None] * 5  # found before PostgreSQL is asked
        assert states == ["22021", "22000", "22021", "22P05", "22021", "22021", *in_vectors]
        assert await world.base(key("a")) == Base()
        assert await world.texts(key("a")) == []
        fine = replace(plain, metadata=rb'{"a": "\\u0000"}')
        assert await verdicts(world, claim, [good, fine]) == [APPLIED, APPLIED]

    async def test_full_precision_vectors_are_refused_where_they_are_not_finite(
        self, world: World
    ) -> None:
        claim = await world.claim()
        named = replace(ARTICLES, name="precise", storage="vector")
        precise = await world.catalog.create(named)
        of = key(collection="precise")
        change = upsert(precise, Base(), of=of, version=1, texts=["text"])
        (found,) = change.insert
        for number in (float("nan"), float("-inf")):
            with pytest.raises(PermanentError):
                await world.store.apply([Write(change, claim, {found.id: vector(1, number)})])
        large = Write(change, claim, {found.id: vector(70_000, 0.5)})
        assert await world.store.apply([large]) == [APPLIED]
        assert [stored.vector for stored in await world.chunks(of)] == [(70_000, 0.5)]

    async def test_repeating_a_write_changes_nothing(self, world: World) -> None:
        """As after a lost answer."""
        claim = await world.claim()
        change = upsert(world.articles, Base(), version=1, texts=["text"])
        assert await verdicts(world, claim, [change]) == [APPLIED]
        base = await world.base()
        assert await verdicts(world, claim, [change]) == [BASE_CHANGED]
        again = based_on(change, base.document)
        assert await verdicts(world, claim, [again]) == [BASE_CHANGED]
        assert await world.base() == base

    async def test_a_scope_delete_removes_what_it_reaches(self, world: World) -> None:
        claim = await world.claim()
        for name, version in (("at", 10), ("below", 3), ("above", 11)):
            await world.put(claim, of=key(name), version=version, texts=[name])
        await world.drop(claim, of=key("deleted"), version=4)
        await world.put(claim, of=key("at", tenant="other"), version=1, texts=["other"])
        assert await delete_scope(world, claim, 10) is APPLIED
        for name in ("at", "below", "deleted"):
            assert await world.base(key(name)) == Base(scope_version=10)
            assert await world.texts(key(name)) == []
        assert await world.texts(key("above")) == ["above"]
        assert await world.texts(key("at", tenant="other")) == ["other"]
        assert (await world.base(key("at", tenant="other"))).scope_version is None

    async def test_a_scope_delete_of_one_collection_leaves_the_others(
        self, world: World
    ) -> None:
        claim = await world.claim()
        books = await world.catalog.create(replace(ARTICLES, name="books"))
        of = key(collection="books")
        change = upsert(books, Base(), of=of, version=1, texts=["book"])
        await verdicts(world, claim, [change])
        await world.put(claim, version=1, texts=["article"])
        assert await delete_scope(world, claim, 10, collection="articles") is APPLIED
        assert await world.texts() == []
        assert await world.texts(of) == ["book"]
        assert (await world.base(of)).scope_version is None
        assert await delete_scope(world, claim, 20) is APPLIED
        assert await world.base(of) == Base(scope_version=20)
        assert (await world.base()).scope_version == 20

    async def test_a_scope_delete_keeps_older_writes_out(self, world: World) -> None:
        claim = await world.claim()
        await delete_scope(world, claim, 10)
        assert await world.put(claim, version=10, offset=2_000, texts=["late"]) is BASE_CHANGED
        assert await world.drop(claim, version=9, offset=2_000) is BASE_CHANGED
        assert await world.put(claim, version=11, offset=5, texts=["new"]) is APPLIED
        assert await world.put(claim, version=10, offset=2_001, texts=["x"]) is BASE_CHANGED
        assert await world.texts() == ["new"]

    async def test_a_scope_delete_waits_for_those_who_write_already(self, world: World) -> None:
        """They may not have seen its tombstone."""
        claim = await world.claim()
        other = await world.claim(PARTITION._replace(number=PARTITION.number + 1))
        async with asyncio.TaskGroup() as tasks:
            async with world.writing(other):
                deleting = tasks.create_task(delete_scope(world, claim, 10))
                await world.until_waiting(deleting)
            assert await deleting is APPLIED

    async def test_a_delete_without_version_is_not_reached_by_a_scope(
        self, world: World
    ) -> None:
        claim = await world.claim()
        await delete_scope(world, claim, 10)
        assert await world.drop(claim, version=None, offset=5) is APPLIED
        await world.put(claim, version=11, offset=9, texts=["new"])
        assert await world.drop(claim, version=None, offset=7) is APPLIED
        assert (await world.base()).document.barrier == at(7)

    async def test_a_scope_delete_leaves_the_barrier_of_a_document(self, world: World) -> None:
        claim = await world.claim()
        await world.drop(claim, version=None, offset=10)
        await world.put(claim, version=3, offset=11, texts=["text"], metadata=b"{}")
        assert await delete_scope(world, claim, 5) is APPLIED
        document = (await world.base()).document
        assert (document.version, document.deleted, document.chunks) == (None, True, ())
        assert (document.order, document.barrier) == (at(10), at(10))
        assert await world.texts() == []
        assert await world.row() == Row(None, None, None, None)
        assert await world.put(claim, version=99, offset=9, texts=["late"]) is BASE_CHANGED
        assert await world.put(claim, version=5, offset=12, texts=["late"]) is BASE_CHANGED
        assert await world.put(claim, version=6, offset=12, texts=["new"]) is APPLIED

    async def test_repeating_a_scope_delete_changes_nothing(self, world: World) -> None:
        claim = await world.claim()
        await world.put(claim, of=key("old"), version=1, texts=["old"])
        assert await delete_scope(world, claim, 10) is APPLIED
        await world.put(claim, of=key("new"), version=11, offset=1, texts=["new"])
        await world.drop(claim, of=key("gone"), version=None, offset=9)
        keys = [key(name) for name in ("old", "new", "gone")]
        before = [await world.base(of) for of in keys]
        assert await delete_scope(world, claim, 10) is APPLIED
        assert await delete_scope(world, claim, 4) is APPLIED
        assert [await world.base(of) for of in keys] == before

    async def test_a_known_dead_letter_is_found_by_its_origin(self, world: World) -> None:
        claim = await world.claim()
        await world.ledger.record([letter(claim, offset=4)])
        known = await world.base(origin=at(4, timestamp_ms=99))
        assert known == Base(origin_known=True)
        for origin in (at(5), at(4, partition=1), at(4, topic="x"), at(4, incarnation=1)):
            assert await world.base(origin=origin) == Base()
        (base,) = await world.store.read([Query(KEY, "other group", at(4))])
        assert base == Base()
        assert await world.base() == Base()


class TestStoreInMemory(StoreContract):
    @pytest.fixture
    def world(self, in_memory: MemoryWorld) -> World:
        return in_memory


@pytest.mark.real
class TestStoreOnPostgres(StoreContract):
    @pytest.fixture
    def world(self, on_postgres: PostgresWorld) -> World:
        return on_postgres
