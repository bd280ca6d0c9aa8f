"""How far a job is, as a user is told where there is no terminal."""

from worker.cli.progress import Lines, told
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
