"""Every error of aiokafka means something to us."""

import asyncio
import inspect

import pytest
from aiokafka import errors

from worker.adapters.kafka_errors import MEANING, is_unreadable, translate, translated
from worker.errors import BrokerUnavailable, ConfigError, FencedError

CLASSES = sorted(
    {
        kind
        for kind in vars(errors).values()
        if inspect.isclass(kind) and issubclass(kind, Exception)
    },
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_class_of_the_library_has_a_meaning_of_its_own(kind):
    assert kind in MEANING


@pytest.mark.parametrize(
    "kind", [kind for kind in CLASSES if getattr(kind, "retriable", False)]
)
def test_what_the_library_would_try_again_is_never_an_error_of_configuration(kind):
    assert MEANING[kind] is not ConfigError


@pytest.mark.parametrize(
    ("raised", "meaning"),
    [
        (TimeoutError(), BrokerUnavailable),
        (ConnectionRefusedError("refused"), BrokerUnavailable),
        (errors.KafkaConnectionError("nobody"), BrokerUnavailable),
        (errors.CommitFailedError(), FencedError),
        (errors.IllegalStateError("not assigned"), FencedError),
        (errors.GroupAuthorizationFailedError("group"), ConfigError),
        (errors.ConsumerStoppedError(), BrokerUnavailable),
    ],
)
def test_an_error_comes_out_as_one_of_ours_with_its_cause(raised, meaning):
    with pytest.raises(meaning, match=type(raised).__name__) as caught, translated():
        raise raised
    assert caught.value.__cause__ is raised


def test_a_class_that_a_later_version_adds_counts_as_its_base():
    class NewError(errors.RebalanceInProgressError):
        pass

    assert type(translate(NewError())) is FencedError


@pytest.mark.parametrize("raised", [asyncio.CancelledError(), FencedError(), ValueError()])
def test_what_is_not_the_librarys_passes_through(raised):
    with pytest.raises(type(raised)) as caught, translated():
        raise raised
    assert caught.value is raised


def test_a_fetcher_that_has_died_says_nothing_about_a_batch():
    dead = errors.KafkaError("Unexpected error during data retrieval")
    dead.__cause__ = ValueError("whatever has ended it")
    assert not is_unreadable(dead)


@pytest.mark.parametrize(
    "error",
    [
        errors.KafkaError("Control batch did not contain any records"),
        errors.CorruptRecordException("a checksum"),
        OSError("a codec"),
    ],
    ids=repr,
)
def test_what_a_batch_is_broken_by_is_said_of_the_batch(error):
    assert is_unreadable(error)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (errors.KafkaConnectionError("nobody"), "KafkaConnectionError: nobody"),
        (errors.KafkaConnectionError(), "KafkaConnectionError"),
        (ConnectionRefusedError("refused"), "ConnectionRefusedError: refused"),
    ],
)
def test_the_class_is_said_once(raised, said):
    assert str(translate(raised)) == said


def test_a_topic_that_is_not_there_is_said_with_the_command_that_makes_it():
    assert "`embedfleet topics create`" in str(translate(errors.UnknownTopicOrPartitionError()))


def test_a_message_is_one_line_of_bounded_length():
    message = str(translate(errors.KafkaError("word\n  " * 500)))
    assert "\n" not in message
    assert len(message) < 400
