"""Peers are judged by what their tables hold in the end, and their packages are pinned."""

import re

import pytest

from tests.bench.peers import registry
from tests.bench.peers.registry import PEERS, Newest, Row, Wrong, judge, prepare

TEXT = "One two three.\n\nFour five six."


def rows(*contents, doc_id="d", version=2):
    return [Row(doc_id, number, version, content) for number, content in enumerate(contents)]


RIGHT = rows("One two three.", "Four five six.")
NEWEST = {"d": Newest(2, TEXT)}


# ---- what a table must hold ----


def test_a_table_with_the_newest_text_in_whatever_chunks_is_right():
    for contents in ([TEXT], ["One two", "three. Four five", "six."]):
        wrong = judge(rows(*contents), NEWEST)
        assert not wrong
        assert wrong == Wrong()


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ([], Wrong(missing=1)),
        (rows(TEXT, version=1), Wrong(stale=1)),
        ([*RIGHT, Row("d", 2, 2, "Seven.")], Wrong(extra=1)),
        ([*RIGHT, Row("d", 2, 1, "Seven.")], Wrong(extra=1)),
        (RIGHT[:1], Wrong(torn=1)),
        (rows("Four five six.", "One two three."), Wrong(torn=1)),
        ([*RIGHT, *rows("x", doc_id="e")], Wrong(undead=1)),
    ],
)
def test_what_is_wrong_is_named(found, wrong):
    assert judge(found, NEWEST) == wrong
    assert wrong


def test_a_deleted_document_has_no_rows():
    assert judge([], {"d": None}) == Wrong()
    assert judge(RIGHT, {"d": None}) == Wrong(undead=1)


def test_an_empty_document_is_not_missing():
    assert judge([], {"d": Newest(2, " \n")}) == Wrong()


def test_every_document_is_counted_once():
    newest = {"a": Newest(2, TEXT), "b": Newest(2, TEXT), "c": Newest(2, TEXT), "d": None}
    found = [
        *rows(TEXT, "more", doc_id="a", version=1),
        *rows("One", doc_id="b"),
        *rows(TEXT, doc_id="d"),
    ]
    assert judge(found, newest) == Wrong(missing=1, stale=1, torn=1, undead=1)


# ---- the peers ----


def test_peers_have_names_programs_and_requirements_of_their_own():
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    for peer in PEERS:
        assert (registry.FOLDER / peer.program).exists()
        assert (registry.FOLDER / f"{peer.requirements}.in").exists()


def test_every_package_of_a_peer_is_pinned_with_its_hashes():
    for name in {peer.requirements for peer in PEERS}:
        pinned = (registry.FOLDER / f"{name}.txt").read_text().split("\n")
        packages = [line for line in pinned if line and line[0] not in " #"]
        assert all(re.match(r"[\w.-]+==\S+( ;.*)? \\$", line) for line in packages)
        direct = (registry.FOLDER / f"{name}.in").read_text().split()
        for wanted in direct:
            bare = re.sub(r"\[.*\]", "", wanted)
            assert any(line.startswith(bare) for line in packages), wanted


def test_an_environment_is_made_once_and_again_for_other_requirements(tmp_path, monkeypatch):
    uv = tmp_path / "uv"
    uv.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/calls\nmkdir -p {tmp_path}/envs/naive\n')
    uv.chmod(0o755)
    monkeypatch.setattr(registry, "ENVIRONMENTS", tmp_path / "envs")
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    requirements = tmp_path / "naive.txt"
    requirements.write_text("one")

    def calls():
        return (tmp_path / "calls").read_text().split()

    python = prepare(PEERS[0], str(uv))
    assert python == tmp_path / "envs" / "naive" / "bin" / "python"
    assert calls() == ["venv", "pip"]
    assert prepare(PEERS[0], str(uv)) == python
    assert calls() == ["venv", "pip"]
    requirements.write_text("two")
    prepare(PEERS[0], str(uv))
    assert calls() == ["venv", "pip"] * 2


def test_without_uv_it_is_said_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "ENVIRONMENTS", tmp_path)
    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="make bench-peers"):
        prepare(PEERS[0])
