"""What is read from a journal is what was written down last, whatever a kill has left of it."""

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.support.exports import SUBJECT
from worker.adapters.export_files import opened
from worker.adapters.export_journal import Journal
from worker.core.exports import Checkpoint, Digest, Part

STEPS = st.lists(
    st.one_of(
        st.just("begin"),
        st.integers(0, 10**12).map(lambda rows: ("add", rows)),
        st.integers(0, 4).map(lambda parts: ("keep", parts)),
        st.binary(max_size=30).map(lambda garbage: ("kill", garbage)),
    ),
    max_size=12,
)


def checkpoint(rows: int) -> Checkpoint:
    part = Part(None, ("tenant", f"{rows}"))
    return Checkpoint(part=part, digest=Digest(1, 2), rows=rows, documents=1, text_bytes=3)


@given(STEPS)
def test_a_journal_that_is_opened_again_says_what_it_said(steps):
    """A kill leaves a part of a line behind, or any other bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path, parts = Path(folder, "journal"), []
        with opened(path) as file:
            Journal(file).begin(SUBJECT)
        for step in steps:
            with opened(path) as file:
                journal = Journal(file)
                assert journal.subject == SUBJECT
                assert journal.checkpoints == parts
                match step:
                    case "begin":
                        journal.begin(SUBJECT)
                        parts = []
                    case "add", rows:
                        journal.add(checkpoint(rows))
                        parts.append(checkpoint(rows))
                    case "keep", count:
                        journal.keep(count)
                        parts = parts[:count]
                    case "kill", garbage:
                        file.write(garbage)
                assert journal.checkpoints == parts


def test_a_journal_without_a_whole_line_says_nothing(tmp_path):
    for content in (
        b"",
        b"{",
        b"{}\n",
        b"\xff\n",
        b"[]\n" * 3,
        b'{"database":"\xff"}\n',
        b"[" * 10**5 + b"\n",
    ):
        (tmp_path / "journal").write_bytes(content)
        with opened(tmp_path / "journal") as file:
            journal = Journal(file)
            assert (journal.subject, journal.checkpoints) == (None, [])
            journal.begin(SUBJECT)
            assert journal.subject == SUBJECT
