"""
An export that is ended and goes on shows one moment, that of the run that finished it.

Snapshots are in memory, files are real.
"""

import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.exports import SUBJECT, MemorySnapshot, check_holds, check_sums
from worker.adapters import export_folder
from worker.adapters.export_folder import ExportFolder
from worker.core.exports import Part
from worker.errors import ConfigError
from worker.ops.export import read

DOCUMENTS = {("t", f"{number:02}"): (1, 2) for number in range(10)}
FEW_BYTES = 60
"""A part is due after two chunks or so."""


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Many parts; and no waiting for the disk, which a kill of a process does not need."""
    monkeypatch.setattr(export_folder, "PART_BYTES", FEW_BYTES)
    monkeypatch.setattr(os, "fsync", lambda _: None)


async def exported(path, snapshot, *, subject=SUBJECT, force=False, watch=lambda _: None):
    with ExportFolder.open(path, subject, force=force) as folder:
        done = await read(snapshot, folder, watch)
        folder.finish(done.moment, watch)
        return done


async def killed(path, snapshot, *, after, **how):
    """Let an export end after so many of its documents, if it reads as many."""
    left = after

    def watch(progress):
        nonlocal left
        if progress.doing == "reading":
            left -= 1
            if left < 0:
                raise Killed

    with suppress(Killed):
        await exported(path, snapshot, watch=watch, **how)
        return False
    return True


async def test_a_whole_export_is_in_its_files_and_says_so(tmp_path):
    path = tmp_path / "new" / "folder"
    snapshot = MemorySnapshot({**DOCUMENTS, ("a", "empty"): (1, 0)}, number=7)
    done = await exported(path, snapshot)
    manifest = check_holds(path, snapshot.documents)
    assert (done.found_rows, done.kept_rows) == (0, 0)
    assert manifest.snapshot == snapshot.moment
    assert (manifest.rows, manifest.documents, manifest.dtype) == (20, 10, "float32")


async def test_an_export_of_nothing_can_be_loaded_too(tmp_path):
    await exported(tmp_path, MemorySnapshot({}))
    assert check_holds(tmp_path, {}).rows == 0


async def test_an_export_that_was_killed_goes_on_and_reads_only_the_rest(tmp_path):
    assert await killed(tmp_path, MemorySnapshot(DOCUMENTS), after=7)
    assert not (tmp_path / "manifest.json").exists()
    again = MemorySnapshot(DOCUMENTS, number=2)
    with ExportFolder.open(tmp_path, SUBJECT, force=False) as folder:
        bounds = [tuple(checkpoint.part) for checkpoint in folder.parts]
    assert bounds == [
        (None, ("t", "01")),
        (("t", "01"), ("t", "03")),
        (("t", "03"), ("t", "05")),
    ]
    done = await exported(tmp_path, again)
    assert (done.found_rows, done.kept_rows) == (12, 12)
    assert again.read_documents == list(DOCUMENTS)[6:]
    assert check_holds(tmp_path, DOCUMENTS).snapshot == again.moment


async def test_what_has_changed_meanwhile_is_read_again_with_all_that_follows(tmp_path):
    assert await killed(tmp_path, MemorySnapshot(DOCUMENTS), after=9)
    changed = MemorySnapshot({**DOCUMENTS, ("t", "03"): (2, 5)})
    done = await exported(tmp_path, changed)
    assert (done.found_rows, done.kept_rows) == (16, 4)
    assert changed.read_documents == list(DOCUMENTS)[2:]
    check_holds(tmp_path, changed.documents)


async def test_documents_that_are_gone_or_new_since_then_are_gone_and_there(tmp_path):
    assert await killed(tmp_path, MemorySnapshot(DOCUMENTS), after=9)
    now = {**DOCUMENTS, ("s", "first"): (1, 1), ("u", "last"): (1, 1)}
    del now["t", "05"]
    await exported(tmp_path, MemorySnapshot(now))
    check_holds(tmp_path, now)


async def test_an_export_that_was_killed_at_its_end_shows_the_moment_of_the_next_run(tmp_path):
    def die(progress):
        if progress.doing == "computing checksums":
            raise Killed

    with suppress(Killed):
        await exported(tmp_path, MemorySnapshot(DOCUMENTS), watch=die)
    again = MemorySnapshot(DOCUMENTS, number=9)
    assert (await exported(tmp_path, again)).kept_rows == 20
    assert again.read_documents == []
    assert check_holds(tmp_path, DOCUMENTS).snapshot == again.moment


async def test_files_that_are_shorter_than_the_journal_says_are_not_believed(tmp_path):
    assert await killed(tmp_path, MemorySnapshot(DOCUMENTS), after=9)
    vectors = tmp_path / "unfinished" / "vectors.npy"
    os.truncate(vectors, vectors.stat().st_size // 2)
    done = await exported(tmp_path, MemorySnapshot(DOCUMENTS))
    assert done.kept_rows < 16
    check_holds(tmp_path, DOCUMENTS)


KEYS = st.sampled_from([("a", "1"), ("a", "2"), ("b", "0"), ("b", "1"), ("b", "2"), ("c", "é")])
STATES = st.dictionaries(KEYS, st.tuples(st.integers(1, 3), st.integers(0, 4)))


@given(
    runs=st.lists(st.tuples(STATES, st.integers(0, 6), st.binary(max_size=200)), max_size=4),
    last=STATES,
)
async def test_however_often_it_was_killed_it_shows_one_moment(runs, last):
    """
    Other documents at each run, a kill anywhere, bytes of which nobody had written down.

    A version alone says what a document is: where it comes again, it has as many chunks.
    """
    chunks = {}

    def consistent(state):
        return {
            key: (version, chunks.setdefault((key, version), count))
            for key, (version, count) in state.items()
        }

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        for state, after, garbage in runs:
            snapshot = MemorySnapshot(consistent(state))
            if await killed(path, snapshot, after=after, force=True):
                for file in (path / "unfinished").iterdir():
                    with file.open("ab") as broken:
                        broken.write(garbage)
        final = consistent(last)
        await exported(path, MemorySnapshot(final), force=True)
        check_holds(path, final)


async def test_a_line_of_the_journal_that_was_cut_off_anywhere_tells_nothing(tmp_path):
    assert await killed(tmp_path / "whole", MemorySnapshot(DOCUMENTS), after=9)
    journal = (tmp_path / "whole" / "unfinished" / "journal.jsonl").read_bytes()
    ends = [at + 1 for at, byte in enumerate(journal) if byte == 0x0A]
    for cut in range(0, len(journal), 7):
        copy = tmp_path / f"cut-{cut}"
        shutil.copytree(tmp_path / "whole", copy)
        os.truncate(copy / "unfinished" / "journal.jsonl", cut)
        done = await exported(copy, MemorySnapshot(DOCUMENTS))
        whole_lines = sum(end <= cut for end in ends)
        assert done.found_rows == 4 * max(0, whole_lines - 1)
        check_holds(copy, DOCUMENTS)


async def test_a_manifest_that_cannot_be_read_before_it_is_in_its_place_is_made_anew(tmp_path):
    assert await killed(tmp_path, MemorySnapshot(DOCUMENTS), after=9)
    (tmp_path / "unfinished" / "manifest.json").write_bytes(b"\0" * 100)
    done = await exported(tmp_path, MemorySnapshot(DOCUMENTS))
    assert done.kept_rows > 0
    check_holds(tmp_path, DOCUMENTS)


# ---- what is there already ----


async def test_a_finished_export_is_replaced_only_when_that_is_asked_for(tmp_path):
    await exported(tmp_path, MemorySnapshot(DOCUMENTS))
    newer = MemorySnapshot({("t", "new"): (1, 1)})
    with pytest.raises(ConfigError, match=r"a finished export: 20 rows.*--force replaces it"):
        await exported(tmp_path, newer)
    check_holds(tmp_path, DOCUMENTS)
    await exported(tmp_path, newer, force=True)
    check_holds(tmp_path, newer.documents)


async def test_while_an_export_is_replaced_the_old_one_is_there(tmp_path):
    await exported(tmp_path, MemorySnapshot(DOCUMENTS))
    newer = MemorySnapshot({("t", f"{n}"): (2, 2) for n in range(9)})
    assert await killed(tmp_path, newer, after=5, force=True)
    check_sums(tmp_path)
    done = await exported(tmp_path, newer)
    assert done.kept_rows == 8
    check_holds(tmp_path, newer.documents)


async def test_an_unfinished_export_of_other_settings_is_given_up_only_when_asked_for(tmp_path):
    assert await killed(tmp_path, MemorySnapshot(DOCUMENTS), after=5)
    other = msgspec.structs.replace(SUBJECT, tenant="t")
    with pytest.raises(ConfigError, match="whose tenant is any, not t; --force"):
        await exported(tmp_path, MemorySnapshot(DOCUMENTS), subject=other)
    assert (await exported(tmp_path, MemorySnapshot(DOCUMENTS))).kept_rows == 8
    assert await killed(tmp_path, MemorySnapshot(DOCUMENTS), after=5, force=True)
    done = await exported(tmp_path, MemorySnapshot(DOCUMENTS), subject=other, force=True)
    assert done.found_rows == 0
    assert check_holds(tmp_path, DOCUMENTS).tenant == "t"


async def test_an_unfinished_export_of_the_same_settings_goes_on_with_force_too(tmp_path):
    assert await killed(tmp_path, MemorySnapshot(DOCUMENTS), after=5)
    done = await exported(tmp_path, MemorySnapshot(DOCUMENTS), force=True)
    assert done.kept_rows == 8


async def test_one_that_has_written_nothing_down_stands_in_nobodys_way(tmp_path):
    assert await killed(tmp_path, MemorySnapshot(DOCUMENTS), after=1)
    other = msgspec.structs.replace(SUBJECT, tenant="t")
    await exported(tmp_path, MemorySnapshot(DOCUMENTS), subject=other)
    check_holds(tmp_path, DOCUMENTS)


@pytest.mark.parametrize(
    ("name", "mine"),
    [
        *((name, b"mine") for name in ("vectors.npy", "rows.jsonl", "rows.parquet")),
        ("manifest.json", b"mine"),
        ("manifest.json", b'{"database": "\xff"}'),
        ("manifest.json", b'{"database": ' + b"[" * 10**5),
    ],
)
async def test_a_file_of_somebody_else_is_not_replaced_unasked(name, mine, tmp_path):
    (tmp_path / name).write_bytes(mine)
    (tmp_path / "notes.txt").write_text("mine too")
    with pytest.raises(ConfigError, match=f"{name}, of no export that can be read"):
        await exported(tmp_path, MemorySnapshot(DOCUMENTS))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "notes.txt"])
    await exported(tmp_path, MemorySnapshot(DOCUMENTS), force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine too"
    (tmp_path / "notes.txt").unlink()
    check_holds(tmp_path, DOCUMENTS)


async def test_two_exports_into_one_folder_do_not_meet(tmp_path):
    with (
        ExportFolder.open(tmp_path, SUBJECT, force=False),
        pytest.raises(ConfigError, match="another export is being written into"),
    ):
        await exported(tmp_path, MemorySnapshot(DOCUMENTS), force=True)
    await exported(tmp_path, MemorySnapshot(DOCUMENTS))
    check_holds(tmp_path, DOCUMENTS)


@contextmanager
def killed_at(change: int):
    """Let the process end before one of the changes of names; returns how many there were."""
    names, count = ("replace", "unlink", "rmdir"), 0
    originals = {name: getattr(os, name) for name in names}

    def dying(original):
        def call(*arguments, **how):
            nonlocal count
            count += 1
            if count > change:
                raise Killed
            return original(*arguments, **how)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(os, name, dying(originals[name]))
        yield lambda: count


async def test_a_kill_between_any_two_changes_of_names_loses_neither_export(tmp_path):
    """An old export is replaced by a new one; whoever comes next finishes what was begun."""
    changes, newer = 0, {("t", f"{n}"): (2, 2) for n in range(9)}
    while True:
        path = tmp_path / f"{changes}"
        await exported(path, MemorySnapshot(DOCUMENTS))
        with killed_at(changes) as count, suppress(Killed):
            await exported(path, MemorySnapshot(newer), force=True)
        if count() <= changes:
            break
        rows = check_sums(path).rows if (path / "manifest.json").exists() else None
        again = MemorySnapshot(newer)
        with suppress(ConfigError):  # it was finished, but for its names
            await exported(path, again)
        assert rows != 2 * len(newer) or again.read_documents == []
        check_holds(path, newer)
        changes += 1
    assert changes > 6


def test_all_is_for_the_owner_alone(tmp_path):
    old = os.umask(0)
    try:
        with ExportFolder.open(tmp_path / "out", SUBJECT, force=False) as folder:
            unfinished = [*(tmp_path / "out").rglob("*")]
            folder.write_down(Part(None, None), (0, 0))
            folder.finish(MemorySnapshot({}).moment, lambda _: None)
    finally:
        os.umask(old)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == {0o600}
    assert len(unfinished) == 5
    check_sums(tmp_path / "out")


@pytest.mark.parametrize(
    ("place", "words"),
    [("file", "is no folder"), ("file/in", "written"), ("x" * 300, "File name too long")],
)
def test_a_place_where_nothing_can_be_written_is_named(place, words, tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=f"{place}.*{words}"),
        ExportFolder.open(tmp_path / place, SUBJECT, force=False),
    ):
        raise AssertionError


@pytest.mark.parametrize("there", ["unfinished", "unfinished/vectors.npy"])
def test_a_link_to_another_place_is_not_followed(there, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    with ExportFolder.open(out, SUBJECT, force=False) as folder:
        folder.write_down(Part(None, None), (0, 0))
    moved = (out / there).rename(elsewhere)
    before = {path: path.stat().st_mtime_ns for path in (moved, *moved.rglob("*"))}
    (out / there).symlink_to(moved)
    with (
        pytest.raises(ConfigError, match=f"out/{there} .*link"),
        ExportFolder.open(out, SUBJECT, force=False),
    ):
        raise AssertionError
    assert before == {path: path.stat().st_mtime_ns for path in (moved, *moved.rglob("*"))}


async def test_what_stands_in_a_files_place_is_named(tmp_path):
    out = tmp_path / "out"
    (out / "vectors.npy").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"out/vectors.npy cannot be written: Is a directory"):
        await exported(out, MemorySnapshot({}), force=True)
    (out / "vectors.npy").rmdir()
    with pytest.raises(ConfigError, match="a finished export"):
        await exported(out, MemorySnapshot({}))
    check_holds(out, {})
