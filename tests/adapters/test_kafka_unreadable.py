"""Batches that cannot be read, in the log of a real broker: they are told, and passed."""

import asyncio
import re
import struct
from pathlib import Path

import pytest
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException, UnknownError

from schemas.dead_letter import Reason
from tests.support.kafka_batches import (
    batch_of,
    bomb,
    sealed,
    with_a_header_that_is_no_text,
    with_a_later_last_offset,
    with_bytes_behind,
)
from tests.support.kafka_facts import PATIENCE_SECONDS, records_of, values_of
from tests.support.kafka_own import break_on_disk
from worker.adapters import kafka_flow, kafka_internals
from worker.errors import BrokerUnavailable, PermanentError
from worker.ports import BatchSpan

pytestmark = pytest.mark.real


async def go_on_behind(member, partition, count):
    """Poll until so many records came, beginning again behind whatever cannot be read."""
    records, spans, done = [], [], 0
    async with asyncio.timeout(4 * PATIENCE_SECONDS):
        while len(records) < count:
            records += records_of(await member.source.poll([partition]))
            if len(member.unreadables) > done:
                done += 1
                spans.append(await member.source.batch(partition, member.unreadables[-1][1]))
                assert member.source.begin(member.number, partition, spans[-1].last + 1)
    return records, spans


def offsets_of(records):
    return [record.position.offset for record in records]


def with_codec(number):
    def change(batch):
        batch[22] = (batch[22] & ~0b111) | number
        sealed(batch)

    return change


def with_a_wrong_checksum(batch):
    batch[-1] ^= 1


def with_garbage_inside(batch):
    batch[61:] = b"\x55" * (len(batch) - 61)
    sealed(batch)


def with_first_offset(batch):
    batch[7] ^= 1 << 6  # adds 64; no checksum covers it


def with_records(batch):
    batch[60] ^= 1


def of_an_old_format(batch):
    batch[16] = 1


async def test_what_a_disk_breaks_is_passed_by_batch(world, broker):
    for index in range(9):
        codec = "zstd" if index == 5 else "none"
        values = [b"%d" % index * 30, b"%d" % index * 40]
        await world.send(batch_of(values, codec=codec))
    changes = {
        2: with_a_wrong_checksum,
        6: with_codec(7),
        10: with_garbage_inside,
        14: with_codec(1),
    }
    await asyncio.to_thread(break_on_disk, broker, world.partition(), changes)
    member = await world.join(begin_at=0)
    records, spans = await go_on_behind(member, world.partition(), 10)
    assert offsets_of(records) == [0, 1, 4, 5, 8, 9, 12, 13, 16, 17]
    assert [offset for _, offset, _ in member.unreadables] == [2, 6, 10, 14]
    assert [(span.first, span.last, span.codec) for span in spans] == [
        (2, 3, "none"),
        (6, 7, "codec 7"),
        (10, 11, "zstd"),
        (14, 15, "gzip"),
    ]
    kinds = [error.partition(":")[0] for _, _, error in member.unreadables]
    assert kinds == [
        "CorruptRecordException",
        "UnsupportedCodecError",
        "DecompressionError",
        "BadGzipFile",
    ]
    assert member.failures == {}


async def test_the_rest_of_a_batch_of_which_one_record_cannot_be_read_is_its_span(world):
    await world.append_many(3)
    await world.send(with_a_header_that_is_no_text([b"3", b"4", b"5", b"6"], from_record=2))
    await world.append_many(2, start=7)
    member = await world.join(begin_at=0)
    records, (span,) = await go_on_behind(member, world.partition(), 7)
    assert values_of(records) == [b"0", b"1", b"2", b"3", b"4", b"7", b"8"]
    assert [offset for _, offset, _ in member.unreadables] == [5]
    assert (span.first, span.last, span.records) == (3, 6, 4)


async def test_a_batch_in_the_middle_of_which_polling_begins_is_told_at_that_offset(world):
    await world.send(with_bytes_behind([b"0", b"1", b"2"]))
    member = await world.join(begin_at=1)
    await member.take(lambda _: bool(member.unreadables))
    assert [offset for _, offset, _ in member.unreadables] == [1]


