"""What a letter says of its record's failure, after whatever has happened to its workers."""

import asyncio

import pytest

from schemas.dead_letter import Facts, Reason, parse_dead_letter
from tests.support.universe import GROUP, ONLY, live, upsert
from worker.adapters.memory_store import MemoryStore
from worker.core.model import Position
from worker.errors import BrokerUnavailable, PermanentError, ProviderUnavailable, RejectedInput


def envelopes(universe):
    (topic,) = universe.broker.partitions(["documents.dead-letters"])
    return [parse_dead_letter(one.headers)[0] for one in universe.broker.log(topic).records]


def refuse(universe, error):
    async def script(request):
        if "bad" in request.texts:
            raise error

    universe.embedder.script = script


def test_a_refused_text_says_what_the_provider_answered_in_the_topic_and_in_the_ledger():
    async def story(universe):
        refuse(universe, RejectedInput("400", status=400, request_id="req_1"))
        universe.start()
        universe.publish(upsert(text="bad"))
        await universe.settled()
        (said,) = envelopes(universe)
        (row,) = universe.database.state.letters.values()
        assert said.facts == row.letter.facts == Facts(400, "req_1")

    live(story)


def test_a_document_that_fails_alone_says_what_the_last_answer_was():
    async def story(universe):
        calls = 0

        async def script(request):
            nonlocal calls
            if "bad" in request.texts:
                calls += 1
                raise ProviderUnavailable("500", status=500, request_id=f"req_{calls}")

        universe.embedder.script = script
        universe.start()
        universe.publish(upsert("bad", 1, "bad"), partition=0)
        while not universe.letters.letters:
            universe.publish(upsert(f"d{calls}", 1, f"text {calls}"), partition=1)
            await asyncio.sleep(0.2)
        (said,) = envelopes(universe)
        assert said.reason == Reason.RETRIES_EXHAUSTED
        assert said.facts == Facts(500, f"req_{calls}")

    live(story)


def test_a_document_that_postgresql_refuses_says_sqlstate_and_constraint(monkeypatch):
    facts = Facts(sqlstate="23514", constraint="short")

    async def apply(self, writes):
        raise PermanentError(Reason.REJECTED_BY_STORE, "SQLSTATE 23514", facts=facts)

    async def story(universe):
        universe.start()
        universe.publish(upsert())
        await universe.settled()
        (said,) = envelopes(universe)
        assert (said.reason, said.facts) == (Reason.REJECTED_BY_STORE, facts)

    monkeypatch.setattr(MemoryStore, "apply", apply)
    live(story)


@pytest.mark.parametrize("was_written", [False, True])
def test_a_letter_of_a_worker_that_died_keeps_the_time_when_it_was_first_recorded(was_written):
    """Its row is in the ledger; whether its letter is in the topic, nobody knows."""

    async def story(universe):
        failing = "publish acknowledgement" if was_written else "publish"
        universe.broker.fail(failing, *[BrokerUnavailable()] * 20)
        refuse(universe, RejectedInput("400", status=400))
        member = universe.start()
        offset = universe.publish(upsert(text="bad"), partition=0)
        await asyncio.sleep(2)
        (row,) = universe.database.state.letters.values()
        assert row.state == "pending"
        await universe.kill(member)
        await asyncio.sleep(600)
        universe.start()
        await universe.settled()
        said = envelopes(universe)[-1]
        assert (said.offset, said.attempts) == (offset, 2)
        assert said.first_seen_ms == row.recorded.first_seen_ms
        assert said.last_seen_ms >= said.first_seen_ms + 600_000

    live(story, partitions=1)


def test_a_letter_of_a_record_that_is_read_again_is_counted_and_not_published_again():
    async def story(universe):
        refuse(universe, RejectedInput("400", status=400))
        member = universe.start()
        universe.publish(upsert(text="bad"), partition=0)
        await universe.settled()
        await universe.stop(member)
        await asyncio.sleep(600)
        universe.broker.committed[GROUP, ONLY] = 0
        universe.start()
        await universe.settled()
        (said,) = envelopes(universe)
        assert Position(*ONLY, 0) == (said.topic, said.partition, said.offset)
        (row,) = universe.database.state.letters.values()
        assert (row.state, row.recorded.attempts) == ("published", 2)
        assert row.recorded.first_seen_ms == said.first_seen_ms == said.last_seen_ms
        assert row.recorded.last_seen_ms >= said.last_seen_ms + 600_000

    live(story, partitions=1)
