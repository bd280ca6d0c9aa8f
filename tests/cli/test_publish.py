"""What is sent, what is not, and how that is said; a recorder stands for the publisher."""

import asyncio
import os
import socket
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.records import new_record
from worker.errors import BrokerUnavailable
from worker.ops.lines import chunks, lines
from worker.ops.publish import Publication, Source, text_files

GOOD = {
    "type": "upsert",
    "tenant": "t",
    "collection": "c",
    "id": "1",
    "version": 1,
    "text": "x",
}


class Recorder:
    """Takes events as the publisher does, one at a time; `fails_after` breaks off."""

    def __init__(self, fails_after: int | None = None) -> None:
        self.events = []
        self._fails_after = fails_after

    def prepare(self, event):
        return new_record(event)

    async def publish_many(self, events, *, on_delivered):
        async for event in events:
            if self._fails_after == len(self.events):
                raise BrokerUnavailable("gone")
            self.events.append(event)
            on_delivered(event, None)
        return len(self.events)


@pytest.fixture
def recorder(monkeypatch):
    """Stands in the place of Kafka below the command."""
    taken = Recorder()
    taken.topics = []

    async def publish(_settings, topic, sources, publication):
        taken.topics.append(topic)
        await publication.run(taken, sources, max_line_bytes=1000)

    monkeypatch.setattr("worker.app.publish_job.publish", publish)
    return taken


def jsonl(*lines: object, name: str = "events.jsonl") -> str:
    encoded = [one if isinstance(one, bytes) else msgspec.json.encode(one) for one in lines]
    Path(name).write_bytes(b"\n".join(encoded) + b"\n")
    return name


def test_every_event_of_a_file_is_sent_in_order(recorder, embedfleet):
    name = jsonl(*({**GOOD, "id": str(n)} for n in range(100)))
    ended = embedfleet("publish", name, "--json")
    assert ended.code == 0
    assert [one.id for one in recorder.events] == [str(n) for n in range(100)]
    assert ended.json.items() >= {"published": 100, "bad": 0, "first_bad": []}.items()


def test_all_types_of_events_are_sent(recorder, embedfleet):
    delete = {"type": "delete", "tenant": "t", "collection": "c", "id": "1", "version": 2}
    scope = {"type": "delete_scope", "tenant": "t", "version": 3}
    assert embedfleet("publish", jsonl(GOOD, delete, scope)).code == 0
    kinds = [type(one).__name__ for one in recorder.events]
    assert kinds == ["DocumentUpserted", "DocumentDeleted", "ScopeDeleted"]


BAD = {
    b"{": "no JSON",
    b"hello": "no JSON",
    b'{"type":"upsert"}': "missing required field `tenant`",
    b'{"type":"insert"}': "$.type",
    b"[1]": "Expected `object`",
    b'"\xff"': "",
    b"[" * 900: "",
    msgspec.json.encode({**GOOD, "version": -1}): ">= 0",
    msgspec.json.encode({**GOOD, "tenant": ""}): "length >= 1",
    msgspec.json.encode({**GOOD, "id": "a\x00b"}): "U+0000",
    msgspec.json.encode({**GOOD, "tenant": "é" * 300}): "longer than 512 bytes",
    msgspec.json.encode({**GOOD, "text": "x" * 2000}): "longer than 1000 bytes",
}


@pytest.mark.parametrize("line", BAD, ids=lambda line: line[:20])
def test_a_bad_line_is_told_by_number_and_reason_and_the_others_are_sent(
    line, recorder, embedfleet
):
    name = jsonl(GOOD, line, {**GOOD, "id": "2"})
    ended = embedfleet("publish", name)
    assert ended.code == 1
    assert [one.id for one in recorder.events] == ["1", "2"]
    assert f"{name}:2: " in ended.err
    assert BAD[line] in ended.err
    assert ended.out == ""


