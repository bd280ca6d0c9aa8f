"""The load of a run: the same for the same seed, and of all that a run needs."""

from collections import Counter
from itertools import islice

from tests.chaos.load import Load, partition_of
from tests.chaos.oracle import CHUNKING

COUNT = 3000


def events(seed):
    return list(islice(Load(seed), COUNT))


def test_a_seed_repeats_its_load_and_another_one_does_not():
    assert events(5) == events(5) != events(6)


def test_there_is_a_little_of_everything():
    seen = events(5)
    kinds = Counter(event.poison for event in seen)
    assert kinds["undecodable"]
    assert kinds["rejected_input"]
    assert sum(event.value is None for event in seen) >= COUNT // 100
    deleted = [event for event in seen if event.value and b'"delete"' in event.value]
    assert len(deleted) >= COUNT // 20
    assert len({*seen}) <= COUNT - COUNT // 20  # the others were published before
    assert {event.key.split(b"/")[1].decode() for event in seen} == {*CHUNKING}
    assert len({partition_of(event.key, 12) for event in seen}) == 12
