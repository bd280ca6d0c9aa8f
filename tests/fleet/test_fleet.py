"""Worker processes in one consumer group, on real Kafka and PostgreSQL."""

from tests.support.fleet import delete, upsert


async def test_documents_become_rows_and_offsets_follow(make_fleet):
    fleet = await make_fleet()
    await fleet.publish(upsert(f"d{n}", 1, f"text {n}") for n in range(50))
    await fleet.publish([upsert("d1", 2, "new text"), delete("d2", 5), upsert("d2", 4, "late")])
    worker = await fleet.start()
    await fleet.settled()
    assert await fleet.stored() == await fleet.expected()
    await fleet.check_vectors()
    assert fleet.embedded_twice() == {}
    assert await fleet.stop(worker) == 0


async def test_a_third_worker_joins_and_one_is_stopped_and_nothing_is_embedded_twice(
    make_fleet,
):
    fleet = await make_fleet(partitions=6)
    fleet.environment["EMBEDFLEET_EMBEDDING_MAX_INPUTS"] = "2"
    fleet.provider.latency_seconds = 0.5
    first = await fleet.start()
    await fleet.start()
    await first.logged("assigned")

    async def flow(start, count):
        numbers = range(start, start + count)
        await fleet.publish_slowly(upsert(f"d{n}", 1, f"text {n}") for n in numbers)

    await flow(0, 400)
    await fleet.provider_works_on(20)
    third = await fleet.start()
    await third.logged("assigned")
    await flow(400, 400)
    await fleet.provider_works_on(20)
    assert await fleet.stop(first) == 0
    await flow(800, 200)
    await fleet.settled()
    assert await fleet.stored() == await fleet.expected()
    await fleet.check_vectors()
    assert fleet.embedded_twice() == {}
