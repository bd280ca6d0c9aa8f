"""
What can go wrong, as classes by what happens next.

    WorkerError
      TransientError          try again; nobody's fault
        ProviderUnavailable   the embedding provider did not answer, or answered 5xx
          RateLimited         ... or asked for patience
          BreakerOpen         ... or is left alone for now
          BadOutput           ... or answered 200 and nothing that can be used
            WrongDimensions   ...... vectors of another size
          ProviderMisconfigured  ... or refuses the model or the request: of all texts alike
            KeyRefused      ...... or the key: of all models alike
            Forbidden       ...... or forbids it, and does not say whether to the key or a text
          QuotaExhausted      ... or the account has used up what it paid for
        StoreUnavailable      PostgreSQL did not answer, or the outcome is unknown
        BrokerUnavailable     Kafka did not answer
      PermanentError          this record will never pass: dead-letter it, with a reason code
        RejectedInput         the provider refused the text itself
        UnknownCollection     no such collection, also after the time of grace
      FencedError             someone else owns the partition now: complete nothing
      JobFailed               end a one-shot job that cannot reach its end, in one sentence
      ConfigError             refuse to start, in one sentence

Adapters translate every exception of their library into one of these; `CancelledError`
passes through untouched.
"""

from typing import NamedTuple

from schemas.dead_letter import NO_FACTS, Facts, Reason


class WorkerError(Exception):
    """An error of ours; the class docstring is the message where none is given."""

    def __str__(self) -> str:
        """Return the message, or the first line of the class docstring."""
        return super().__str__() or (type(self).__doc__ or "").strip().splitlines()[0]


class TransientError(WorkerError):
    """It may pass the next time."""


class ProviderUnavailable(TransientError):
    """
    The embedding provider did not answer, or answered that it cannot.

    `request_id` is by what it finds the request in its logs, `retry_after_seconds` for how
    long it asks to wait, `should_retry` whether it says that another try makes sense; None
    where it does not say.
    """

    def __init__(
        self,
        message: str = "",
        *,
        status: int | None = None,
        request_id: str | None = None,
        retry_after_seconds: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds
        self.should_retry = should_retry

    @property
    def facts(self) -> Facts:
        """What a dead letter says of the answer."""
        return Facts(provider_status=self.status, provider_request_id=self.request_id)


class RateLimited(ProviderUnavailable):
    """The provider asks for patience; `retry_after_seconds` is what it asked for, if it did."""


class BreakerOpen(ProviderUnavailable):
    """The provider is left alone for now, it was not called; `retry_after_seconds` is told."""


class BadOutput(ProviderUnavailable):
    """The provider answered 200, but not one usable vector for each text."""


class WrongDimensions(BadOutput):
    """The provider answers vectors of other dimensions than the collection has."""


class ProviderMisconfigured(ProviderUnavailable):
    """The provider refuses the key, the model or the request, whatever the text."""


class KeyRefused(ProviderMisconfigured):
    """The provider refuses the key, or there is none to send; whatever the model."""


class Forbidden(ProviderMisconfigured):
    """The provider, or a firewall before it, forbids the request (HTTP 403)."""


class QuotaExhausted(ProviderUnavailable):
    """The account at the provider has used up what it paid for; no wait will change that."""


class StoreUnavailable(TransientError):
    """PostgreSQL did not answer in time; whether the write happened is unknown."""


class BrokerUnavailable(TransientError):
    """Kafka did not answer in time; whether the write happened is unknown."""


class PermanentError(WorkerError):
    """
    This record will not pass, however often it is tried.

    The message becomes the detail of its dead letter: no text of the document, no prose of a
    provider's or of PostgreSQL's, no secret.
    """

    def __init__(self, reason: Reason, message: str = "", *, facts: Facts = NO_FACTS) -> None:
        super().__init__(message or reason.value)
        self.reason = reason
        self.facts = facts


class RefusedText(NamedTuple):
    """A text that a model refuses, by the hash of its chunk."""

    model: str
    chunk_hash: bytes


class RejectedInput(PermanentError):
    """
    The provider refuses the text itself (HTTP 400 for content, 413, 422).

    `text` names it where it was found among those of its request.
    """

    def __init__(
        self,
        message: str = "",
        *,
        status: int | None = None,
        request_id: str | None = None,
        reason: Reason = Reason.REJECTED_INPUT,
    ) -> None:
        facts = Facts(provider_status=status, provider_request_id=request_id)
        super().__init__(reason, message, facts=facts)
        self.text: RefusedText | None = None

    def of(self, text: RefusedText) -> "RejectedInput":
        """Return this error about one text."""
        status, request_id = self.facts.provider_status, self.facts.provider_request_id
        error = RejectedInput(
            str(self), status=status, request_id=request_id, reason=self.reason
        )
        error.text = text
        return error


class UnknownCollection(PermanentError):
    """No collection of that name, also after the time of grace."""

    def __init__(self, name: str) -> None:
        super().__init__(Reason.UNKNOWN_COLLECTION, f"there is no collection {name!r}")
        self.name = name


class FencedError(WorkerError):
    """Another claim of the partition is newer: stop, complete nothing."""


class JobFailed(WorkerError):
    """What a one-shot job depends on does not go as it must; the message says what."""


class ConfigError(WorkerError):
    """The configuration cannot work; the message says which value and why."""
