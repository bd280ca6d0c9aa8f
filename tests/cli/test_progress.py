"""How far a job is, as a user is told with a terminal and without one."""

import io
import sys

from worker.cli.progress import Lines, told, watched
from worker.core.progress import Progress


def test_lines_tell_of_each_phase_and_each_tenth_of_it(capsys):
    lines = Lines()
    for now in (
        Progress("counting rows"),
        Progress("loading", 0.01),
        Progress("loading", 0.02, 61.2),
        Progress("loading", 0.12, 55.0),
        Progress("loading", 0.15, 50.0),
        Progress("loading", 0.9, 4000.0),
        Progress("scanning", 0.5),
    ):
        lines("docs", now)
    assert capsys.readouterr().err.splitlines() == [
        "docs: counting rows",
        "docs: loading 1%",
        "docs: loading 12%, 0:55 left",
        "docs: loading 90%, 1:06:40 left",
        "docs: scanning 50%",
    ]
    assert told(Progress("loading", 0.5, 61.2)) == "50%, 1:01 left"


class Terminal(io.StringIO):
    """A terminal that keeps what is written."""

    def isatty(self) -> bool:
        return True


def test_what_others_call_themselves_is_shown_as_it_is(monkeypatch):
    """A build waits for transactions of anybody, and names them."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    waiting = "waiting for old snapshots (PostgreSQL's process 1, [/red] [b]report[/b])"
    with watched() as watch:
        watch("docs", Progress(waiting))
    assert "[/red] [b]report[/b]" in terminal.getvalue()
