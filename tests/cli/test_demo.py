"""The demonstration as a user runs it: to its end, and ended in the middle."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from worker.app.demo_screen import Screen
from worker.embedded.demo.servers import Servers

LIMIT_SECONDS = 300
# As a script starts what it sends to its background: nothing of the terminal's is for it.
IN_THE_BACKGROUND = (
    sys.executable,
    "-c",
    (
        "import os, signal, sys;"
        "signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL);"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    ),
)


def descendants(folder: Path) -> list[int]:
    """Processes that work in a folder: everything that the demonstration started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in words:
                found.append(int(entry.name))
    return found


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [*IN_THE_BACKGROUND, "-m", "worker", "demo", "--data-dir", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"COLUMNS": "100"},
        text=True,
        start_new_session=True,
    )


def gone(folder: Path) -> bool:
    """Wait until nothing that works in the folder is left."""
    deadline = time.monotonic() + 30
    while descendants(folder):
        if time.monotonic() > deadline:
            return False
    return True


@pytest.fixture
def folder():
    from tests.support.servers import open_folder

    with open_folder() as path:
        yield path


def test_it_ends_with_books_that_balance_and_leaves_nothing_behind(folder):
    process = start(folder)
    output, _ = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 0, output
    assert "0 lost; the books balance" in output
    events = int(re.search(r"events in the topic\s*│\s*([\d,]+)", output)[1].replace(",", ""))
    assert events > 1000
    for reason in ("undecodable", "missing_key", "unknown_type", "key_mismatch"):
        assert f"dead letter: {reason}" in output
    assert_one_is_explained_repaired_and_found(output)
    assert float(re.search(r"exact search: ([\d.]+)%", output)[1]) >= 95
    assert gone(folder)


def assert_one_is_explained_repaired_and_found(output):
    listed = output[output.index("The malformed records") :]
    place = re.search(r"undecodable\s*│\s*(\S+/\d+/\d+)", listed)[1]
    assert f"{place}: undecodable, in decode" in listed
    assert "What happened: The value is no JSON" in listed
    assert "What to do:    Repair the publisher" in listed
    assert f"{place}: replayed" in listed
    assert "the ledger says that it is resolved" in listed
    assert re.search(r"1\. 0\.\d+ lighthouse  Every four hours", listed)
    assert re.search(r"repaired and replayed\s*│\s*1 │", listed)


@pytest.mark.parametrize("stage", ["Starting", "Publishing"])
def test_an_interrupt_ends_everything(folder, stage):
    process = start(folder)
    for line in process.stdout:
        if line.startswith(stage):
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    assert gone(folder)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP])
def test_an_end_by_another_signal_leaves_nothing_behind_either(folder, ending):
    process = subprocess.Popen(
        [*IN_THE_BACKGROUND, "-m", "worker", "demo"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"COLUMNS": "100", "TMPDIR": str(folder)},
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if line.startswith("Starting"):
            break
    process.send_signal(ending)
    rest, _ = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    assert [found.name for found in folder.glob("embedfleet-demo-*")] == []
    assert gone(folder)


def test_what_is_to_be_copied_is_one_line_each_at_the_first_column(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    url = "postgresql://embedfleet@127.0.0.1:5432/" + "[b]" * 30
    Screen().copied(f"export EMBEDFLEET_DATABASE_URL={url}")
    assert capsys.readouterr().out == f"export EMBEDFLEET_DATABASE_URL={url}\n"


def test_a_folder_with_an_earlier_demonstration_is_refused(folder):
    (folder / "kafka").mkdir()
    process = start(folder)
    output, _ = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 2, output
    assert "holds the data of an earlier demonstration" in output


def test_what_was_stopped_before_it_began_starts_nothing(folder):
    servers = Servers(folder)
    servers.stop()
    servers.start()
    assert list(folder.iterdir()) == []
