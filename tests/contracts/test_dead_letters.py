"""The port `DeadLetters`: the same suite on a broker in memory and on a real one."""

import pytest

from schemas.dead_letter import Facts, Origin, Reason, parse_dead_letter
from tests.support.kafka_worlds import KafkaWorld, MemoryWorld
from tests.support.works import claim
from worker.core.model import Order, Position, Record
from worker.ports import DeadLetter, Recorded

HEADERS = (("a", b"1"), ("a", b"2"), ("null", None), ("embedfleet.reason", b"of another's"))
RECORDED = Recorded(attempts=2, first_seen_ms=1000, last_seen_ms=3000, is_published=False)


def letter(*, key=b"key", value=b"value", headers=HEADERS, offset=7, **about):
    record = Record(Position("documents", 3, offset), 1234, key, value, headers)
    about = {"reason": Reason.OVERSIZE, "stage": "intake"} | about
    return DeadLetter(record, claim(3), **about)


class DeadLettersContract:
    """Every test takes `world`."""

    async def test_a_letter_is_the_original_byte_for_byte(self, world):
        letters = world.make_dead_letters()
        await letters.publish(letter(key=b"\xff\x00", value=b"\x00\xfe"), RECORDED)
        ((key, value, headers),) = await world.dead_letter_records(1)
        assert (key, value) == (b"\xff\x00", b"\x00\xfe")
        assert parse_dead_letter(headers)[1] == list(HEADERS)

    async def test_a_letter_says_why_and_where_from(self, world):
        letters = world.make_dead_letters()
        order = Order("documents", 1, 5, 99, 2)
        await letters.publish(letter(detail="too long", passes=3, origin=order), RECORDED)
        ((_, _, headers),) = await world.dead_letter_records(1)
        envelope, _ = parse_dead_letter(headers)
        assert (envelope.reason, envelope.stage, envelope.detail) == (
            Reason.OVERSIZE,
            "intake",
            "too long",
        )
        assert (envelope.topic, envelope.partition, envelope.offset, envelope.timestamp_ms) == (
            "documents",
            3,
            7,
            1234,
        )
        assert (envelope.group, envelope.passes) == ("group", 3)
        assert envelope.origin == Origin("documents", 1, 5, 99, 2)

    async def test_a_letter_says_what_the_ledger_and_those_who_refused_it_know(self, world):
        facts = Facts(400, "req_1", "23514", "short")
        await world.make_dead_letters().publish(letter(facts=facts), RECORDED)
        ((_, _, headers),) = await world.dead_letter_records(1)
        envelope, _ = parse_dead_letter(headers)
        assert envelope.facts == facts
        assert (envelope.attempts, envelope.first_seen_ms, envelope.last_seen_ms) == RECORDED[
            :3
        ]

    @pytest.mark.parametrize(
        ("key", "value"), [(None, b"value"), (b"key", None), (None, None), (b"", b"")]
    )
    async def test_what_is_null_or_empty_stays_so(self, world, key, value):
        letters = world.make_dead_letters()
        await letters.publish(letter(key=key, value=value), RECORDED)
        ((got_key, got_value, _),) = await world.dead_letter_records(1)
        assert (got_key, got_value) == (key, value)

    async def test_every_letter_is_there_once_it_was_published(self, world):
        letters = world.make_dead_letters()
        for offset in range(3):
            await letters.publish(letter(offset=offset), RECORDED)
        records = await world.dead_letter_records(3)
        offsets = sorted(parse_dead_letter(headers)[0].offset for _, _, headers in records)
        assert offsets == [0, 1, 2]

    async def test_closing_twice_is_no_error(self, world):
        letters = world.make_dead_letters()
        await letters.publish(letter(), RECORDED)
        await letters.close()
        await letters.close()


class TestMemoryDeadLetters(DeadLettersContract):
    @pytest.fixture
    async def world(self):
        return MemoryWorld()


@pytest.mark.real
class TestKafkaDeadLetters(DeadLettersContract):
    @pytest.fixture
    async def world(self, kafka_options, create_topic):
        world = KafkaWorld(kafka_options, "unused", await create_topic())
        yield world
        await world.close()
