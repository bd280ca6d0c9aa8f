"""What a worker sees of the whole fleet, on real Kafka and PostgreSQL."""

from dataclasses import replace

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from worker.adapters.pg_claims import PostgresClaims
from worker.adapters.pg_client import Database
from worker.adapters.pg_migrations import Migrations
from worker.app.fleet_size import fleet
from worker.core.model import Partition
from worker.ops.scaling import FleetView


async def test_what_nobody_has_begun_waits_but_for_what_retention_removed(
    kafka_options, create_topic, database
):
    topic = await create_topic(partitions=3)
    options = replace(kafka_options, topics=(topic,))
    async with AIOKafkaProducer(bootstrap_servers=options.bootstrap_servers) as producer:
        for number in (0, 0, 0, 0, 1, 1, 1, 2):
            await producer.send_and_wait(topic, b"{}", partition=number)
    admin = AIOKafkaAdminClient(bootstrap_servers=options.bootstrap_servers)
    await admin.start()
    await admin.delete_records({TopicPartition(topic, 1): RecordsToDelete(before_offset=2)})
    await admin.close()
    await Migrations(database).up()
    opened = await Database.open(database)
    try:
        assert await fleet(options, opened) == FleetView(
            workers=0, partitions=3, ended=8, settled=2
        )
        claims = PostgresClaims(opened)
        begun = await claims.claim(options.group, Partition(topic, 0), "a worker")
        await claims.begin(begun, 3)
        await claims.claim(options.group, Partition(topic, 2), "a worker")
        assert await fleet(options, opened) == FleetView(
            workers=1, partitions=3, ended=8, settled=3 + 2 + 0
        )
    finally:
        await opened.close()
