"""
Record batches by hand: such as no producer of ours sends, and as a disk leaves them.

A batch is bytes of Kafka's message format v2. The broker takes what its own validation lets
pass; whatever else is to stand in a log is written into the segment of a broker that is
stopped.
"""

import random
import struct

import cramjam
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import NoError, NotLeaderForPartitionError, for_code
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c, encode_varint

from worker.adapters.kafka_batches import HEADER, span_of

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
_LENGTH_AT, _CRC_AT, _ATTRIBUTES_AT, _COUNTED_FROM = 8, 17, 21, 12
_ALL_REPLICAS = -1
_TIMEOUT_MS = 5000
_MIB = 1024 * 1024


def batch_of(values, *, codec="none", timestamp_ms=1, header="h") -> bytearray:
    """A batch as a producer builds it."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=CODECS[codec],
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=16 * _MIB,
    )
    for delta, value in enumerate(values):
        builder.append(
            delta,
            timestamp=timestamp_ms + delta,
            key=b"key",
            value=value,
            headers=[(header, b"1")],
        )
    return bytearray(builder.build())


def sealed(batch: bytearray) -> bytearray:
    """The same with the length and the checksum that it should have."""
    struct.pack_into(">i", batch, _LENGTH_AT, len(batch) - _COUNTED_FROM)
    struct.pack_into(">I", batch, _CRC_AT, calc_crc32c(bytes(batch[_ATTRIBUTES_AT:])))
    return batch


def with_bytes_behind(values, *, timestamp_ms=1) -> bytearray:
    """A batch that brokers take, for they stop at the last record; we cannot unpack it."""
    return sealed(batch_of(values, codec="gzip", timestamp_ms=timestamp_ms) + b"behind")


def with_a_header_that_is_no_text(values, *, from_record=0) -> bytearray:
    """A batch that brokers take; the name of a header of one record is no UTF-8."""
    batch = batch_of(values, header="poison")
    at = -1
    for _ in range(from_record + 1):
        at = batch.index(b"poison", at + 1)
    batch[at : at + 2] = b"\xff\xfe"
    return sealed(batch)


def bomb(size_bytes: int, noise_bytes: int = 0) -> bytearray:
    """One record of noise and zeros, packed by zstd into the noise; never unpacked here."""
    body = bytearray()
    for number in (0, 0, 0, -1):  # attributes, time, offset, no key
        encode_varint(number, body.append)
    encode_varint(size_bytes, body.append)
    length = bytearray()
    encode_varint(len(body) + size_bytes + 1, length.append)
    packer = cramjam.zstd.Compressor()
    packer.compress(bytes(length + body) + random.Random(1).randbytes(noise_bytes))
    zeros = size_bytes - noise_bytes
    for _ in range(zeros // _MIB):
        packer.compress(bytes(_MIB))
    packer.compress(bytes(zeros % _MIB) + b"\0")  # and no headers
    batch = batch_of([b""], codec="zstd")[: HEADER.size]
    return sealed(batch + bytes(packer.finish()))


def with_a_later_last_offset(batch):
    """Flip the bit of the header that adds 256 offsets; the checksum is wrong then."""
    batch[25] ^= 1


async def send(bootstrap_servers: str, place: TopicPartition, batch: bytes) -> int:
    """Send a batch as it is; returns its first offset. Raises what the broker says of it."""
    client = AIOKafkaClient(bootstrap_servers=bootstrap_servers)
    await client.bootstrap()
    try:
        await client._wait_on_metadata(place.topic)
        leader = client.cluster.leader_for_partition(place)
        while True:
            try:
                return await _send(client, leader, place, batch)
            except NotLeaderForPartitionError:
                continue  # it is, but does not know it yet: the topic is new
    finally:
        await client.close()


async def _send(client, leader, place, batch):
    request = ProduceRequest(
        None, _ALL_REPLICAS, _TIMEOUT_MS, [(place.topic, [(place.partition, bytes(batch))])]
    )
    answer = await client.send(leader, request)
    ((_, ((_, code, offset, *_),)),) = answer.topics
    if for_code(code) is not NoError:
        raise for_code(code)(place)
    return offset


def change_on_disk(segment, offset: int, change) -> None:
    """Let `change(batch)` work on the batch of an offset in the file of a stopped broker."""
    log = bytearray(segment.read_bytes())
    place = 0
    while (span := span_of(bytes(log), place)).last < offset:
        place += span.size_bytes
    batch = log[place : place + span.size_bytes]
    change(batch)
    assert len(batch) == span.size_bytes
    log[place : place + span.size_bytes] = batch
    segment.write_bytes(log)
