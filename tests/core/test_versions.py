"""Which versions are times that have not come yet."""

import pytest

from schemas.bounds import Undecodable
from schemas.dead_letter import Reason
from schemas.events import MAX_VERSION, ScopeDeleted
from tests.support.universe import delete, tombstone, upsert
from worker.core.versions import MOST_AHEAD_SECONDS, refuse_future

NOW_SECONDS = 1_795_000_000
WRITTEN = (NOW_SECONDS * 1000,)
UNITS = {"seconds": 1, "milliseconds": 1_000, "microseconds": 1_000_000}


def scope(version):
    return ScopeDeleted(tenant="tenant", version=version)


def events(version):
    return [upsert("a", version), delete("a", version), scope(version)]


@pytest.mark.parametrize(("unit", "per_second"), UNITS.items())
def test_what_is_further_ahead_than_clocks_differ_is_refused_whatever_the_event(
    unit, per_second
):
    last = (NOW_SECONDS + MOST_AHEAD_SECONDS) * per_second
    for event in events(last):
        refuse_future(event, unit, WRITTEN)
    for event in events(last + 1):
        with pytest.raises(Undecodable) as refused:
            refuse_future(event, unit, WRITTEN)
        assert refused.value.reason is Reason.VERSION_IN_FUTURE
        assert refused.value.event is event


@pytest.mark.parametrize("unit", UNITS)
def test_the_past_is_no_future(unit):
    for version in (0, 1, NOW_SECONDS):
        refuse_future(upsert("a", version), unit, WRITTEN)


def test_versions_that_are_no_times_are_never_refused():
    for event in events(MAX_VERSION):
        refuse_future(event, "none", WRITTEN)


@pytest.mark.parametrize("unit", ["none", *UNITS])
def test_a_delete_without_version_has_nothing_to_be_ahead_with(unit):
    refuse_future(tombstone("a"), unit, (0,))


def test_it_says_by_how_much_and_repeats_no_version():
    with pytest.raises(Undecodable, match="is 7200 s ahead") as refused:
        refuse_future(upsert("a", NOW_SECONDS + 7200), "seconds", WRITTEN)
    assert str(NOW_SECONDS + 7200) not in str(refused.value)


@pytest.mark.parametrize("other_ms", [(NOW_SECONDS + 3600) * 1000, -1])
def test_a_replay_is_judged_by_the_time_of_its_origin_and_no_claim_makes_it_pass(other_ms):
    for times_ms in ((other_ms, *WRITTEN), (*WRITTEN, other_ms)):
        with pytest.raises(Undecodable, match="is 3600 s ahead"):
            refuse_future(upsert("a", NOW_SECONDS + 3600), "seconds", times_ms)


def test_the_first_moment_of_all_is_a_timestamp():
    with pytest.raises(Undecodable, match="is 301 s ahead"):
        refuse_future(upsert("a", 301), "seconds", (0,))


def test_a_record_without_a_timestamp_says_nothing_about_its_version():
    refuse_future(upsert("a", NOW_SECONDS), "seconds", (-1,))
