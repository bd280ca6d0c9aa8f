from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.packing import PackLimits, Weight, estimate_tokens, take

LIMITS = PackLimits(max_inputs=4, max_tokens=100, max_bytes=300)

WEIGHTS = st.lists(
    st.builds(Weight, st.integers(1, 6), st.integers(0, 120), st.integers(0, 400)), max_size=40
)


def requests(queue: list[Weight], limits: PackLimits = LIMITS) -> Iterator[list[Weight]]:
    while queue:
        taken = take(queue, limits)
        yield queue[:taken]
        queue = queue[taken:]


def fits(request: list[Weight], limits: PackLimits = LIMITS) -> bool:
    return (
        sum(weight.count for weight in request) <= limits.max_inputs
        and sum(weight.tokens for weight in request) <= limits.max_tokens
        and sum(weight.bytes for weight in request) <= limits.max_bytes
    )


@pytest.mark.parametrize(
    ("queue", "taken"),
    [
        pytest.param([], 0, id="nothing waits"),
        pytest.param([Weight(1, 1, 1)] * 9, 4, id="by count"),
        pytest.param([Weight(2, 1, 1)] * 9, 2, id="by count of several texts"),
        pytest.param([Weight(1, 50, 1)] * 9, 2, id="by tokens, up to the limit"),
        pytest.param([Weight(1, 1, 100)] * 9, 3, id="by bytes, up to the limit"),
        pytest.param([Weight(1, 1, 101)] * 9, 2, id="by bytes"),
        pytest.param([Weight(1, 101, 1), Weight(1, 1, 1)], 1, id="above the limit, alone"),
        pytest.param([Weight(1, 1, 1), Weight(1, 100, 1)], 1, id="the large one waits"),
    ],
)
def test_a_request_is_filled_from_the_head_of_the_queue(queue: list[Weight], taken: int):
    assert take(queue, LIMITS) == taken


@given(WEIGHTS)
def test_every_item_is_in_exactly_one_request(queue: list[Weight]):
    assert [weight for request in requests(queue) for weight in request] == queue


@given(WEIGHTS)
def test_no_request_is_above_a_limit_unless_it_is_one_item(queue: list[Weight]):
    assert all(fits(request) or len(request) == 1 for request in requests(queue))


@given(WEIGHTS)
def test_no_request_ends_early(queue: list[Weight]):
    made = list(requests(queue))
    for request, following in pairwise(made):
        assert not fits([*request, following[0]])


@given(st.lists(st.integers(300, 3600), min_size=1, max_size=1000))
def test_where_counts_decide_there_are_as_few_requests_as_can_be(sizes: list[int]):
    """Chunks of up to 1,200 characters, 128 a request, as the defaults have it."""
    limits = PackLimits(max_inputs=128, max_tokens=300_000, max_bytes=512 * 1024)
    queue = [Weight(1, -(-size // 3), size) for size in sizes]
    assert len(list(requests(queue, limits))) == -(-len(queue) // 128)


def test_no_more_of_a_queue_is_read_than_one_item_after_the_request():
    read = []

    def queue() -> Iterator[Weight]:
        while True:
            read.append(1)
            yield Weight(1, 1, 1)

    assert take(queue(), LIMITS) == 4
    assert len(read) == 5


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("a", 1), ("abc", 1), ("abcd", 2), ("é", 1), ("漢字", 2)]
)
def test_tokens_are_a_third_of_the_bytes_rounded_up(text: str, tokens: int):
    assert estimate_tokens(text) == tokens
