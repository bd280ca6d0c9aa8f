"""A letter that is replayed and dead-lettered again keeps its first origin (protocol, C7)."""

import msgspec
import pytest

from schemas.dead_letter import parse_dead_letter
from tests.pipeline.test_counterexamples import replay, replaying
from tests.support.universe import TOPIC, upsert

LETTERS = "documents.dead-letters"
UNKNOWN = msgspec.structs.replace(upsert("a", 5, "X"), collection="nowhere")


@pytest.mark.parametrize("record", [UNKNOWN, b"{"], ids=["unknown collection", "undecodable"])
def test_the_first_origin_is_kept(record):
    async def story(universe):
        universe.start()
        if isinstance(record, bytes):
            universe.broker.append(TOPIC, 0, key=b"tenant/articles/a", value=record)
        else:
            universe.publish(record)
        await universe.settled()
        replay(universe)
        await universe.settled()
        (topic,) = universe.broker.partitions([LETTERS])
        letters = [
            parse_dead_letter(one.headers)[0] for one in universe.broker.log(topic).records
        ]
        assert [letter.offset for letter in letters] == [0, 1]
        assert [letter.origin.offset for letter in letters] == [0, 0]

    replaying(story)
