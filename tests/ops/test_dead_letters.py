"""What a replay does with each letter, on a store in memory."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from schemas.bounds import Limits
from schemas.codec import encode_event, encode_scope_key, key_of
from schemas.dead_letter import Origin, parse_origin, parse_replays, with_origin, with_replays
from schemas.events import DocumentUpserted, ScopeDeleted
from tests.support.store_changes import GROUP, KEY, PARTITION, at
from tests.support.store_letters import letter as ledger_letter
from tests.support.store_worlds import memory_world
from worker.core.letters import Letter, Original, State
from worker.core.model import Order, Position
from worker.errors import BrokerUnavailable, ConfigError, PermanentError
from worker.ops.dead_letters import Fate, Replay, ReplayOptions, repair

TIMESTAMP = 1_700_000_000_000
WHEN = datetime(2026, 11, 1, tzinfo=UTC)
HEADERS = (("source", b"cms"), ("traceparent", None))


def event(version=3, text="text", **names) -> DocumentUpserted:
    return DocumentUpserted(
        **{"tenant": KEY.tenant, "collection": KEY.collection, "id": KEY.id} | names,
        version=version,
        text=text,
    )


def original(said=None, *, headers=HEADERS) -> Original:
    said = said or event()
    return Original(key_of(said), encode_event(said), headers)


def letter(offset=1, **facts) -> Letter:
    position = Position(*PARTITION, offset)
    known = {
        "group": GROUP,
        "position": position,
        "incarnation": 0,
        "timestamp_ms": TIMESTAMP,
        "state": State.PUBLISHED,
        "reason": "rejected_input",
        "stage": "embed",
        "detail": "",
        "fingerprint": "f",
        "tenant": KEY.tenant,
        "collection": KEY.collection,
        "document_id": KEY.id,
        "version": 3,
        "origin": Order(*position, TIMESTAMP),
        "key": b"tenant/articles/document",
        "traceparent": None,
        "passes": 0,
        "attempts": 1,
        "replays": 0,
        "first_seen": WHEN,
        "last_seen": WHEN,
    }
    return Letter(**known | facts)


def unreadable(offset=1, **facts) -> Letter:
    unknown = dict.fromkeys(("tenant", "collection", "document_id", "version"))
    return letter(offset, **unknown | facts)


class Surroundings:
    """The ledger, the topics and the clock; `acts` are what was done, in order."""

    def __init__(self) -> None:
        self.records: dict[Letter, Original] = {}
        self.acts: list[tuple] = []
        self.sent: list[tuple] = []
        self.read_letters: list[Letter] = []
        self.said: list[tuple] = []
        self.now = 0.0
        self.slept: list[float] = []
        self.taken: set[Letter] = set()
        self.failure: Exception | None = None

    async def begin_replay(self, one, document, version):
        self.acts.append(("begin", one.position.offset))
        self.said.append((document, version))
        return one not in self.taken

    async def move(self, one, state):
        self.acts.append((state.value, one.position.offset))

    async def read(self, letters):
        self.read_letters += letters
        for one in letters:
            yield one, self.records.get(one, original(event(one.version or 3)))

    async def send(self, partition, key, value, headers):
        if self.failure is not None:
            raise self.failure
        self.acts.append(("send", None))
        self.sent.append((partition, key, value, headers))

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def around() -> Surroundings:
    return Surroundings()


@pytest.fixture
async def world():
    return await memory_world()


async def replayed(around, world, letters, *, dry=False, **options):
    """Replay, and return what became of each letter, by offset."""
    options = {"limits": Limits(), "rate_per_second": 1000, "max_replays": 3} | options
    job = Replay(
        around,
        world.store,
        around,
        None if dry else around,
        ReplayOptions(**options),
        clock=lambda: around.now,
        sleep=around.sleep,
    )
    ends = [ended async for ended in job.run(letters)]
    return {ended.letter.position.offset: ended.fate for ended in ends}


# ---- what is sent ----


async def test_a_letter_is_sent_as_it_was_to_where_it_was_and_says_where_it_first_stood(
    around, world
):
    assert await replayed(around, world, [letter(7)]) == {7: Fate.REPLAYED}
    ((partition, key, value, headers),) = around.sent
    assert (partition, key, value) == (PARTITION, *original()[:2])
    assert tuple(headers[: len(HEADERS)]) == HEADERS
    assert parse_origin(headers) == Origin(*PARTITION, 7, TIMESTAMP, 0)
    assert parse_replays(headers) == 1


async def test_a_replay_is_counted_before_it_is_sent_and_marked_after(around, world):
    await replayed(around, world, [letter(7)])
    assert around.acts == [("begin", 7), ("send", None), ("replayed", 7)]


async def test_a_send_whose_outcome_is_unknown_is_counted_and_not_marked(around, world):
    around.failure = BrokerUnavailable("no answer")
    with pytest.raises(BrokerUnavailable):
        await replayed(around, world, [letter(7), letter(8)])
    assert around.acts == [("begin", 7)]


async def test_a_record_that_its_topic_does_not_take_keeps_nobody_up(around, world):
    around.failure = PermanentError("oversize", "too large")
    fates = await replayed(around, world, [letter(7), letter(8)])
    assert fates == {7: Fate.REFUSED, 8: Fate.REFUSED}
    assert ("replayed", 7) not in around.acts


async def test_a_letter_that_somebody_else_deals_with_is_not_sent(around, world):
    around.taken.add(letter(7))
    assert await replayed(around, world, [letter(7)]) == {7: Fate.BUSY}
    assert around.sent == []


async def test_no_second_sees_more_letters_than_the_rate(around, world):
    await replayed(around, world, [letter(n) for n in range(5)], rate_per_second=2)
    assert around.slept == [0.5] * 4


# ---- what is not sent ----


@pytest.mark.parametrize("reason", ["worker_killer", "version_in_future"])
async def test_a_letter_that_would_fail_again_by_its_reason_is_sent_by_force_only(
    around, world, reason
):
    killer = letter(7, reason=reason)
    assert await replayed(around, world, [killer, letter(8)]) == {
        7: Fate.REFUSED,
        8: Fate.REPLAYED,
    }
    assert {offset for _, offset in around.acts} == {8, None}
    assert await replayed(around, world, [killer], force=True) == {7: Fate.REPLAYED}
    assert await replayed(around, world, [killer], repaired=REPAIRED) == {7: Fate.REPLAYED}


async def test_what_a_later_version_covers_is_resolved_and_not_even_read(around, world):
    claim = await world.claim()
    await world.put(claim, version=4, offset=0, texts=["newer"])
    fates = await replayed(around, world, [letter(1, version=3), letter(2, version=5)])
    assert fates == {1: Fate.SUPERSEDED, 2: Fate.REPLAYED}
    assert around.acts[0] == ("resolved", 1)
    assert [one.position.offset for one in around.read_letters] == [2]


async def test_a_letter_deleted_without_a_version_does_not_come_back(around, world):
    claim = await world.claim()
    await world.drop(claim, version=None, order=Order(*PARTITION, 5, TIMESTAMP + 1))
    assert await replayed(around, world, [letter(1, version=3)]) == {1: Fate.SUPERSEDED}


async def test_an_unreadable_letter_that_can_be_read_now_is_judged_by_what_it_says(
    around, world
):
    claim = await world.claim()
    await world.put(claim, version=3, order=Order(*PARTITION, 5, TIMESTAMP + 1), texts=["x"])
    newer = unreadable(2)
    around.records[newer] = original(event(4))
    fates = await replayed(around, world, [unreadable(1), newer])
    assert fates == {1: Fate.SUPERSEDED, 2: Fate.REPLAYED}
    assert around.said == [(KEY, 4)]


async def test_what_still_cannot_be_read_is_left_as_it_is(around, world):
    bad = unreadable(1)
    around.records[bad] = Original(b"tenant/articles/document", b"{", ())
    keyless = unreadable(2)
    around.records[keyless] = original()._replace(key=None)
    fates = await replayed(around, world, [bad, keyless])
    assert fates == {1: Fate.UNREADABLE, 2: Fate.UNREADABLE}
    assert around.acts == []


async def test_what_was_too_long_is_sent_once_the_limit_is_higher(around, world):
    long = unreadable(1, reason="oversize")
    around.records[long] = original(event(text="x" * 100))
    small = Limits(max_text_bytes=50)
    assert await replayed(around, world, [long], limits=small) == {1: Fate.UNREADABLE}
    assert await replayed(around, world, [long]) == {1: Fate.REPLAYED}


async def test_a_record_that_is_gone_is_told(around, world):
    around.records[letter(1)] = None
    assert await replayed(around, world, [letter(1), letter(2)]) == {
        1: Fate.GONE,
        2: Fate.REPLAYED,
    }


async def test_a_letter_whose_worker_has_not_finished_is_left(around, world):
    assert await replayed(around, world, [letter(1, state=State.PENDING)]) == {1: Fate.BUSY}
    assert around.acts == []


async def test_a_letter_replayed_too_often_is_parked_unless_forced(around, world):
    letters = [letter(1, replays=2), letter(2, replays=3)]
    assert await replayed(around, world, letters) == {1: Fate.REPLAYED, 2: Fate.PARKED}
    assert around.acts[0] == ("parked", 2)
    around.acts.clear()
    assert await replayed(around, world, letters[1:], force=True) == {2: Fate.REPLAYED}
    assert parse_replays(around.sent[-1][3]) == 4


async def test_a_dry_run_says_the_same_and_changes_nothing(around, world):
    claim = await world.claim()
    await world.put(claim, version=4, offset=0, texts=["newer"])
    letters = [letter(1), letter(2, version=5), letter(3, version=5, replays=3)]
    foretold = await replayed(around, world, letters, dry=True)
    assert (around.acts, around.sent) == ([], [])
    assert foretold == await replayed(around, world, letters)


# ---- origins ----


async def recorded(world, offset):
    claim = await world.claim()
    await world.ledger.record([ledger_letter(claim, offset)])


async def test_a_chain_keeps_the_origin_that_its_headers_claim_where_the_ledger_has_it(
    around, world
):
    """A replay that failed before its look-up is in the ledger at its own place."""
    await recorded(world, 1)
    chained = unreadable(9)
    first = Origin(*PARTITION, 1, TIMESTAMP, 0)
    around.records[chained] = original(headers=tuple(with_origin(HEADERS, first)))
    await replayed(around, world, [chained])
    assert parse_origin(around.sent[0][3]) == first


async def test_a_chain_is_judged_by_its_first_origin(around, world):
    await recorded(world, 1)
    claim = await world.claim()
    await world.put(claim, version=3, offset=5, texts=["later, of the same version"])
    chained = unreadable(9)
    first = Origin(*PARTITION, 1, TIMESTAMP, 0)
    around.records[chained] = original(headers=tuple(with_origin(HEADERS, first)))
    assert await replayed(around, world, [chained]) == {9: Fate.SUPERSEDED}


async def test_an_origin_that_the_ledger_does_not_know_is_not_carried_on(around, world):
    claimed = with_origin(HEADERS, Origin(*PARTITION, 1, TIMESTAMP, 0))
    one = letter(9)
    around.records[one] = original(headers=tuple(claimed))
    await replayed(around, world, [one])
    assert parse_origin(around.sent[0][3]) == Origin(*PARTITION, 9, TIMESTAMP, 0)


async def test_a_letter_of_a_chain_is_sent_with_the_origin_of_the_ledger(around, world):
    await replayed(around, world, [letter(9, origin=at(1))])
    assert parse_origin(around.sent[0][3]) == Origin(*at(1))


async def test_a_delete_of_a_scope_is_sent_like_any_other(around, world):
    scope = ScopeDeleted(tenant="tenant", version=5)
    one = unreadable(1, tenant="tenant", version=5)
    around.records[one] = Original(encode_scope_key("tenant", None), encode_event(scope), ())
    assert await replayed(around, world, [one]) == {1: Fate.REPLAYED}
    assert around.said == [(None, None)]


# ---- repairs ----

REPAIRED = encode_event(event(version=8, id="a b"))


async def test_a_repaired_event_is_sent_under_its_own_key_with_the_origin_of_the_letter(
    around, world
):
    bad = unreadable(7)
    around.records[bad] = Original(None, b"{", HEADERS)
    assert await replayed(around, world, [bad], repaired=REPAIRED) == {7: Fate.REPLAYED}
    ((partition, key, value, headers),) = around.sent
    assert (partition, key, value) == (PARTITION, b"tenant/articles/a%20b", REPAIRED)
    assert parse_origin(headers) == Origin(*PARTITION, 7, TIMESTAMP, 0)
    assert tuple(headers[: len(HEADERS)]) == HEADERS


async def test_a_repair_is_judged_by_its_own_version(around, world):
    claim = await world.claim()
    await world.put(claim, version=5, offset=0, texts=["newer"])
    good, late = encode_event(event(6)), encode_event(event(4))
    assert await replayed(around, world, [letter(1)], repaired=good) == {1: Fate.REPLAYED}
    assert await replayed(around, world, [letter(1)], repaired=late) == {1: Fate.SUPERSEDED}


async def test_a_letter_whose_record_is_gone_can_be_repaired_all_the_same(around, world):
    around.records[letter(1)] = None
    assert await replayed(around, world, [letter(1)], repaired=REPAIRED) == {1: Fate.REPLAYED}


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"type": "upsert"}',
        encode_event(event(text="x" * 200)),
        encode_event(event(tenant="\0")),
    ],
)
async def test_a_value_that_a_worker_would_not_accept_is_refused_before_anything_happens(
    value, around, world
):
    limits = Limits(max_text_bytes=100)
    with pytest.raises(ConfigError):
        await replayed(around, world, [letter(1)], repaired=value, limits=limits)
    assert around.acts == []


def test_a_repaired_cloud_event_becomes_a_plain_one():
    headers = (("ce_specversion", b"1.0"), ("ce_type", b"upsert"), ("source", b"cms"))
    repaired = repair(original(headers=headers), REPAIRED, Limits())
    assert repaired.headers == headers[1:]


async def test_counts_along_a_chain_are_the_ledgers(around, world):
    """What a header says was counted when the letter was recorded."""
    one = replace(letter(1), replays=1)
    around.records[one] = original(headers=tuple(with_replays(HEADERS, 1)))
    await replayed(around, world, [one])
    assert parse_replays(around.sent[0][3]) == 2