def test_bad_lines_are_in_the_json_and_stdout_is_json_only(recorder, embedfleet):
    ended = embedfleet("publish", jsonl(b"{", GOOD), "--json")
    assert ended.code == 1
    assert ended.json["published"] == 1
    assert ended.json["bad"] == 1
    assert ended.json["first_bad"][0]["where"] == "events.jsonl:1"


def test_of_a_million_bad_lines_only_the_first_are_told(recorder, embedfleet):
    ended = embedfleet("publish", jsonl(*[b"{"] * 300))
    assert ended.err.count("\n") == 22
    assert "300 bad" in ended.err


def test_blank_lines_windows_line_ends_and_a_byte_order_mark_are_fine(recorder, embedfleet):
    Path("a.jsonl").write_bytes(
        b"\xef\xbb\xbf" + msgspec.json.encode(GOOD) + b"\r\n\r\n\n" + msgspec.json.encode(GOOD)
    )
    assert embedfleet("publish", "a.jsonl").code == 0
    assert len(recorder.events) == 2


def test_the_events_go_to_the_first_topic_or_the_one_that_is_named(recorder, embedfleet):
    name = jsonl(GOOD)
    embedfleet("publish", name, "--kafka.topics", "a", "--kafka.topics", "b")
    embedfleet("publish", name, "--topic", "c")
    assert recorder.topics == ["a", "c"]


def test_what_was_sent_before_a_failure_is_told(embedfleet, monkeypatch):
    async def publish(_settings, _topic, sources, publication):
        await publication.run(Recorder(fails_after=2), sources, max_line_bytes=1000)

    monkeypatch.setattr("worker.app.publish_job.publish", publish)
    ended = embedfleet("publish", jsonl(GOOD, GOOD, GOOD))
    assert ended.code == 2
    assert ended.err.startswith("embedfleet: gone; published before: 2 (")


def test_a_file_that_cannot_be_opened_is_one_sentence(recorder, embedfleet):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("events.sock")
        ended = embedfleet("publish", "events.sock")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "events.sock cannot be read" in ended.err


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "docs"
    (root / "guide").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "b.md").write_text("# B")
    (root / "a.txt").write_text("A")
    (root / "guide" / "c d.rst").write_text("C")
    (root / "guide" / "e.MARKDOWN").write_text("\ufeffE")
    (root / "guide" / "code.py").write_text("no text")
    (root / ".git" / "x.md").write_text("hidden")
    (root / ".hidden.md").write_text("hidden")
    os.utime(root / "a.txt", ns=(0, 1_700_000_000_123_456_789))
    return root


TO = ("--collection", "docs", "--tenant", "acme")


def test_a_folder_is_published_a_document_a_file(folder, recorder, embedfleet):
    assert embedfleet("publish", "docs", *TO).code == 0
    found = {one.id: (one.text, one.content_type) for one in recorder.events}
    assert found == {
        "a.txt": ("A", "text/plain"),
        "b.md": ("# B", "text/markdown"),
        "guide/c d.rst": ("C", "text/x-rst"),
        "guide/e.MARKDOWN": ("E", "text/markdown"),
    }
    assert {(one.tenant, one.collection) for one in recorder.events} == {("acme", "docs")}


def test_the_version_is_the_time_of_the_last_change_in_microseconds(
    folder, recorder, embedfleet
):
    embedfleet("publish", "docs", *TO)
    (event,) = [one for one in recorder.events if one.id == "a.txt"]
    assert event.version == 1_700_000_000_123_456


def test_a_text_file_that_cannot_be_read_is_told_and_the_others_are_sent(
    folder, recorder, embedfleet
):
    (folder / "bad.txt").write_bytes(b"\xff\xfe")
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    ended = embedfleet("publish", "docs", *TO)
    assert ended.code == 1
    assert "bad.txt: not UTF-8" in ended.err
    assert "gone.txt: No such file" in ended.err
    assert len(recorder.events) == 4


def test_one_text_file_is_a_document(folder, recorder, embedfleet):
    assert embedfleet("publish", "docs/b.md", *TO).code == 0
    assert [one.id for one in recorder.events] == ["b.md"]


