"""Which versions are times that have not come yet."""

import doctest

import pytest

from schemas.bounds import Undecodable
from schemas.dead_letter import Reason
from schemas.events import MAX_VERSION, ScopeDeleted
from tests.support.universe import delete, tombstone, upsert
from worker.core import versions
from worker.core.versions import MOST_AHEAD_SECONDS, refuse_future

NOW_SECONDS = 1_795_000_000.0
UNITS = {"seconds": 1, "milliseconds": 1_000, "microseconds": 1_000_000}


def scope(version):
    return ScopeDeleted(tenant="tenant", version=version)


def events(version):
    return [upsert("a", version), delete("a", version), scope(version)]


def test_the_examples_hold():
    failed, attempted = doctest.testmod(versions)
    assert (failed, attempted > 0) == (0, True)


@pytest.mark.parametrize(("unit", "per_second"), UNITS.items())
def test_what_is_further_ahead_than_clocks_differ_is_refused_whatever_the_event(
    unit, per_second
):
    last = int((NOW_SECONDS + MOST_AHEAD_SECONDS) * per_second)
    for event in events(last):
        refuse_future(event, unit, NOW_SECONDS)
    for event in events(last + 1):
        with pytest.raises(Undecodable) as refused:
            refuse_future(event, unit, NOW_SECONDS)
        assert refused.value.reason is Reason.VERSION_IN_FUTURE


@pytest.mark.parametrize("unit", UNITS)
def test_the_past_is_no_future(unit):
    for version in (0, 1, int(NOW_SECONDS)):
        refuse_future(upsert("a", version), unit, NOW_SECONDS)


def test_versions_that_are_no_times_are_never_refused():
    for event in events(MAX_VERSION):
        refuse_future(event, "none", NOW_SECONDS)


@pytest.mark.parametrize("unit", ["none", *UNITS])
def test_a_delete_without_version_has_nothing_to_be_ahead_with(unit):
    refuse_future(tombstone("a"), unit, 0.0)


def test_it_says_by_how_much_and_repeats_no_version():
    with pytest.raises(Undecodable, match="is 7200 s ahead") as refused:
        refuse_future(upsert("a", int(NOW_SECONDS) + 7200), "seconds", NOW_SECONDS)
    assert str(int(NOW_SECONDS) + 7200) not in str(refused.value)
