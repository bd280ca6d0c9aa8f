"""The ledger as operators ask it: selections, groups, counts, dispositions."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from schemas.dead_letter import Facts, Reason, with_replays
from tests.support.store_changes import GROUP, KEY, PARTITION, at, key
from tests.support.store_letters import letter
from tests.support.store_worlds import PostgresWorld, postgres_world
from worker.adapters.pg_dead_letters import PostgresDeadLetters
from worker.core.letters import OPEN, Letter, Selection, State
from worker.core.model import Claim, DocumentKey, Partition, Position, Record
from worker.ports import LetterPlace

pytestmark = pytest.mark.real

ALL = Selection(group=GROUP)
NAMES = {"tenant": KEY.tenant, "collection": KEY.collection, "document_id": KEY.id}


@pytest.fixture
async def world(database):
    async with postgres_world(database) as world:
        yield world


@pytest.fixture
def ledger(world: PostgresWorld) -> PostgresDeadLetters:
    return PostgresDeadLetters(world.database)


async def dead(world: PostgresWorld, claim: Claim, offset: int, **facts: Any) -> None:
    await world.ledger.record([letter(claim, offset, **facts)])
    await world.ledger.mark_published(GROUP, [LetterPlace(*claim.partition, offset)])


async def offsets(ledger: PostgresDeadLetters, **selected: Any) -> list[int]:
    found = await ledger.select(replace(ALL, **selected))
    return [one.position.offset for one in found]


async def only(ledger: PostgresDeadLetters) -> Letter:
    (found,) = await ledger.select(ALL)
    return found


# ---- what is there ----


async def test_a_letter_comes_back_as_it_was_recorded(world, ledger):
    claim = await world.claim()
    headers = tuple(with_replays([], 2))
    record = Record(Position(*PARTITION, 7), 1234, b"tenant/articles/document", b"v", headers)
    found = letter(claim, 7, reason=Reason.REJECTED_INPUT, detail="why", version=3, **NAMES)
    found = replace(found, record=record, origin=at(2), passes=4, traceparent="00-a")
    found = replace(found, facts=Facts(400, "req_1", "23514", "short"))
    await world.ledger.record([found])
    read = await only(ledger)
    assert (read.position, read.timestamp_ms, read.state) == (record.position, 1234, "pending")
    assert (read.reason, read.stage, read.detail) == ("rejected_input", "intake", "why")
    assert (read.document_key, read.version, read.origin) == (KEY, 3, at(2))
    assert (read.key, read.replays, read.passes, read.attempts) == (record.key, 2, 4, 1)
    assert (read.traceparent, read.state_changed_at) == ("00-a", None)
    assert read.facts == found.facts


async def test_a_key_that_no_document_has_is_not_kept(world, ledger):
    claim = await world.claim()
    found = letter(claim, 7)
    for size, kept in ((4610, b"k" * 4610), (4611, None)):
        record = replace(found.record, key=b"k" * size)
        await world.ledger.record([replace(found, record=record)])
        assert (await only(ledger)).key == kept


async def test_recording_again_forgets_no_replay(world, ledger):
    claim = await world.claim()
    await dead(world, claim, 1)
    assert await ledger.begin_replay(await only(ledger), None, None)
    await dead(world, claim, 1)
    assert (await only(ledger)).replays == 1


@pytest.mark.parametrize(
    ("selected", "expected"),
    [
        ({}, [1, 2, 3]),
        ({"group": "other"}, []),
        ({"reasons": ("oversize",)}, [2]),
        ({"reasons": ("oversize", "undecodable")}, [1, 2]),
        ({"tenant": "other"}, [3]),
        ({"collection": "articles"}, [2, 3]),
        ({"document": "document"}, [2, 3]),
        ({"document": "document", "tenant": "tenant"}, [2]),
        ({"key": b"key"}, [1, 2, 3]),
        ({"key": b"other"}, []),
        ({"states": (State.PENDING,)}, [3]),
        ({"states": OPEN}, [1, 2]),
        ({"since": datetime(2020, 1, 1, tzinfo=UTC)}, [1, 2, 3]),
        ({"until": datetime(2020, 1, 1, tzinfo=UTC)}, []),
        ({"positions": (Position(*PARTITION, 2), Position(*PARTITION, 9))}, [2]),
        ({"positions": (Position("documents", 1, 2),)}, []),
        ({"fingerprint": "none"}, []),
    ],
)
async def test_every_filter_restricts(selected, expected, world, ledger):
    claim = await world.claim()
    await dead(world, claim, 1)
    await dead(world, claim, 2, reason=Reason.OVERSIZE, **NAMES)
    other = letter(claim, 3, reason=Reason.REJECTED_INPUT, **NAMES | {"tenant": "other"})
    await world.ledger.record([other])
    assert await offsets(ledger, **selected) == expected


async def test_a_time_is_when_a_letter_was_seen_first(world, ledger):
    claim = await world.claim()
    await dead(world, claim, 1)
    seen = (await only(ledger)).first_seen
    assert await offsets(ledger, since=seen, until=seen + timedelta(seconds=1)) == [1]
    assert await offsets(ledger, until=seen) == []
    assert await offsets(ledger, since=seen + timedelta(seconds=1)) == []


async def test_a_position_means_the_newest_topic_of_that_name(world, ledger):
    await dead(world, await world.claim(), 1)
    await world.renew_topic(PARTITION, 1)
    await dead(world, await world.claim(), 1)
    (found,) = await ledger.select(replace(ALL, positions=(Position(*PARTITION, 1),)))
    assert found.incarnation == 1
    assert len(await ledger.select(ALL)) == 2


async def test_letters_come_in_the_order_of_the_log_up_to_a_limit(world, ledger):
    one, two = await world.claim(Partition("documents", 1)), await world.claim()
    for claim, offset in ((one, 1), (two, 10), (two, 9)):
        await dead(world, claim, offset)
    found = await ledger.select(ALL, 2)
    assert [one.position[1:] for one in found] == [(0, 9), (0, 10)]


# ---- groups and counts ----


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        ("text has 20001 bytes", "text has 5 bytes", True),
        ("request req_01HZX3", "request req_99ABCD", True),
        (
            "id 3f2b8c1e-aaaa-bbbb-cccc-dddddddddddd",
            "id ffffffff-abcd-abcd-abcd-abcdefabcdef",
            True,
        ),
        ("at 0xDEADBEEF01", "at 0x12", True),
        ("`$.version` is missing", "`$.text` is missing", False),
        ("", "no", False),
    ],
)
async def test_letters_of_one_cause_have_one_fingerprint(one, other, are_one, world, ledger):
    claim = await world.claim()
    await dead(world, claim, 1, detail=one)
    await dead(world, claim, 2, detail=other)
    assert (len(await ledger.groups(ALL)) == 1) is are_one


async def test_reason_and_stage_are_part_of_the_fingerprint(world, ledger):
    claim = await world.claim()
    await dead(world, claim, 1)
    await dead(world, claim, 2, reason=Reason.OVERSIZE)
    await world.ledger.record([replace(letter(claim, 3), stage="embed")])
    found = await ledger.groups(ALL)
    assert len({one.fingerprint for one in found}) == len(found) == 3


async def test_a_group_says_how_many_of_whom_and_shows_the_newest(world, ledger):
    claim = await world.claim()
    await dead(world, claim, 5, detail="text of 1 bytes", tenant="a")
    await dead(world, claim, 6, detail="text of 2 bytes", tenant="b")
    await dead(world, claim, 4, detail="text of 3 bytes", tenant="b")
    await dead(world, claim, 7, detail="else")
    large, small = await ledger.groups(ALL)
    assert (large.letters, large.tenants, small.letters, small.tenants) == (3, 2, 1, 0)
    assert (large.sample, large.detail) == ("documents/0/4", "text of 3 bytes")
    assert large.first_seen < large.last_seen
    assert await offsets(ledger, fingerprint=large.fingerprint) == [4, 5, 6]


async def test_counts_are_by_what_is_asked_and_by_state(world, ledger):
    claim = await world.claim()
    await dead(world, claim, 1, tenant="a")
    await dead(world, claim, 2, tenant="a", reason=Reason.OVERSIZE)
    await dead(world, claim, 3)
    await ledger.move((await ledger.select(ALL))[0], State.PARKED)
    day = (await ledger.select(ALL))[0].first_seen.date()
    by_tenant = await ledger.stats(ALL, ["tenant"])
    assert [(one.of, one.letters) for one in by_tenant] == [
        ({"tenant": "a"}, 2),
        ({"tenant": None}, 1),
    ]
    assert (by_tenant[0].states[State.PARKED], by_tenant[0].states[State.PUBLISHED]) == (1, 1)
    both = await ledger.stats(ALL, ["day", "reason"])
    assert [tuple(one.of.values()) for one in both] == [(day, "oversize"), (day, "undecodable")]


# ---- dispositions ----


async def test_a_replay_is_counted_once_by_whoever_is_first(world, ledger):
    claim = await world.claim()
    await dead(world, claim, 1)
    read = await only(ledger)
    assert await ledger.begin_replay(read, None, None)
    assert not await ledger.begin_replay(read, None, None)
    counted = await only(ledger)
    assert (counted.replays, counted.state) == (1, State.PUBLISHED)


async def test_a_letter_that_has_changed_is_not_replayed_and_not_moved(world, ledger):
    claim = await world.claim()
    await dead(world, claim, 1, version=3, **NAMES)
    read = await only(ledger)
    await world.put(claim, version=4, offset=5, texts=["x"])
    assert not await ledger.begin_replay(read, None, None)
    await ledger.move(read, State.REPLAYED)
    assert (await only(ledger)).state is State.RESOLVED


async def test_a_move_says_when(world, ledger):
    claim = await world.claim()
    await dead(world, claim, 1)
    await ledger.move(await only(ledger), State.REPLAYED)
    moved = await only(ledger)
    assert moved.state is State.REPLAYED
    assert moved.state_changed_at >= moved.first_seen


async def test_what_a_replay_says_about_an_unreadable_letter_lets_a_success_resolve_it(
    world, ledger
):
    claim = await world.claim()
    await dead(world, claim, 1)
    assert await ledger.begin_replay(await only(ledger), KEY, 4)
    read = await only(ledger)
    assert (read.document_key, read.version) == (KEY, 4)
    await world.put(claim, version=4, order=read.origin, texts=["x"])
    assert (await only(ledger)).state is State.RESOLVED


async def test_what_the_ledger_knows_already_is_kept(world, ledger):
    claim = await world.claim()
    await dead(world, claim, 1, version=3, **NAMES)
    assert await ledger.begin_replay(await only(ledger), DocumentKey("x", "y", "z"), 9)
    read = await only(ledger)
    assert (read.document_key, read.version) == (KEY, 3)


async def test_only_what_is_selected_is_discarded(world, ledger):
    claim = await world.claim()
    for offset in (1, 2, 3):
        await dead(world, claim, offset, tenant="a" if offset < 3 else "b")
    assert await ledger.discard(replace(ALL, tenant="a")) == 2
    assert await offsets(ledger, states=(State.DISCARDED,)) == [1, 2]


async def test_letters_of_other_documents_have_keys_of_their_own(world, ledger):
    claim = await world.claim()
    await dead(world, claim, 1, **NAMES | {"document_id": key("other").id})
    assert (await only(ledger)).document_key == key("other")
