"""Records of which worker processes die, and batches that cannot be read: rows 20 and 24."""

import pytest
from aiokafka import TopicPartition

from tests.support import dying_worker
from tests.support.fleet import QUICK_TIMERS, upsert
from tests.support.kafka_batches import bomb, send, with_bytes_behind

pytestmark = pytest.mark.real

GIGABYTE = 1 << 30


async def test_a_record_of_which_workers_die_is_a_dead_letter_and_all_others_are_stored(
    make_fleet,
):
    fleet = await make_fleet(partitions=2)
    for partition in range(2):
        events = [upsert(f"d{partition}-{number}", 1, f"text {number}") for number in range(40)]
        if partition == 0:
            events.insert(3, upsert("killer", 1, dying_worker.DEADLY))
        await fleet.publish(events, partition=partition)
    module = "tests.support.dying_worker"
    deaths = await fleet.supervise(at_most=8, module=module, **QUICK_TIMERS)
    assert deaths >= 4
    (letter,) = await fleet.letters()
    assert (letter.reason, letter.position[1:]) == ("worker_killer", (0, 3))
    assert len(await fleet.stored()) == 80


async def test_a_decompression_bomb_is_skipped_by_its_header_under_a_limit_of_memory(
    make_fleet,
):
    fleet = await make_fleet(partitions=2)
    for part in range(2):
        before = [upsert(f"before {part} {number}", 1, "text") for number in range(20)]
        await fleet.publish(before, partition=part)
    place = TopicPartition(fleet.topic, 0)
    offset = await send(fleet.kafka.bootstrap_servers, place, bomb(3 * GIGABYTE // 2))
    await fleet.publish(
        [upsert(f"behind {number}", 1, "text") for number in range(20)], partition=0
    )
    await fleet.supervise(
        at_most=12,
        module="tests.support.dying_worker",
        DYING_WORKER_MEMORY_BYTES=str(GIGABYTE),
        **QUICK_TIMERS,
    )
    (letter,) = await fleet.letters()
    assert letter.reason == "worker_killer"
    assert letter.position == (fleet.topic, 0, offset)
    assert f"offsets {offset} to {offset}: a batch of 1 record(s)" in letter.envelope["detail"]
    assert len(await fleet.stored()) == 60


async def test_a_batch_that_cannot_be_read_is_a_pointer_and_what_stands_behind_it_passes(
    make_fleet,
):
    fleet = await make_fleet(partitions=1)
    await fleet.publish([upsert("before", 1, "before")])
    place = TopicPartition(fleet.topic, 0)
    broken = with_bytes_behind([upsert(f"lost {number}", 1, "x")[1] for number in range(3)])
    first = await send(fleet.kafka.bootstrap_servers, place, broken)
    await fleet.publish([upsert("behind", 1, "behind")])
    worker = await fleet.start()
    await fleet.settled()
    (letter,) = await fleet.letters()
    assert (letter.reason, letter.position) == ("unreadable_batch", (fleet.topic, 0, first))
    assert (letter.key, letter.value) == (None, None)
    assert letter.envelope["detail"].startswith(
        f"offsets {first} to {first + 2}: a batch of 3 record(s), "
    )
    assert await fleet.stored() == {"before": "before", "behind": "behind"}
    assert await fleet.stop(worker) == 0