def test_files_come_in_the_order_of_their_names(folder):
    names = [path.relative_to(folder).as_posix() for path in text_files(folder)]
    assert names == ["a.txt", "b.md", "guide/c d.rst", "guide/e.MARKDOWN"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("docs",), "docs is a folder: say --collection and --tenant"),
        (("docs", "--tenant", "x"), "docs is a folder: say --collection and --tenant"),
        (("docs/b.md",), "docs/b.md is a text file: say --collection and --tenant"),
        (("nowhere.jsonl",), "there is no file or folder 'nowhere.jsonl'"),
        (("events.jsonl", *TO), "events name their own"),
        ((), "PATHS"),
    ],
)
def test_a_newcomers_mistake_is_one_sentence(arguments, words, folder, recorder, embedfleet):
    jsonl(GOOD)
    ended = embedfleet("publish", *arguments)
    assert (ended.code, recorder.events) == (2, [])
    assert words in ended.err
    assert ended.err.count("\n") == 1


def test_a_terminal_sees_progress_and_stdout_stays_clean(recorder, embedfleet, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    ended = embedfleet("publish", jsonl(GOOD), "--json")
    assert ended.code == 0
    assert ended.json["published"] == 1


async def pieces(data: bytes, size: int):
    for start in range(0, len(data), size):
        yield data[start : start + size]


@given(
    st.lists(st.binary(max_size=30).map(lambda one: one.replace(b"\n", b""))),
    st.integers(1, 50),
    st.integers(1, 20),
    st.booleans(),
)
def test_lines_are_the_same_however_the_bytes_arrive(found, size, limit, ended):
    """And a line beyond the limit is one None, wherever its bytes were cut."""

    async def read():
        data = b"\n".join(found) + (b"\n" if ended and found else b"")
        return [one async for one in lines(pieces(data, size), limit)]

    expected = [None if len(one) > limit else one for one in found]
    if expected and not ended and expected[-1] == b"":
        expected.pop()
    got = asyncio.run(read())
    strip = [one and one.removeprefix(b"\xef\xbb\xbf") for one in expected[:1]]
    assert got == strip + expected[1:]


async def test_a_pipe_is_read_as_it_is_filled_and_the_loop_goes_on_meanwhile():
    read, write = os.pipe()
    source = lines(chunks(read), 100)
    try:
        os.write(write, b"first\nsec")
        assert await anext(source) == b"first"
        waiting = asyncio.ensure_future(anext(source))  # noqa: TID251 the loop must not be blocked
        os.write(write, b"ond\n")
        assert await waiting == b"second"
        os.close(write)
        assert [one async for one in source] == []
    finally:
        os.close(read)


async def test_memory_does_not_grow_with_the_file():
    """No more is read than the publisher takes: what waits is one chunk of lines."""
    read = taken = 0

    class Slow(Recorder):
        async def publish_many(self, events, *, on_delivered):
            nonlocal taken
            async for _ in events:
                taken += 1
                assert read - taken <= 1
            return taken

    def count(_):
        nonlocal read
        read += 1

    name = jsonl(*[GOOD] * 5000)
    publication = Publication(on_read=count)
    await publication.run(Slow(), [Source(name)], max_line_bytes=1000)
    assert taken == 5000


async def test_events_from_standard_input_are_read_to_its_end(monkeypatch):
    read, write = os.pipe()
    saved = os.dup(0)
    try:
        os.dup2(read, 0)
        os.write(write, msgspec.json.encode(GOOD) + b"\n{\n")
        os.close(write)
        publication, recorder = Publication(), Recorder()
        await publication.run(recorder, [Source("-")], max_line_bytes=1000)
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(read)
    assert len(recorder.events) == 1
    assert publication.first_bad[0].where == "stdin:2"


def test_the_size_of_what_is_to_be_read_is_known_but_for_a_pipe(folder):
    assert Source("-").size_bytes is None
    assert Source(str(folder)).size_bytes == 1 + 3 + 1 + 4
    assert Source(str(folder / "b.md")).size_bytes == 3
