"""A topic that is deleted and created again under the workers that read it."""

import signal

from tests.support.fleet import upsert
from tests.support.kafka import topics
from worker.app.partition_jobs import topic_recreated
from worker.config import Settings

RECORDS = 40


def documents(prefix):
    return [upsert(f"{prefix}{number}", 1, f"{prefix} {number}") for number in range(RECORDS)]


async def test_the_worker_halts_in_a_clear_sentence_and_goes_on_when_told(make_fleet):
    fleet = await make_fleet(partitions=1)
    worker = await fleet.start()
    await fleet.publish(documents("before"))
    await fleet.settled()
    worker.signal(signal.SIGSTOP)  # so that the group is not told that the topic was away
    async with topics(fleet.kafka.bootstrap_servers) as made:
        await made.create_again(fleet.topic)
    # More than there were: by its length the log could be the one of before.
    await fleet.producer.client.force_metadata_update()
    await fleet.publish(documents("after"))
    await fleet.publish(documents("later"))
    worker.signal(signal.SIGCONT)
    line = await worker.logged("partition_halted")
    assert line["message"].startswith("the topic was re-created: its id is ")
    await topic_recreated(Settings(database=fleet.database), fleet.topic, really=True)
    await fleet.settled()
    assert len(fleet.workers) == 1
    shown = await fleet.stored()
    assert {name for name in shown if not name.startswith("before")} == {
        f"{prefix}{number}" for prefix in ("after", "later") for number in range(RECORDS)
    }
