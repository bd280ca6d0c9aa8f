"""The port `Source`: the same suite on a broker in memory and on a real one."""

import asyncio

import pytest

from schemas.dead_letter import Reason
from tests.support.kafka_facts import PATIENCE_SECONDS, records_of, values_of
from tests.support.kafka_worlds import KafkaWorld, MemoryWorld
from worker.errors import BrokerUnavailable, FencedError, PermanentError


class SourceContract:
    """Every test takes `make_world(partitions=1)`."""

    async def test_records_arrive_as_they_were_written_in_the_order_of_the_log(
        self, make_world
    ):
        world = await make_world()
        headers = [("a", b"1"), ("a", b"2"), ("null", None)]
        await world.append(b"one", key=b"k", headers=headers, timestamp_ms=1234)
        await world.append(None, key=b"\xff")
        await world.append(b"", key=None)
        member = await world.join(begin_at=0)
        first, second, third = await member.take_records(3)
        assert (first.key, first.value, first.timestamp_ms) == (b"k", b"one", 1234)
        assert first.headers == tuple(headers)
        assert (second.key, second.value, second.headers) == (b"\xff", None, ())
        assert (third.key, third.value) == (None, b"")
        assert [record.position for record in (first, second, third)] == [
            (world.topic, 0, offset) for offset in range(3)
        ]

    async def test_nothing_is_polled_before_begin(self, make_world):
        world = await make_world()
        await world.append_many(3)
        member = await world.join()
        for _ in range(5):
            assert await member.source.poll([world.partition()]) == []

    async def test_polling_begins_where_it_is_told_to(self, make_world):
        world = await make_world()
        await world.append_many(5)
        member = await world.join(begin_at=3)
        assert values_of(await member.take_records(2)) == [b"3", b"4"]

    async def test_a_partition_that_is_not_wanted_keeps_its_records(self, make_world):
        world = await make_world(partitions=2)
        await world.append_many(2, number=0)
        await world.append_many(2, number=1)
        member = await world.join(begin_at=0)
        records = await member.take_records(2, [world.partition(1)])
        assert {record.position.partition for record in records} == {1}
        records = await member.take_records(2, [world.partition(0)])
        assert values_of(records) == [b"0", b"1"]

    async def test_a_deep_partition_does_not_starve_shallow_ones(self, make_world):
        world = await make_world(partitions=3)
        await world.append_many(1000, number=0)
        await world.append_many(3, number=1)
        await world.append_many(3, number=2)
        member = await world.join(begin_at=0)

        def shallow_are_done(batches):
            shallow = [one for one in records_of(batches) if one.position.partition > 0]
            return len(shallow) == 6

        batches = await member.take(shallow_are_done)
        assert len(records_of(batches)) <= 6 + 3 * 64

    async def test_no_poll_takes_more_than_its_share_of_a_partition(self, make_world):
        world = await make_world()
        await world.append_many(200)
        member = await world.join(begin_at=0)
        batches = await member.take(lambda got: len(records_of(got)) == 200)
        assert max(len(batch.records) for batch in batches) == 64

    async def test_poll_lets_others_run_also_when_records_are_there(self, make_world):
        world = await make_world()
        await world.append_many(200)
        member = await world.join(begin_at=0)
        await member.take_records(1)
        others = asyncio.Event()
        asyncio.get_running_loop().call_soon(others.set)
        assert await member.source.poll([world.partition()])
        assert others.is_set()

    async def test_next_offset_is_behind_the_last_record_of_the_batch(self, make_world):
        world = await make_world()
        await world.append_many(100)
        member = await world.join(begin_at=0)
        batches = await member.take(lambda got: len(records_of(got)) == 100)
        assert [batch.next_offset for batch in batches if batch.records] == [
            batch.records[-1].position.offset + 1 for batch in batches if batch.records
        ]

    async def test_aborted_records_are_not_seen_and_their_offsets_are_passed(self, make_world):
        world = await make_world()
        await world.transaction([b"a", b"b"], commit=True)  # 0, 1, marker 2
        await world.transaction([b"x", b"y"], commit=False)  # 3, 4, marker 5
        await world.append(b"c")  # 6
        member = await world.join(begin_at=0)
        records, next_offset = await member.take_until_offset(world.partition(), 7)
        assert [(one.position.offset, one.value) for one in records] == [
            (0, b"a"),
            (1, b"b"),
            (6, b"c"),
        ]
        assert next_offset == 7

    async def test_a_log_that_ends_in_markers_is_done_to_its_end(self, make_world):
        world = await make_world()
        await world.append(b"a")
        member = await world.join(begin_at=0)
        await member.take_records(1)
        await world.transaction([b"x"], commit=False)
        records, next_offset = await member.take_until_offset(world.partition(), 3)
        assert (records, next_offset) == ([], 3)
        assert (await member.source.bounds(world.partition()))[1] == 3
        assert member.source.lag(world.partition()) == 0

    async def test_lag_counts_what_is_not_polled(self, make_world):
        world = await make_world()
        await world.append_many(200)
        member = await world.join(begin_at=0)
        assert member.source.lag(world.partition(5)) is None
        batches = await member.take(bool)
        assert member.source.lag(world.partition()) == 200 - batches[-1].next_offset
        assert member.source.lag(world.partition(), since=3) == 197
        await member.take(lambda got: bool(got) and got[-1].next_offset == 200)
        assert member.source.lag(world.partition()) == 0

    async def test_begin_is_refused_under_an_older_assignment(self, make_world):
        world = await make_world(partitions=2)
        first = await world.join()
        old = first.number
        second = await world.join()
        await first.until(lambda one: one.number > old)
        (mine,), (other,) = first.partitions, second.partitions
        assert not first.source.begin(old, mine, 0)
        assert not first.source.begin(first.number, other, 0)
        assert first.source.begin(first.number, mine, 0)

    async def test_begin_is_refused_while_the_group_rebalances(self, make_world):
        world = await make_world(partitions=2)
        answers = []

        async def drain():
            answers.append(first.source.begin(first.number, world.partition(), 0))

        first = await world.join(drain=drain)
        await world.join()
        assert answers == [False]

    async def test_pause_stops_a_partition_until_it_begins_again(self, make_world):
        world = await make_world(partitions=2)
        await world.append_many(100, number=0)
        await world.append_many(5, number=1)
        member = await world.join(begin_at=0)
        await member.take_records(1, [world.partition(0)])
        member.source.pause(world.partition(0))
        member.source.pause(world.partition(7))
        both = [world.partition(0), world.partition(1)]
        records = await member.take_records(5, both)
        assert {record.position.partition for record in records} == {1}
        assert member.source.begin(member.number, world.partition(0), 98)
        assert values_of(await member.take_records(2, both)) == [b"98", b"99"]

    async def test_bounds_are_the_first_offset_left_and_the_end(self, make_world):
        world = await make_world()
        member = await world.join()
        assert await member.source.bounds(world.partition()) == (0, 0)
        await world.append_many(5)
        await world.truncate(2)
        assert await member.source.bounds(world.partition()) == (2, 5)

    async def test_a_landmark_is_that_of_exactly_this_offset(self, make_world):
        world = await make_world()
        await world.append(b"a", key=b"k", timestamp_ms=7)
        await world.append(b"b", key=b"k", timestamp_ms=8)
        await world.append(b"c", key=None, timestamp_ms=9)
        await world.transaction([b"x"], commit=False)  # 3, marker 4
        await world.append(b"d")
        member = await world.join()
        first, second, third, aborted, marker, beyond = [
            await member.source.landmark(world.partition(), offset)
            for offset in (0, 1, 2, 3, 4, 6)
        ]
        assert (first.offset, first.timestamp_ms, len(first.key_hash)) == (0, 7, 8)
        assert (second.offset, second.timestamp_ms) == (1, 8)
        assert first.key_hash == second.key_hash != third.key_hash
        assert (aborted, marker, beyond) == (None, None, None)

    async def test_a_landmark_of_what_retention_removed_is_gone(self, make_world):
        world = await make_world()
        await world.append_many(3)
        await world.truncate(2)
        member = await world.join()
        assert await member.source.landmark(world.partition(), 1) is None

    async def test_asking_for_a_landmark_does_not_disturb_polling(self, make_world):
        world = await make_world()
        await world.append_many(100)
        member = await world.join(begin_at=0)
        got = values_of(await member.take_records(1))
        await member.source.landmark(world.partition(), 3)
        got += values_of(await member.take_records(100 - len(got)))
        assert got == [b"%d" % index for index in range(100)]

    async def test_a_topic_that_is_created_again_has_another_id(self, make_world):
        world = await make_world()
        member = await world.join()
        before = await member.source.topic_ids()
        assert list(before) == [world.topic]
        assert await member.source.topic_ids() == before
        await world.create_again()
        after = await member.source.topic_ids()
        assert list(after) == [world.topic]
        assert after != before

    async def test_committed_is_what_was_committed_last_also_when_it_is_lower(self, make_world):
        world = await make_world(partitions=2)
        member = await world.join()
        zero, one = world.partition(0), world.partition(1)
        assert await member.source.committed(zero) is None
        await member.source.commit({zero: 5, one: 1})
        await member.source.commit({zero: 3})
        assert [await member.source.committed(zero), await member.source.committed(one)] == [
            3,
            1,
        ]

    async def test_a_commit_leaves_out_what_is_not_ours(self, make_world):
        world = await make_world(partitions=2)
        first = await world.join()
        old = first.number
        await world.join()
        await first.until(lambda one: one.number > old)
        (mine,) = first.partitions
        (other,) = {world.partition(0), world.partition(1)} - first.partitions
        await first.source.commit({mine: 4, other: 4})
        assert await first.source.committed(mine) == 4
        assert await first.source.committed(other) is None

    async def test_what_was_polled_is_not_committed_by_itself(self, make_world):
        """Neither meanwhile, nor by leaving: only what was told is done."""
        world = await make_world()
        await world.append_many(3)
        member = await world.join(begin_at=0)
        await member.take_records(3)
        await member.source.close()
        successor = await world.join()
        assert await successor.source.committed(world.partition()) is None

    async def test_a_commit_inside_revoked_arrives(self, make_world):
        world = await make_world()

        async def drain():
            await first.source.commit({world.partition(): 7})

        first = await world.join(drain=drain)
        second = await world.join()
        assert await second.source.committed(world.partition()) == 7

    async def test_all_drain_before_anybody_is_assigned(self, make_world):
        world = await make_world(partitions=4)
        drained = asyncio.Event()
        first = await world.join(drain=drained.wait)
        assert first.events == [("assigned", 1, first.partitions)]
        joining = asyncio.get_running_loop().create_task(world.join())
        await first.until(lambda one: one.events[-1][0] == "revoked")
        assert not joining.done()
        drained.set()
        second = await joining
        await first.until(lambda one: one.events[-1][0] == "assigned")
        assert [name for name, _, _ in first.events[1:]] == ["revoked", "drained", "assigned"]
        assert first.number == 2
        assert len(first.partitions) == len(second.partitions) == 2
        assert not first.partitions & second.partitions

    async def test_nothing_of_before_a_rebalance_is_handed_out_after_it(self, make_world):
        world = await make_world(partitions=2)
        await world.append_many(300, number=0)
        await world.append_many(300, number=1)
        first = await world.join(begin_at=0)
        everything = sorted(first.partitions)
        await first.take_records(1, everything)
        first.begin_at = None
        await world.join()
        await first.until(lambda one: one.number == 2)
        for _ in range(5):
            assert await first.source.poll(everything) == []
        (mine,) = first.partitions
        assert first.source.begin(2, mine, 299)
        assert values_of(await first.take_records(1, everything)) == [b"299"]

    async def test_a_member_that_closes_leaves_its_partitions_to_the_others(self, make_world):
        world = await make_world(partitions=2)
        first = await world.join()
        second = await world.join()
        await first.until(lambda one: one.number == 2)
        told = list(second.events)
        await second.source.close()
        await second.source.close()
        await first.until(lambda one: len(one.partitions) == 2)
        assert second.events == told

    async def test_a_closed_source_is_of_no_use_and_does_no_harm(self, make_world):
        world = await make_world()
        await world.append(b"a")
        member = await world.join(begin_at=0)
        await member.source.close()
        assert await member.source.poll([world.partition()]) == []
        assert not member.source.begin(member.number, world.partition(), 0)
        member.source.pause(world.partition())
        with pytest.raises(BrokerUnavailable):
            await member.source.commit({world.partition(): 1})
        with pytest.raises(BrokerUnavailable):
            await member.source.confirm()
        with pytest.raises(BrokerUnavailable):
            await member.source.batch(world.partition(), 0)

    async def test_confirm_says_what_is_assigned(self, make_world):
        world = await make_world(partitions=2)
        member = await world.join()
        assert await member.source.confirm() == (1, member.partitions)

    async def test_confirm_says_nothing_while_the_group_rebalances(self, make_world):
        world = await make_world()
        answers = []

        async def drain():
            try:
                answers.append(await first.source.confirm())
            except BrokerUnavailable as error:
                answers.append(error)

        first = await world.join(drain=drain)
        await world.join()
        assert [type(answer) for answer in answers] == [BrokerUnavailable]

    async def test_an_expelled_member_commits_nothing_and_comes_back_anew(self, make_world):
        world = await make_world()
        member = await world.join()
        await world.expel(member)
        with pytest.raises(FencedError):
            await member.source.commit({world.partition(): 1})
        await member.until(lambda one: one.number == 2)
        assert [name for name, _, _ in member.events[1:]] == ["revoked", "drained", "assigned"]
        assert await member.source.committed(world.partition()) is None

    async def test_an_expelled_member_is_not_confirmed(self, make_world):
        world = await make_world()
        member = await world.join()
        await world.expel(member)
        try:
            confirmed, _ = await member.source.confirm()
        except BrokerUnavailable:
            return
        assert confirmed == 2

    @pytest.mark.parametrize("call", ["assigned", "revoked"])
    async def test_what_the_one_who_is_told_raises_comes_out_of_the_next_poll(
        self, make_world, call
    ):
        world = await make_world()

        def fail(*_):
            raise ZeroDivisionError

        member = await world.join()
        setattr(member, call, fail)
        await world.join()
        with pytest.raises(ZeroDivisionError):
            await member.until(lambda _: False)

    async def test_a_partition_out_of_range_is_told_and_the_others_go_on(self, make_world):
        world = await make_world(partitions=2)
        await world.append_many(3, number=1)
        member = await world.join()
        sick, well = world.partition(0), world.partition(1)
        assert member.source.begin(1, sick, 100)
        assert member.source.begin(1, well, 0)
        await member.take(lambda _: sick in member.failures, [sick])
        assert member.failures == {sick: "offset_out_of_range"}
        assert values_of(await member.take_records(3, [sick, well])) == [b"0", b"1", b"2"]
        assert member.source.begin(1, sick, 0)
        await world.append(b"again", number=0)
        assert values_of(await member.take_records(1, [sick])) == [b"again"]

    async def test_singly_hands_out_one_record_a_poll_and_leaves_the_others_alone(
        self, make_world
    ):
        world = await make_world(partitions=2)
        await world.append_many(20, number=0)
        await world.append_many(20, number=1)
        member = await world.join(begin_at=0)
        one, all_at_once = world.partition(0), world.partition(1)
        batches = await member.take(
            lambda got: len(records_of(got)) == 40, singly=frozenset({one})
        )
        of_one = [batch for batch in batches if batch.partition == one and batch.records]
        assert [len(batch.records) for batch in of_one] == [1] * 20
        assert [batch.next_offset for batch in of_one] == list(range(1, 21))
        rest = [len(batch.records) for batch in batches if batch.partition == all_at_once]
        assert max(rest) > 1

    async def test_singly_may_begin_and_end_between_two_polls(self, make_world):
        world = await make_world()
        await world.append_many(100)
        member = await world.join(begin_at=0)
        place = frozenset({world.partition()})
        got = await member.take_records(1)
        got += records_of(await member.take(lambda got: len(got) == 3, singly=place))
        got += await member.take_records(100 - len(got))
        assert values_of(got) == [b"%d" % index for index in range(100)]

    async def test_a_batch_that_cannot_be_read_is_told_after_all_that_is_before_it(
        self, make_world
    ):
        world = await make_world()
        await world.append_many(5)
        await world.append_unreadable([b"x", b"y"])
        member = await world.join(begin_at=0)
        got, before = [], 0
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not member.unreadables:
                before = len(got)
                got += records_of(await member.source.poll([world.partition()]))
        assert values_of(got) == [b"0", b"1", b"2", b"3", b"4"]
        assert before == 5
        assert [told[:2] for told in member.unreadables] == [(world.partition(), 5)]
        assert member.unreadables[0][2]
        assert member.failures == {}

    async def test_what_is_behind_a_batch_that_cannot_be_read_is_polled_after_begin(
        self, make_world
    ):
        world = await make_world()
        await world.append_many(3)
        await world.append_unreadable([b"x", b"y"])
        await world.append_many(3, start=3)
        member = await world.join(begin_at=0)
        place = world.partition()
        got = records_of(await member.take(lambda _: bool(member.unreadables)))
        for _ in range(5):
            assert await member.source.poll([place]) == []
        span = await member.source.batch(place, 3)
        assert member.source.begin(member.number, place, span.last + 1)
        got += await member.take_records(3)
        assert [record.position.offset for record in got] == [0, 1, 2, 5, 6, 7]
        assert values_of(got) == [b"%d" % index for index in range(6)]
        assert [offset for _, offset, _ in member.unreadables] == [3]

    async def test_the_other_partitions_go_on_beside_a_batch_that_cannot_be_read(
        self, make_world
    ):
        world = await make_world(partitions=2)
        sick, well = world.partition(0), world.partition(1)
        await world.append_unreadable([b"x"], number=0)
        await world.append_many(200, number=1)
        member = await world.join(begin_at=0)
        records = await member.take_records(200, [sick, well])
        assert {record.position.partition for record in records} == {1}
        await member.take(lambda _: bool(member.unreadables), [sick, well])
        await world.append(b"later", number=1)
        assert values_of(await member.take_records(1, [sick, well])) == [b"later"]

    async def test_two_batches_that_cannot_be_read_are_told_one_after_the_other(
        self, make_world
    ):
        world = await make_world()
        for _ in range(2):
            await world.append_unreadable([b"x", b"y"])
        member = await world.join(begin_at=0)
        for first in (0, 2):
            await member.take(lambda _, first=first: len(member.unreadables) > first // 2)
            assert member.unreadables[-1][:2] == (world.partition(), first)
            assert member.source.begin(member.number, world.partition(), first + 2)
        await world.append(b"value")
        assert values_of(await member.take_records(1)) == [b"value"]

    async def test_a_batch_that_cannot_be_read_is_told_again_where_it_is_begun_again(
        self, make_world
    ):
        world = await make_world()
        await world.append_unreadable([b"x", b"y"])
        member = await world.join(begin_at=0)
        await member.take(lambda _: bool(member.unreadables))
        assert member.source.begin(member.number, world.partition(), 1)
        await member.take(lambda _: len(member.unreadables) == 2)
        assert [offset for _, offset, _ in member.unreadables] == [0, 1]

    async def test_the_span_of_a_batch_is_found_by_any_of_its_offsets(self, make_world):
        world = await make_world()
        await world.append(b"a", timestamp_ms=70)
        await world.append_unreadable([b"x", b"y", b"z"], timestamp_ms=80)
        await world.append(b"b", timestamp_ms=90)
        member = await world.join()
        spans = [await member.source.batch(world.partition(), offset) for offset in range(5)]
        assert [(span.first, span.last, span.records) for span in spans] == [
            (0, 0, 1),
            *[(1, 3, 3)] * 3,
            (4, 4, 1),
        ]
        assert [span.timestamp_ms for span in spans] == [70, 82, 82, 82, 90]
        assert spans[0].codec == "none"
        assert all(span.size_bytes > 61 for span in spans)

    async def test_the_span_of_what_retention_removed_is_that_of_the_first_left(
        self, make_world
    ):
        world = await make_world()
        for _ in range(3):
            await world.append(b"value")
        await world.truncate(2)
        member = await world.join()
        span = await member.source.batch(world.partition(), 0)
        assert span is not None
        assert (span.first, span.last) == (2, 2)

    async def test_there_is_no_span_at_the_end_of_the_log(self, make_world):
        world = await make_world()
        member = await world.join()
        assert await member.source.batch(world.partition(), 0) is None
        await world.append(b"value")
        assert await member.source.batch(world.partition(), 1) is None
        assert await member.source.batch(world.partition(), 7) is None

    async def test_asking_for_a_span_does_not_disturb_polling(self, make_world):
        world = await make_world()
        await world.append_many(100)
        member = await world.join(begin_at=0)
        got = values_of(await member.take_records(1))
        assert await member.source.batch(world.partition(), 3)
        got += values_of(await member.take_records(100 - len(got)))
        assert got == [b"%d" % index for index in range(100)]

    async def test_there_is_no_landmark_of_what_cannot_be_read(self, make_world):
        world = await make_world()
        await world.append_unreadable([b"x", b"y"])
        member = await world.join()
        assert await member.source.landmark(world.partition(), 1) is None


class DoubtfulSpanContract:
    """Every test takes a `world` of two partitions, of which the first can be broken."""

    async def test_a_batch_with_a_header_that_is_not_to_be_believed_has_no_span(self, world):
        await world.append_many(2)
        await world.append_doubtful([b"x", b"y"])
        member = await world.join()
        for offset in (2, 3, 2):
            with pytest.raises(PermanentError) as raised:
                await member.source.batch(world.partition(), offset)
            assert raised.value.reason is Reason.UNREADABLE_BATCH
            assert "2" in str(raised.value)
        assert (await member.source.batch(world.partition(), 1)).last == 1

    async def test_it_is_told_and_nothing_behind_it_is_handed_out(self, world):
        await world.append_many(2)
        await world.append_doubtful([b"x", b"y"])
        await world.append_many(3, number=1)
        member = await world.join(begin_at=0)
        places = [world.partition(number) for number in range(2)]
        records = await member.take_records(5, places)
        await member.take(lambda _: bool(member.unreadables), places)
        assert [told[:2] for told in member.unreadables] == [(world.partition(), 2)]
        assert sorted(record.position[1:] for record in records) == [
            (0, 0),
            (0, 1),
            (1, 0),
            (1, 1),
            (1, 2),
        ]


class TestMemoryDoubtfulSpan(DoubtfulSpanContract):
    @pytest.fixture
    async def world(self):
        world = MemoryWorld(partitions=2)
        yield world
        await world.close()


@pytest.mark.real
class TestKafkaDoubtfulSpan(DoubtfulSpanContract):
    @pytest.fixture
    def world(self, own_world):
        return own_world


class TestMemorySource(SourceContract):
    @pytest.fixture
    async def make_world(self):
        worlds = []

        async def make(partitions=1):
            worlds.append(MemoryWorld(partitions))
            return worlds[-1]

        yield make
        for world in worlds:
            await world.close()


@pytest.mark.real
class TestKafkaSource(SourceContract):
    @pytest.fixture
    async def make_world(self, kafka_options, create_topic):
        worlds = []

        async def make(partitions=1):
            topic = await create_topic(partitions=partitions)
            worlds.append(KafkaWorld(kafka_options, topic))
            return worlds[-1]

        yield make
        for world in worlds:
            await world.close()
