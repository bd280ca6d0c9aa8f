"""Log lines: one format for ours and for libraries, no text, no secret, never an exception."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog

from worker.config import TelemetryOptions
from worker.errors import ProviderUnavailable
from worker.telemetry import configure_logging, work_fields
from worker.telemetry.logs import RepeatFilter

CANARY = "canary-4711"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, show = root.handlers[:], root.level, warnings.showwarning
    # `force=True` closes the handlers it removes, and pytest's own are still needed.
    root.handlers.clear()
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    warnings.showwarning = show
    structlog.reset_defaults()


@pytest.fixture
def stream() -> io.BytesIO:
    return io.BytesIO()


@pytest.fixture
def lines(stream: io.BytesIO) -> Lines:
    configure_logging(TelemetryOptions(), stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def fail(error: Exception, cause: Exception | None = None) -> None:
    raise error from cause


def test_a_line_is_json_with_time_level_and_action_first(
    lines: Lines, stream: io.BytesIO
) -> None:
    structlog.get_logger().info("document_settled", tenant="acme", took_seconds=0.5)
    (line,) = lines()
    assert list(line) == ["time", "level", "action", "tenant", "took_seconds"]
    assert (line["level"], line["action"], line["tenant"]) == (
        "info",
        "document_settled",
        "acme",
    )
    assert datetime.fromisoformat(line["time"]).tzinfo is UTC
    assert stream.getvalue().endswith(b"\n")


def test_an_action_of_its_own_stands_beside_the_words_for_people(lines: Lines) -> None:
    structlog.get_logger().info("admin port", port=9464, action="admin_listening")
    (line,) = lines()
    assert list(line) == ["time", "level", "action", "message", "port"]
    assert (line["action"], line["message"]) == ("admin_listening", "admin port")


def test_a_line_about_a_record_says_which(lines: Lines) -> None:
    fields = work_fields(("documents", 3, 12), "acme", f"00-{TRACE}-00f067aa0ba902b7-01")
    structlog.get_logger().warning("dead_lettered", **fields)
    (line,) = lines()
    assert line["position"] == "documents/3/12"
    assert line["tenant"] == "acme"
    assert line["trace_id"] == TRACE
    assert work_fields(("t", 0, 0), None, "nonsense") == {"position": "t/0/0"}


def test_the_context_of_the_task_is_carried(lines: Lines) -> None:
    with structlog.contextvars.bound_contextvars(tenant="acme"):
        structlog.get_logger().info("claimed")
    assert lines()[0]["tenant"] == "acme"


@pytest.mark.parametrize(
    ("level", "written"),
    [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)],
)
def test_the_level_holds_for_ours_and_for_libraries(
    stream: io.BytesIO, level: Any, written: int
) -> None:
    configure_logging(TelemetryOptions(log_level=level), stream)
    for name in ("debug", "info", "warning", "error"):
        getattr(structlog.get_logger(), name)("ours")
        getattr(logging.getLogger("library"), name)(f"a {name} line")
    assert len(stream.getvalue().splitlines()) == 2 * written


def test_lines_of_libraries_take_the_same_way(lines: Lines) -> None:
    logging.getLogger("aiokafka.conn").warning("Unable to connect to %s", "broker:9092")
    (line,) = lines()
    assert list(line)[:3] == ["time", "level", "action"]
    assert line["action"] == "library_log"
    assert line["level"] == "warning"
    assert line["logger"] == "aiokafka.conn"
    assert line["message"] == "Unable to connect to broker:9092"


def test_warnings_are_lines_too(lines: Lines) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("odd", stacklevel=1)
        logging.captureWarnings(capture=False)
    assert lines()[0]["logger"] == "py.warnings"


@pytest.mark.parametrize(
    "name",
    ["password", "sasl_password", "api_key", "Authorization", "access_token", "token", "secret",
     "dsn", "text", "content", "input", "vector"],
)  # fmt: skip
def test_values_under_telling_names_are_masked(lines: Lines, name: str) -> None:
    structlog.get_logger().info("configured", **{name: CANARY})
    structlog.get_logger().info("configured", settings={"database": [{name: CANARY}]})
    assert CANARY not in json.dumps(lines())
    assert lines()[0][name] == "***"


@pytest.mark.parametrize("name", ["tokens", "max_request_tokens", "key_hash", "context"])
def test_numbers_and_harmless_names_are_shown(lines: Lines, name: str) -> None:
    structlog.get_logger().info("embedded", **{name: 12})
    assert lines()[0][name] == 12


@pytest.mark.parametrize(
    "line",
    [
        f"postgresql://worker:{CANARY}@db:5432/documents is gone",
        f"sent Authorization: Bearer {CANARY}",
        f"Incorrect API key provided: sk-{CANARY}",
        f"connect failed password={CANARY} host=db",
    ],
)
def test_secrets_inside_strings_are_masked(lines: Lines, line: str) -> None:
    structlog.get_logger().info("failed", detail=line)
    logging.getLogger("library").error("%s", line)
    assert CANARY not in json.dumps(lines())
    assert len(lines()) == 2
    assert "***" in lines()[0]["detail"]


def test_an_address_without_credentials_is_shown(lines: Lines) -> None:
    structlog.get_logger().info("connected", url="https://api.openai.com/v1?x=a@b")
    assert lines()[0]["url"] == "https://api.openai.com/v1?x=a@b"


def test_an_error_is_its_class_its_first_line_its_causes_and_its_place(lines: Lines) -> None:
    try:
        fail(ProviderUnavailable("the provider answered 503\nand more"), OSError("reset"))
    except ProviderUnavailable:
        structlog.get_logger().exception("embedding_failed")
        logging.getLogger("library").exception("failed")
    ours, theirs = lines()
    for line in (ours, theirs):
        assert line["error"] == "ProviderUnavailable"
        assert line["error_message"] == "the provider answered 503"
        assert line["causes"] == ["OSError: reset"]
        assert line["traceback"][-1].endswith(" fail")
    assert ours["action"] == "embedding_failed"


def test_a_group_of_errors_names_its_members(lines: Lines) -> None:
    group = ExceptionGroup("several", [ValueError("one"), KeyError("two")])
    structlog.get_logger().error("stopped", exc_info=group)
    assert lines()[0]["causes"] == ["ValueError: one", "KeyError: 'two'"]


def test_a_value_that_the_database_quotes_is_not_repeated(lines: Lines) -> None:
    class DataError(Exception):
        sqlstate = "22P02"

    structlog.get_logger().error("store_failed", exc_info=DataError(f"invalid: {CANARY}"))
    (line,) = lines()
    assert CANARY not in json.dumps(line)
    assert line["error_message"] == "SQLSTATE 22P02"


@pytest.mark.parametrize(
    "value",
    [
        "\ud800",
        2**80,
        object(),
        {1: {2: 3}},
        {"a", "b"},
        b"\xff",
        float("nan"),
        ValueError("x"),
    ],
)
def test_a_line_is_written_whatever_is_logged(lines: Lines, value: object) -> None:
    structlog.get_logger().info("odd", odd=value)
    logging.getLogger("library").info("odd %s", value)
    assert [line["action"] for line in lines()] == ["odd", "library_log"]


def test_the_console_shows_the_same_to_people(stream: io.BytesIO) -> None:
    configure_logging(TelemetryOptions(log_format="console"), stream)
    structlog.get_logger().info("document_settled", tenant="acme", password=CANARY)
    logging.getLogger("aiokafka").warning("a line of a library")
    try:
        fail(ValueError("reason"))
    except ValueError:
        structlog.get_logger().exception("failed", odd="\ud800")
    shown = stream.getvalue().decode()
    assert "document_settled" in shown
    assert "tenant=acme" in shown
    assert "a line of a library" in shown
    assert "reason" in shown
    assert CANARY not in shown
    assert "\x1b" not in shown  # no colours where nobody sees them


def test_a_library_that_repeats_itself_is_heard_once_in_ten_seconds() -> None:
    now = [100.0]
    repeats = RepeatFilter(clock=lambda: now[0])

    def said(message: str, name: str = "aiokafka") -> str | None:
        record = logging.LogRecord(name, logging.ERROR, "", 1, message, ("node",), None)
        return record.getMessage() if repeats.filter(record) else None

    assert said("no %s") == "no node"
    assert said("no %s") is None
    assert said("other %s") == "other node"
    assert said("no %s", "asyncpg") == "no node"
    now[0] += 9.9
    assert said("no %s") is None
    now[0] += 0.1
    assert said("no %s") == "no node (2 more like it)"
    now[0] += 10
    assert said("no %s") == "no node"


def test_libraries_are_kept_from_repeating_themselves(lines: Lines) -> None:
    for node in range(5):
        logging.getLogger("aiokafka").error("Unable to connect to node %s", node)
        structlog.get_logger().error("ours", node=node)
    assert [line["action"] for line in lines()].count("library_log") == 1
    assert [line["action"] for line in lines()].count("ours") == 5


def test_what_was_said_is_remembered_within_bounds() -> None:
    repeats = RepeatFilter(clock=lambda: 0.0)
    for number in range(3000):
        repeats.filter(logging.LogRecord("x", logging.INFO, "", 1, f"{number}", None, None))
    assert len(repeats._said) <= 1000
