"""A command that was started with a standard stream closed ends as it would with all open."""

import os
import subprocess
import sys

import pytest

UNBUFFERED = "PYTHONUNBUFFERED"


@pytest.mark.parametrize(
    ("closed", "arguments", "code"),
    [
        ("2>&-", "index status --database.url postgresql://nobody@127.0.0.1:1/x", 2),
        (">&-", "config", 0),
        ("<&- >&- 2>&-", "config", 0),
    ],
)
def test_a_closed_stream_changes_no_end(closed, arguments, code):
    ended = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m worker {arguments} {closed}"],
        capture_output=True,
        text=True,
        env=os.environ | {"EMBEDFLEET_CONFIG": ""},
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "")


_SHOWS_AND_FAILS = """
import sys
from worker.cli import root
from worker.cli.output import show
from worker.errors import JobFailed

def run(arguments, secrets):
    show("what was measured")
    raise JobFailed("why it has failed")

root._run = run
sys.exit(root.main([]))
"""


def test_what_was_shown_before_a_failure_hides_it_from_nobody_where_the_pipe_is_closed():
    """As `| tee` leaves it at Ctrl-C."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    environment = {name: value for name, value in os.environ.items() if name != UNBUFFERED}
    ended = subprocess.run(
        [sys.executable, "-c", _SHOWS_AND_FAILS],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        check=False,
    )
    os.close(write_end)
    assert (ended.returncode, ended.stderr) == (2, "embedfleet: why it has failed\n")
