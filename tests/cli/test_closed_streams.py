"""A command that was started with a standard stream closed ends as it would with all open."""

import os
import subprocess
import sys

import pytest


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
