"""
What each error of aiokafka means for us.

Owns the one table from its classes to ours; a test walks `aiokafka.errors` and fails on a class
that is not in it. `CancelledError` is not an `Exception` and passes through untouched.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from aiokafka import errors

from worker.errors import BrokerUnavailable, ConfigError, FencedError, WorkerError

_MAX_MESSAGE_CHARACTERS = 300

# Trying again may help: it is the broker's, the network's, or a leader's that has moved.
_UNAVAILABLE: tuple[type[Exception], ...] = (
    OSError,  # also TimeoutError, ConnectionError and ssl.SSLError
    errors.KafkaError,
    errors.NoBrokersAvailable,
    errors.NodeNotReadyError,
    errors.KafkaProtocolError,
    errors.CorrelationIdError,
    errors.Cancelled,
    errors.TooManyInFlightRequests,
    errors.StaleMetadata,
    errors.MetadataEmptyBrokerList,
    errors.KafkaUnavailableError,
    errors.KafkaTimeoutError,
    errors.KafkaConnectionError,
    errors.QuotaViolationError,
    errors.ConsumerStoppedError,
    errors.NoOffsetForPartitionError,
    errors.ProducerClosed,
    errors.ProducerFenced,
    errors.BrokerResponseError,
    errors.NoError,
    errors.UnknownError,
    errors.OffsetOutOfRangeError,
    errors.CorruptRecordException,
    errors.UnknownTopicOrPartitionError,
    errors.LeaderNotAvailableError,
    errors.NotLeaderForPartitionError,
    errors.RequestTimedOutError,
    errors.BrokerNotAvailableError,
    errors.ReplicaNotAvailableError,
    errors.StaleControllerEpochError,
    errors.StaleLeaderEpochCodeError,
    errors.GroupLoadInProgressError,
    errors.GroupCoordinatorNotAvailableError,
    errors.NotCoordinatorForGroupError,
    errors.NotEnoughReplicasError,
    errors.NotEnoughReplicasAfterAppendError,
    errors.TopicAlreadyExistsError,
    errors.NotControllerError,
    errors.OutOfOrderSequenceNumber,
    errors.DuplicateSequenceNumber,
    errors.InvalidProducerEpoch,
    errors.InvalidTxnState,
    errors.InvalidProducerIdMapping,
    errors.InvalidTransactionTimeout,
    errors.ConcurrentTransactions,
    errors.TransactionCoordinatorFenced,
    errors.OperationNotAttempted,
    errors.KafkaStorageError,
    errors.LogDirNotFound,
    errors.UnknownProducerId,
    errors.ReassignmentInProgress,
    errors.NonEmptyGroup,
    errors.GroupIdNotFound,
    errors.FetchSessionIdNotFound,
    errors.InvalidFetchSessionEpoch,
    errors.ListenerNotFound,
)

# This member is not what the group thinks of it, or has not what it acts upon.
_FENCED: tuple[type[Exception], ...] = (
    errors.IllegalStateError,
    errors.CommitFailedError,
    errors.IllegalGenerationError,
    errors.UnknownMemberIdError,
    errors.RebalanceInProgressError,
    errors.MemberIdRequired,
)

# Nothing changes before a person has changed something.
_CONFIGURATION: tuple[type[Exception], ...] = (
    errors.IllegalArgumentError,
    errors.UnrecognizedBrokerVersion,
    errors.IncompatibleBrokerVersion,
    errors.AuthenticationMethodNotSupported,
    errors.AuthenticationFailedError,
    errors.UnsupportedCodecError,
    errors.KafkaConfigurationError,
    errors.IllegalOperation,
    errors.RecordTooLargeError,
    errors.InvalidFetchRequestError,
    errors.MessageSizeTooLargeError,
    errors.OffsetMetadataTooLargeError,
    errors.InvalidTopicError,
    errors.RecordListTooLargeError,
    errors.InvalidRequiredAcksError,
    errors.InconsistentGroupProtocolError,
    errors.InvalidGroupIdError,
    errors.InvalidSessionTimeoutError,
    errors.InvalidCommitOffsetSizeError,
    errors.TopicAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.InvalidTimestampError,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
    errors.UnsupportedVersionError,
    errors.InvalidPartitionsError,
    errors.InvalidReplicationFactorError,
    errors.InvalidReplicationAssignmentError,
    errors.InvalidConfigurationError,
    errors.InvalidRequestError,
    errors.UnsupportedForMessageFormatError,
    errors.PolicyViolationError,
    errors.TransactionalIdAuthorizationFailed,
    errors.SecurityDisabled,
    errors.SaslAuthenticationFailed,
    errors.DelegationTokenAuthDisabled,
    errors.DelegationTokenNotFound,
    errors.DelegationTokenOwnerMismatch,
    errors.DelegationTokenRequestNotAllowed,
    errors.DelegationTokenAuthorizationFailed,
    errors.DelegationTokenExpired,
    errors.InvalidPrincipalType,
)

_NOT_OF_A_BATCH = (
    errors.OffsetOutOfRangeError,
    errors.NoOffsetForPartitionError,
    errors.TopicAuthorizationFailedError,
    errors.IllegalStateError,
    errors.ConsumerStoppedError,
)

MEANING: dict[type[Exception], type[WorkerError]] = {
    **dict.fromkeys(_UNAVAILABLE, BrokerUnavailable),
    **dict.fromkeys(_FENCED, FencedError),
    **dict.fromkeys(_CONFIGURATION, ConfigError),
}


def translate(error: Exception) -> WorkerError:
    """Return what an error of the library means; a class we do not know counts as its base."""
    meaning = next(MEANING[kind] for kind in type(error).__mro__ if kind in MEANING)
    if isinstance(error, errors.UnknownTopicOrPartitionError):
        return meaning(f"{summary(error)}: is the topic there? `embedfleet topics create`")
    return meaning(summary(error))


def summary(error: Exception) -> str:
    """Return the class and the message of an error, on one line of bounded length."""
    name = type(error).__name__
    # The library's own errors begin with their class already.
    message = " ".join(str(error).split()).removeprefix(name).removeprefix(": ")
    message = message[:_MAX_MESSAGE_CHARACTERS]
    return f"{name}: {message}" if message else name


def is_unreadable(error: Exception) -> bool:
    """
    Whether an error out of polling says that a batch cannot be read.

    What a codec or the parser raises on broken bytes is of any class: OSError, EOFError,
    SystemError ...; so whatever does not speak of the partition or the client does. A bare
    `KafkaError` with a cause is the fetcher's, whose task has ended.
    """
    has_no_fetcher = type(error) is errors.KafkaError and error.__cause__ is not None
    return not has_no_fetcher and not isinstance(error, _NOT_OF_A_BATCH)


@contextmanager
def translated() -> Iterator[None]:
    """Raise what the library raises in here as one of ours."""
    try:
        yield
    except (
        OSError,
        errors.KafkaError,
        errors.ConsumerStoppedError,
        errors.IllegalOperation,
    ) as error:
        raise translate(error) from error
