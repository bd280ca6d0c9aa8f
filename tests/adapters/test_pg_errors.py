"""Every error of asyncpg has a meaning in our words, or is known to be a defect."""

import asyncio
import ssl

import asyncpg
import pytest

from schemas.dead_letter import Facts, Reason
from worker.adapters.pg_client import LockNotAvailable, translate, translated
from worker.errors import ConfigError, FencedError, PermanentError, StoreUnavailable

# Ours to fix, or no errors at all: they pass through as they are.
PASS_THROUGH = {
    "InternalClientError": "a defect of asyncpg, or of our use of it",
    "InterfaceError": "misuse, unless the connection is lost: see below",
}
CLASSES = {
    name: found
    for name, found in vars(asyncpg.exceptions).items()
    if isinstance(found, type)
    and issubclass(found, BaseException)
    and not issubclass(found, Warning)
}

# SQLSTATEs (PostgreSQL manual, appendix A).
PASSES_BY_ITSELF = [
    "08000",
    "08006",
    "08P01",
    "25006",
    "25P03",
    "40001",
    "40P01",
    "40003",
    "53100",
    "53200",
    "53300",
    "55006",
    "57014",
    "57P01",
    "57P02",
    "57P03",
    "58030",
    "72000",
    "XX000",
]
REFUSED = [
    "21000",
    "22000",
    "22003",
    "22021",
    "22P02",
    "22P05",
    "23502",
    "23514",
    "54000",
    "54001",
    "P0001",
]
TO_BE_MENDED = [
    "0A000",
    "28000",
    "28P01",
    "3D000",
    "3F000",
    "42501",
    "42703",
    "42P01",
]


def meaning_of(state: str) -> type:
    found = asyncpg.PostgresError("refused")
    found.sqlstate = state
    return type(translate(found))


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_of_asyncpg_is_mapped_or_known_to_be_a_defect(name: str) -> None:
    ours = translate(CLASSES[name]("text"))
    assert (ours is None) == (name in PASS_THROUGH)
    assert isinstance(ours, StoreUnavailable | PermanentError | ConfigError | None)


@pytest.mark.parametrize(
    "state",
    PASSES_BY_ITSELF,
)
def test_what_passes_by_itself_is_tried_again(state: str) -> None:
    assert meaning_of(state) is StoreUnavailable


def test_a_lock_that_is_not_to_be_had_can_be_told_apart() -> None:
    assert type(translate(asyncpg.LockNotAvailableError("lock"))) is LockNotAvailable


@pytest.mark.parametrize("state", REFUSED)
def test_a_value_that_is_refused_is_dead_lettered(state: str) -> None:
    error = asyncpg.PostgresError("refused")
    error.sqlstate = state
    ours = translate(error)
    assert isinstance(ours, PermanentError)
    assert ours.reason is Reason.REJECTED_BY_STORE
    assert state in str(ours)


def refusal(error: asyncpg.PostgresError, constraint: str | None) -> PermanentError:
    error.constraint_name = constraint
    ours = translate(error)
    assert isinstance(ours, PermanentError)
    return ours


def test_a_refusal_is_told_by_codes_and_names_and_never_by_the_words_of_postgresql() -> None:
    error = asyncpg.CheckViolationError("Failing row contains (secret, secret).")
    error.detail = "Key (id)=(secret) already exists."
    ours = refusal(error, "short")
    assert str(ours) == "SQLSTATE 23514 (CheckViolationError), constraint short"
    assert ours.facts == Facts(sqlstate="23514", constraint="short")


@pytest.mark.parametrize("prose", ["the text is a secret", "x" * 64, "", "a\nb", '"a"'])
def test_what_is_no_name_of_a_constraint_is_not_told(prose: str) -> None:
    """A trigger of an operator's may raise with anything in that field."""
    ours = refusal(asyncpg.CheckViolationError("no"), prose)
    assert str(ours) == "SQLSTATE 23514 (CheckViolationError)"
    assert ours.facts == Facts(sqlstate="23514")


@pytest.mark.parametrize("state", TO_BE_MENDED)
def test_what_an_operator_must_mend_stops_the_worker(state: str) -> None:
    assert meaning_of(state) is ConfigError


def test_a_plan_that_a_migration_has_made_invalid_is_tried_again() -> None:
    error = asyncpg.InvalidCachedStatementError("cached plan must not change result type")
    assert isinstance(translate(error), StoreUnavailable)


def test_an_error_without_a_state_is_tried_again() -> None:
    assert isinstance(translate(asyncpg.PostgresError("what?")), StoreUnavailable)


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError(), ConnectionResetError(), TimeoutError(), FileNotFoundError()],
    ids=repr,
)
def test_a_server_that_does_not_answer_is_asked_again(error: Exception) -> None:
    assert isinstance(translate(error), StoreUnavailable)


def test_a_certificate_that_is_not_trusted_stops_the_worker() -> None:
    error = ssl.SSLCertVerificationError()
    error.verify_message = "self-signed certificate"
    assert "self-signed" in str(translate(error))
    assert isinstance(translate(error), ConfigError)


class Connection:
    def __init__(self, *, closed: bool | None) -> None:
        self._closed = closed

    def is_closed(self) -> bool:
        if self._closed is None:
            raise asyncpg.InterfaceError("the connection has been released back to the pool")
        return self._closed


@pytest.mark.parametrize("closed", [True, None])
def test_an_interface_error_on_a_lost_connection_is_an_outage(*, closed: bool | None) -> None:
    with pytest.raises(StoreUnavailable), translated(Connection(closed=closed)):
        raise asyncpg.InterfaceError("connection is closed")


def test_an_interface_error_on_a_good_connection_is_a_defect() -> None:
    with pytest.raises(asyncpg.InterfaceError), translated(Connection(closed=False)):
        raise asyncpg.InterfaceError("another operation is in progress")


@pytest.mark.parametrize("error", [KeyError("x"), FencedError(), AssertionError()], ids=repr)
def test_what_is_not_asyncpgs_passes_through_untouched(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, translated():
        raise error
    assert caught.value is error


def test_the_cause_is_kept() -> None:
    cause = asyncpg.DeadlockDetectedError("deadlock")
    with pytest.raises(StoreUnavailable) as caught, translated():
        raise cause
    assert caught.value.__cause__ is cause


def test_a_connection_that_was_ended_between_two_statements_is_an_outage():
    """asyncpg 0.32 calls it an internal error; seen when a claim ends a blocked writer."""
    said = "cannot switch to state 15; another operation (2) is in progress"
    with pytest.raises(StoreUnavailable), translated():
        raise asyncpg.InternalClientError(said)
    with pytest.raises(asyncpg.InternalClientError), translated():
        raise asyncpg.InternalClientError("no binary format encoder for type vector")


def test_an_url_without_a_user_is_refused_where_the_own_user_is_a_number_only(monkeypatch):
    """As in a container: asyncpg lets Python's KeyError pass."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "PGUSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)
    with pytest.raises(ConfigError, match="names no user"), translated():
        asyncio.run(asyncpg.connect("postgresql://127.0.0.1:1/search"))