async def test_markers_before_a_batch_that_cannot_be_read_are_passed(world):
    await world.append(b"0")
    await world.transaction([b"x", b"y"], commit=False)
    first = await world.append_unreadable([b"a", b"b"])
    await world.append(b"last")
    member = await world.join(begin_at=0)
    records, (span,) = await go_on_behind(member, world.partition(), 2)
    assert offsets_of(records) == [0, 6]
    assert [offset for _, offset, _ in member.unreadables] == [4]
    assert (first, span.first, span.last) == (4, 4, 5)


async def test_singly_also_stops_exactly_at_what_cannot_be_read(world):
    await world.append_many(3)
    await world.append_unreadable([b"x"])
    await world.append(b"last")
    member = await world.join(begin_at=0)
    place = world.partition()
    batches = await member.take(lambda _: bool(member.unreadables), singly=frozenset({place}))
    assert [len(batch.records) for batch in batches] == [1, 1, 1]
    assert [offset for _, offset, _ in member.unreadables] == [3]


async def test_many_records_before_a_batch_that_cannot_be_read_come_each_once(world):
    await world.append_many(500)
    await world.append_unreadable([b"x"])
    await world.append(b"500")
    member = await world.join(begin_at=0)
    records, _ = await go_on_behind(member, world.partition(), 501)
    assert values_of(records) == [b"%d" % index for index in range(501)]
    assert [offset for _, offset, _ in member.unreadables] == [500]


class OnTheWay:
    """Changes the first answers that the library gets, as a bad network does."""

    def __init__(self, monkeypatch, *changes):
        self.changes = list(changes)
        self.at = []
        self._whole = fetcher.MemoryRecords
        monkeypatch.setattr(fetcher, "MemoryRecords", self)

    def __call__(self, data):
        if data and self.changes:
            self.at.append(asyncio.get_running_loop().time())
            data = self.changes.pop(0)(data)
        return self._whole(data)


def last_bit(data):
    return data[:-1] + bytes([data[-1] ^ 1])


def without_checksum(data):
    return data[:17] + bytes(4) + data[21:]


def cut(data):
    return data[:-1]


def back(data):
    """Let the last batch claim to begin before the others."""
    size = struct.unpack_from(">i", data, 8)[0] + 12
    assert len(data) == 2 * size
    return data[:size] + struct.pack(">q", -5) + data[size + 8 :]


@pytest.mark.parametrize("change", [last_bit, cut])
async def test_what_is_broken_on_the_way_is_fetched_again(world, monkeypatch, change):
    await world.send(batch_of([b"0", b"1", b"2"]))
    broken = OnTheWay(monkeypatch, change, change)
    member = await world.join(begin_at=0)
    assert values_of(await member.take_records(3)) == [b"0", b"1", b"2"]
    assert member.unreadables == []
    assert broken.changes == []
    assert member.source._flow._troubles == {}  # no more one by one


@pytest.mark.parametrize("change", [last_bit, cut])
async def test_a_batch_is_fetched_three_times_with_growing_waits(world, monkeypatch, change):
    await world.send(batch_of([b"0", b"1"]))
    broken = OnTheWay(monkeypatch, *[change] * 4)
    member = await world.join(begin_at=0)
    await member.take(lambda _: bool(member.unreadables))
    assert [offset for _, offset, _ in member.unreadables] == [0]
    first, second, third = broken.at
    assert 0.5 <= second - first < third - second
    broken.changes.clear()
    assert member.source.begin(1, world.partition(), 0)
    assert values_of(await member.take_records(2)) == [b"0", b"1"]


async def test_a_batch_that_claims_an_offset_of_before_hands_out_nothing_twice(
    world, monkeypatch
):
    for value in (b"0", b"1"):
        await world.send(batch_of([value]))
    broken = OnTheWay(monkeypatch, back)
    member = await world.join(begin_at=0)
    assert values_of(await member.take_records(2)) == [b"0", b"1"]
    assert broken.changes == []
    assert member.unreadables == []


async def test_what_rests_is_forgotten_where_polling_begins_elsewhere(world, monkeypatch):
    await world.send(batch_of([b"0"]))
    await world.send(batch_of([b"1"]))
    broken = OnTheWay(monkeypatch, *[without_checksum] * 4)
    member = await world.join(begin_at=0)
    await member.take(lambda _: len(broken.at) == 2)
    broken.changes.clear()
    assert member.source.begin(1, world.partition(), 1)
    assert values_of(await member.take_records(1)) == [b"1"]
    assert member.unreadables == []


