"""Members of one group that work for several tables: those of the leader's work, no others."""

import asyncio
from dataclasses import replace

import pytest
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata

from tests.support.kafka_facts import Member
from worker.adapters import kafka_assignor
from worker.adapters.kafka_assignor import Fleet, FleetAssignor
from worker.adapters.kafka_source import KafkaSource
from worker.config import KafkaOptions
from worker.errors import ConfigError, StoreUnavailable


class Cluster:
    def partitions_for_topic(self, _topic):
        return set(range(4))


def share(leader, **fleets):
    """Who gets which partitions, and what each is told."""
    members = {
        name: ConsumerProtocolMemberMetadata(0, ["documents"], fleet)
        for name, fleet in fleets.items()
    }
    return {
        name: (
            [place.partition for place in given.partitions()],
            given.user_data,
        )
        for name, given in FleetAssignor(Fleet(leader)).assign(Cluster(), members).items()
    }


def test_members_of_one_fleet_share_all_partitions_in_turn():
    assert share("ours", a=b"ours", b=b"ours") == {
        "a": ([0, 2], b"ours"),
        "b": ([1, 3], b"ours"),
    }


def test_members_of_another_fleet_get_nothing_and_are_told_whose_group_it_is():
    assert share("ours", a=b"theirs", b=b"ours") == {
        "a": ([], b"ours"),
        "b": ([0, 1, 2, 3], b"ours"),
    }


@pytest.mark.parametrize("nothing", [b"", None])
def test_a_member_that_says_nothing_is_one_of_us(nothing):
    assert share("ours", a=nothing, b=b"ours")["a"] == ([0, 2], b"ours")


def test_a_member_says_its_fleet_when_it_joins_and_learns_whose_group_it_is():
    ours, theirs = FleetAssignor(Fleet("ours")), FleetAssignor(Fleet("theirs"))
    joining = {"a": ours.metadata(["documents"]), "b": theirs.metadata(["documents"])}
    for name, given in ours.assign(Cluster(), joining).items():
        {"a": ours, "b": theirs}[name].on_assignment(given)
    assert (ours.other_fleet, theirs.other_fleet) == (None, "ours")


@pytest.mark.real
async def test_a_worker_of_another_table_is_refused_and_the_others_go_on(
    kafka_options: KafkaOptions, create_topic
):
    options = replace(
        kafka_options, topics=(await create_topic(partitions=4),), heartbeat_seconds=0.3
    )
    ours = Member(KafkaSource(options, Fleet("system/ours")), begin_at=0)
    theirs = Member(KafkaSource(options, Fleet("system/theirs")), begin_at=0)
    try:
        await ours.source.open(ours)
        await ours.until(lambda member: len(member.partitions) == 4)
        await theirs.source.open(theirs)
        with pytest.raises(ConfigError, match=r"group .* works for another .*system/ours"):
            await theirs.until(lambda _: False)
        assert theirs.partitions == frozenset()
        await ours.until(lambda member: member.number == 2)
        assert len(ours.partitions) == 4
    finally:
        await theirs.source.close()
        await ours.source.close()


@pytest.mark.real
async def test_a_table_that_comes_back_on_another_server_keeps_the_workers_it_had(
    kafka_options: KafkaOptions, create_topic
):
    options = replace(
        kafka_options, topics=(await create_topic(partitions=4),), heartbeat_seconds=0.3
    )
    names = ["old/table"]

    async def ask():
        return names[-1]

    old = Member(KafkaSource(options, Fleet("old/table", ask)), begin_at=0)
    new = Member(KafkaSource(options, Fleet("new/table", ask)), begin_at=0)
    try:
        await old.source.open(old)
        await old.until(lambda member: len(member.partitions) == 4)
        names.append("new/table")
        await new.source.open(new)
        await new.until(lambda member: len(member.partitions) == 2)
        await old.until(lambda member: len(member.partitions) == 2)
    finally:
        await new.source.close()
        await old.source.close()


async def test_a_table_that_does_not_answer_has_the_name_that_it_had():
    async def ask():
        raise StoreUnavailable

    fleet = Fleet("table", ask)
    await fleet.look()
    assert fleet.name == "table"


async def test_a_table_is_asked_for_its_name_for_a_moment_only(monkeypatch):
    monkeypatch.setattr(kafka_assignor, "_LOOK_SECONDS", 0)
    fleet = Fleet("table", asyncio.Event().wait)
    await fleet.look()
    assert fleet.name == "table"
