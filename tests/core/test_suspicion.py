"""What speaks against a text: failures while others are answered, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.suspicion import Judgement, Suspicion
from worker.errors import (
    BadOutput,
    BreakerOpen,
    Forbidden,
    KeyRefused,
    ProviderMisconfigured,
    ProviderUnavailable,
    QuotaExhausted,
    RateLimited,
    WrongDimensions,
)

AGAIN, CONVICT, OTHERS = Judgement
ILL = ProviderUnavailable(status=500)
BAD = BadOutput(status=200)
FORBIDDEN = Forbidden(status=403)
FINAL = ProviderUnavailable(status=500, should_retry=False)
OF_ALL = [
    ProviderMisconfigured(status=404),
    KeyRefused(status=401),
    QuotaExhausted(status=429),
    RateLimited(status=429),
    BreakerOpen(),
]


def judged(one: Suspicion, error: ProviderUnavailable, *answers: int) -> list[Judgement]:
    """Return what becomes of failures, before each of which so much was answered in all."""
    return [one.failed(error, count) for count in answers]


def alone(**facts) -> Suspicion:
    return Suspicion(5, **({"texts": 1} | facts))


def several(**facts) -> Suspicion:
    return Suspicion(5, **({"texts": 16, "documents": 4} | facts))


def test_a_text_that_fails_five_times_while_others_are_answered_is_blamed():
    assert judged(alone(), ILL, 0, 1, 2, 3, 4) == [AGAIN] * 4 + [CONVICT]


def test_while_nobody_is_answered_nobody_is_blamed():
    assert set(judged(alone(), ILL, *[7] * 1000)) == {AGAIN}
    assert set(judged(several(), ILL, *[7] * 1000)) == {AGAIN}
    assert CONVICT not in judged(alone(), BAD, *[7] * 1000)
    assert CONVICT not in judged(alone(), FORBIDDEN, *[7] * 1000)


def test_an_outage_is_not_the_fault_of_who_was_answered_last_before_it():
    """Others were answered after the first failure, and then nobody ever."""
    assert set(judged(alone(), ILL, 0, *[1] * 1000)) == {AGAIN}


def test_only_tries_with_an_answer_in_between_count():
    assert judged(alone(), ILL, 0, 0, 1, 1, 2, 2, 3, 3, 4) == [AGAIN] * 8 + [CONVICT]


def test_nobody_waits_for_others_before_a_try_has_failed():
    assert alone().waits_for_others is False


def test_a_part_of_several_documents_is_parted_sooner():
    assert judged(several(since=0, documents=2), ILL, 1, 2) == [AGAIN, CONVICT]
    assert judged(several(since=0), ILL, 1, 2) == [AGAIN, CONVICT]
    assert judged(several(since=0), ILL, 0, 0, 0) == [AGAIN] * 3


def test_a_document_that_is_alone_has_all_its_attempts():
    for one in (several(since=0, documents=1), Suspicion(5, texts=16, since=0)):
        assert judged(one, ILL, 1, 2, 3, 4, 5) == [AGAIN] * 4 + [CONVICT]


def test_a_provider_that_says_that_another_try_is_in_vain_is_believed_once_others_passed():
    assert judged(alone(), FINAL, 0, 0, 1) == [AGAIN, AGAIN, CONVICT]


def test_while_the_provider_fails_at_random_who_fails_often_is_not_to_blame():
    """Of the others one is answered for each that fails; later four for each."""
    one = alone()
    tries = [one.failed(ILL, answers=20 * n, failures=1 + 21 * n) for n in range(9)]
    assert tries == [AGAIN] * 9
    assert one.failed(ILL, answers=1000, failures=1 + 21 * 9) is CONVICT


@pytest.mark.parametrize("first", [0, 10])
@pytest.mark.parametrize(("answered", "judgement"), [(8, CONVICT), (7, AGAIN)])
def test_it_stands_out_where_four_of_the_others_are_answered_for_each_that_fails(
    first, answered, judgement
):
    """Two of the others fail between its first try and its second."""
    one = alone()
    facts = zip((0, 1, 2, 3, answered), (1000, 1003, 1004, 1005, 1006), strict=True)
    tries = [one.failed(ILL, first + answers, failures) for answers, failures in facts]
    assert tries == [AGAIN] * 4 + [judgement]


def test_its_own_failures_are_not_those_of_others():
    one = alone()
    assert [one.failed(ILL, answers=n, failures=1 + n) for n in range(5)][-1] is CONVICT


@pytest.mark.parametrize("error", [BAD, WrongDimensions(status=200)], ids=repr)
def test_a_request_that_is_answered_badly_is_tried_once_more_and_then_parted(error):
    assert judged(several(), error, 0, 0) == [AGAIN, CONVICT]
    assert judged(several(since=0), error, 0) == [CONVICT]


def test_a_single_text_has_all_its_attempts_as_one_machine_of_many_may_be_ill():
    assert judged(alone(), BAD, 0, 1, 1, 1, 1) == [AGAIN] * 4 + [CONVICT]
    assert judged(alone(since=0), BAD, 1, 1, 1, 1, 1) == [AGAIN] * 4 + [CONVICT]


def test_a_single_text_waits_until_others_are_answered_well():
    one = alone(since=3)
    assert judged(one, BAD, 3, 3, 3, 3, 3, 3) == [AGAIN] * 4 + [OTHERS] * 2
    assert one.waits_for_others
    assert judged(one, BAD, 4) == [CONVICT]


def test_a_request_that_is_forbidden_twice_is_parted():
    assert judged(several(), FORBIDDEN, 0, 0) == [AGAIN, CONVICT]
    assert judged(several(since=0), FORBIDDEN, 0) == [CONVICT]


def test_a_single_text_is_blamed_where_others_were_answered_since_it_was_forbidden_last():
    assert judged(alone(), FORBIDDEN, 0, 1) == [AGAIN, CONVICT]
    assert judged(alone(since=0), FORBIDDEN, 1) == [CONVICT]
    assert judged(alone(since=0), FORBIDDEN, 0, 0, 1) == [OTHERS, OTHERS, CONVICT]


@pytest.mark.parametrize("error", OF_ALL, ids=repr)
@pytest.mark.parametrize("of", [alone, several])
def test_what_concerns_all_speaks_against_nobody(error, of):
    assert set(judged(of(), error, *range(100))) == {AGAIN}


@pytest.mark.parametrize(("error", "tries"), [(ILL, 4), (BAD, 4), (FORBIDDEN, 1)])
def test_what_was_answered_before_the_provider_was_left_alone_speaks_against_nobody(
    error, tries
):
    one = alone()
    judged(one, error, *range(tries))
    assert judged(one, BreakerOpen(), 50) == [AGAIN]
    assert CONVICT not in judged(one, error, 50, 50)
    assert CONVICT in judged(one, error, 51, 52, 53, 54, 55)


def test_the_first_try_after_the_provider_was_left_alone_counts_where_others_were_answered():
    one = alone()
    judged(one, ILL, 0, 1, 2)
    judged(one, BreakerOpen(), 50)
    assert judged(one, ILL, 50, 51, 52) == [AGAIN, AGAIN, CONVICT]


def test_throttled_tries_count_apart():
    one = alone()
    judged(one, RateLimited(status=429), 0, 1, 2)
    judged(one, ILL, 3)
    assert (one.throttled, one.tries) == (3, 1)


ERRORS = st.sampled_from([ILL, BAD, FORBIDDEN, FINAL, *OF_ALL])


@given(
    st.lists(ERRORS, max_size=60), st.integers(0, 9), st.none() | st.just(0), st.integers(1, 3)
)
def test_without_an_answer_to_others_no_single_text_is_ever_blamed(errors, count, since, most):
    one = Suspicion(most, texts=1, since=None if since is None else count)
    assert CONVICT not in [one.failed(error, count) for error in errors]
