"""A worker that starts before its database waits for it, and says so in words of its own."""

from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from worker.app.worker import _database
from worker.config import DatabaseOptions, Settings
from worker.errors import ConfigError


async def test_a_database_that_is_away_is_waited_for_and_named():
    database = DatabaseOptions(url="postgresql://me@127.0.0.1:1/docs")
    settings = replace(Settings(), database=database, startup_timeout_seconds=0.5)
    with (
        capture_logs() as lines,
        pytest.raises(ConfigError, match=r"PostgreSQL .* cannot be reached.*waited for 0.5 s"),
    ):
        await _database(settings)
    assert {line["action"] for line in lines} == {"database_waits"}
    assert all("PostgreSQL" in line["error"] for line in lines)
