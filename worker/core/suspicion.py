"""
Whether the texts of a failed request are to blame for it.

Owns the failed tries of one request, or of a part of one, and what speaks against its texts. A
provider that fails says nothing by itself, as it may fail for everybody; only where it gives
others good answers meanwhile do texts stand out, and where it fails at random only those that
fail far more often than others. Once they do, a request of several is parted
to find the one, and a text that is alone is blamed. Refusals (`RejectedInput`) name the texts
and need no suspicion. Never waits, never sends.

Invariants: while nobody is answered, nobody is blamed; what was answered before the provider
was left alone speaks against nobody; quota, keys, models and patience concern everybody alike.
"""

from enum import Enum

from worker.errors import (
    BadOutput,
    BreakerOpen,
    Forbidden,
    ProviderMisconfigured,
    ProviderUnavailable,
    QuotaExhausted,
    RateLimited,
)

# One retry, then the request is parted; a part is a retry already.
_BAD_BEFORE_PARTING = 2
_FORBIDDEN_BEFORE_PARTING = 2
# A part of several documents has shown nothing yet but that one of them may be at fault: with
# one try, a provider that fails every other call would be asked 1.2 times as often as needed.
_TRIES_OF_A_PART = 2
# Where every other call fails, one text of 32 fails five times in a row. It is no more to blame
# than the others as long as not four in five of theirs are answered.
_ANSWERS_PER_FAILURE = 4


class Judgement(Enum):
    """What to do after a failed try."""

    TRY_AGAIN = "try again"
    CONVICT = "part the request, or blame the text that is alone"
    HEAR_OTHERS = "only answers to others can tell: ask for them first"


class Suspicion:
    """
    What speaks against the texts of one request.

    `answers` is how many good answers the provider has given for the model, to anybody, and
    `failures` how often it has failed for it.

        >>> alone = Suspicion(max_attempts=5, texts=1)
        >>> alone.failed(Forbidden(status=403), answers=7).name
        'TRY_AGAIN'
        >>> alone.failed(Forbidden(status=403), answers=7).name  # nobody was answered since
        'HEAR_OTHERS'
        >>> alone.failed(Forbidden(status=403), answers=8).name
        'CONVICT'
    """

    def __init__(
        self, max_attempts: int, *, texts: int, since: int | None = None, documents: int = 1
    ) -> None:
        """
        Begin with nothing; `since` is `answers` when a request with these texts failed.

        None: they are asked for the first time, and are no part of anything.
        """
        self._max_attempts = max_attempts
        self._is_alone = texts == 1
        self._is_part = since is not None
        parted_early = self._is_part and documents > 1
        self._tries_when_ill = (
            min(_TRIES_OF_A_PART, max_attempts) if parted_early else max_attempts
        )
        self._first_failed = since
        self._last_failed = since
        self._counted = 0
        self._failures_before = 0
        self._bad = 0
        self.forbidden = 0
        self.tries = 0
        self.throttled = 0
        self.waits_for_others = False

    def failed(self, error: ProviderUnavailable, answers: int, failures: int = 0) -> Judgement:
        """Take note of a failed try."""
        match error:
            case BreakerOpen():
                self._forget_answers(answers)
                return Judgement.TRY_AGAIN
            case RateLimited():
                self.throttled += 1
                return Judgement.TRY_AGAIN
        self.tries += 1
        if self.tries == 1:
            self._failures_before = failures
        judgement = self._judge(error, answers, failures - self._failures_before)
        self._last_failed = answers
        if self._first_failed is None:
            self._first_failed = answers
        self.waits_for_others = judgement is Judgement.HEAR_OTHERS
        return judgement

    def _judge(self, error: ProviderUnavailable, answers: int, failures: int) -> Judgement:
        match error:
            case BadOutput():
                return self._answered_badly(answers)
            case Forbidden():
                return self._was_forbidden(answers)
            case ProviderMisconfigured() | QuotaExhausted():
                return Judgement.TRY_AGAIN
            case _:
                is_final = error.should_retry is False
                return self._found_it_ill(answers, failures, is_final=is_final)

    def _forget_answers(self, answers: int) -> None:
        if self._last_failed is not None:
            self._first_failed = self._last_failed = answers

    def _answered_badly(self, answers: int) -> Judgement:
        self._bad += 1
        if not self._is_alone:
            is_enough = self._is_part or self._bad >= _BAD_BEFORE_PARTING
            return Judgement.CONVICT if is_enough else Judgement.TRY_AGAIN
        # All attempts: where one machine of several is ill, a good text is answered in time.
        if self._bad < self._max_attempts:
            return Judgement.TRY_AGAIN
        return _verdict(_is_later(answers, self._first_failed))

    def _was_forbidden(self, answers: int) -> Judgement:
        self.forbidden += 1
        if not self._is_part and self.forbidden < _FORBIDDEN_BEFORE_PARTING:
            return Judgement.TRY_AGAIN
        return _verdict(not self._is_alone or _is_later(answers, self._last_failed))

    def _found_it_ill(self, answers: int, failures: int, *, is_final: bool) -> Judgement:
        # A try counts only where somebody was answered since the one before: an outage is not
        # the fault of who was answered last before it.
        self._counted += self._last_failed is None or answers > self._last_failed
        is_enough = self._counted >= self._tries_when_ill or is_final
        of_others = max(0, failures - (self.tries - 1))
        stands_out = answers - (self._first_failed or 0) >= _ANSWERS_PER_FAILURE * of_others
        is_proven = is_enough and stands_out and _is_later(answers, self._first_failed)
        return Judgement.CONVICT if is_proven else Judgement.TRY_AGAIN


def _is_later(answers: int, before: int | None) -> bool:
    return before is not None and answers > before


def _verdict(is_proven: bool) -> Judgement:  # noqa: FBT001 one question, one answer
    return Judgement.CONVICT if is_proven else Judgement.HEAR_OTHERS