async def test_what_rests_while_it_is_paused_stays_paused(world, monkeypatch):
    monkeypatch.setattr(kafka_flow, "_AGAIN_SECONDS", (0.05, 0.1))
    await world.send(batch_of([b"0"]))
    broken = OnTheWay(monkeypatch, last_bit)
    member = await world.join(begin_at=0)
    place = world.partition()
    await member.take(lambda _: place not in member.source._flow._flowing)
    assert broken.changes == []
    member.source.pause(place)
    for _ in range(10):  # of 0.05 s at least
        assert await member.source.poll([place]) == []
    assert member.source.begin(1, place, 0)
    assert values_of(await member.take_records(1)) == [b"0"]


async def test_what_rests_while_the_group_rebalances_waits_for_begin(world, monkeypatch):
    for number in range(2):
        await world.send(batch_of([b"0"]), number)
    first = await world.join(begin_at=0)
    OnTheWay(monkeypatch, last_bit, last_bit)
    first.begin_at = None
    await first.take(lambda _: len(first.source._flow._troubles) == 2)
    await world.join()
    await first.until(lambda one: one.number == 2)
    (mine,) = first.partitions
    for _ in range(10):
        assert await first.source.poll([mine]) == []
    assert first.source.begin(2, mine, 0)
    assert values_of(await first.take_records(1, [mine])) == [b"0"]


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])


@pytest.mark.parametrize("noise_bytes", [0, 1_000_000])
async def test_a_bomb_is_described_without_being_unpacked(world, noise_bytes):
    size_bytes = 300 * 2**20
    packed = bomb(size_bytes, noise_bytes)
    await world.send(packed)
    await world.append(b"behind")
    member = await world.join()
    before = forget_peak()
    span = await member.source.batch(world.partition(), 0)
    assert peak_bytes() - before < 16 * 2**20
    assert span == BatchSpan(0, 0, 1, len(packed), "zstd", 1)
    assert member.source.begin(1, world.partition(), span.last + 1)
    assert values_of(await member.take_records(1)) == [b"behind"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_a_later_last_offset, "says 2 records at offsets 2 to 259"),
        (with_first_offset, "another one (is found|stands behind it)|the log ends at"),
        (with_records, "says 3 records at offsets 2 to 3"),
    ],
)
async def test_a_header_that_a_disk_breaks_is_believed_by_nobody(world, broker, change, words):
    for index in range(3):
        await world.send(batch_of([b"%d" % index * 30, b"%d" % index * 40]))
    await asyncio.to_thread(break_on_disk, broker, world.partition(), {2: change})
    member = await world.join(begin_at=2)
    for _ in range(2):
        with pytest.raises(PermanentError, match=words) as raised:
            await member.source.batch(world.partition(), 2)
        assert raised.value.reason is Reason.UNREADABLE_BATCH
        assert f"{world.topic}/0, offset 2: " in str(raised.value)
    assert member.source._lookup._consumer is None
    healthy = await member.source.batch(world.partition(), 0)
    assert (healthy.first, healthy.last) == (0, 1)


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [(CorruptRecordException, PermanentError), (UnknownError, BrokerUnavailable)],
)
async def test_what_the_broker_calls_corrupt_is_refused_and_its_failures_are_outages(
    world, monkeypatch, answer, meaning
):
    await world.append(b"value")
    member = await world.join()

    async def failing(*_):
        raise answer

    monkeypatch.setattr(kafka_internals, "raw_batches", failing)
    with pytest.raises(meaning, match=answer.__name__):
        await member.source.batch(world.partition(), 0)


async def test_where_no_header_of_ours_stands_a_span_is_refused_in_a_sentence(
    world, monkeypatch
):
    await world.append(b"value")
    member = await world.join()

    async def of_old(*_):
        batch = batch_of([b"value"])
        of_an_old_format(batch)
        return bytes(batch)

    monkeypatch.setattr(kafka_internals, "raw_batches", of_old)
    with pytest.raises(PermanentError, match="is of message format v1, not v2"):
        await member.source.batch(world.partition(), 0)
    assert member.source._lookup._consumer is None
