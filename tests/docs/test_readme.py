"""What the README says is so: its tables are current, its examples run, its commands exist."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer

from schemas.events import DocumentUpserted
from tests.support import generate
from worker.cli.root import main

README = Path(generate.README).read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def test_the_generated_tables_are_current():
    """`make schemas` writes them."""
    assert generate.replace_blocks(README, generate.BLOCKS) == README


@pytest.mark.parametrize("name", generate.BLOCKS)
def test_every_generated_table_has_its_place(name):
    assert f"<!-- generated:{name} -->" in README


@pytest.mark.parametrize("place", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_every_file_it_links_to_is_there(place):
    assert Path(generate.README).parent.joinpath(place).is_file()


def test_every_guarantee_is_linked_to_tests():
    table = README[README.index("| Guaranteed |") : README.index("| Not guaranteed |")]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 8
    for row in rows:
        assert re.search(r"\]\(tests/\S+/test_\w+\.py\)", row), row


def commands() -> list[list[str]]:
    found = [
        shlex.split(line.removeprefix("$ "), comments=True)
        for text in blocks("console")
        for line in text.splitlines()
        if line.startswith("$ embedfleet")
    ]
    inline = re.findall(r"`(embedfleet [a-z][^`]*)`", README)
    return found + [shlex.split(one) for one in inline]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_it_names_exists(command, capsys):
    words = []
    for word in command[1:]:
        if not re.fullmatch(r"[a-z]+(-[a-z]+)*", word):
            break
        words.append(word)
    while words:
        if main([*words, "--help"]) == 0:
            break
        words.pop()
    assert words, command
    assert words[0] in capsys.readouterr().out
    assert words == command[1 : len(words) + 1]


@pytest.mark.parametrize("text", blocks("json"))
def test_its_events_are_events(text):
    from schemas.codec import Limits, decode_record, encode_key, encode_scope_key

    for line in re.sub(r"\n (?=\")", " ", text).strip().splitlines():
        import json

        event = json.loads(line)
        if event["type"] == "delete_scope":
            key = encode_scope_key(event["tenant"], event["collection"])
        else:
            key = encode_key(event["tenant"], event["collection"], event["id"])
        assert decode_record(key, line.encode(), (), Limits()).event.version == event["version"]


async def test_its_producer_publishes(kafka_server, create_topic):
    topic = await create_topic(name="documents")
    (source,) = [text for text in blocks("python") if "Publisher" in text]
    source = source.replace("localhost:9092", kafka_server.bootstrap_servers)
    names: dict = {"__name__": "example"}
    exec(compile(source.replace("asyncio.run(main())", ""), "README.md", "exec"), names)
    await names["main"]()
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=kafka_server.bootstrap_servers,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        first = await consumer.getone()
    finally:
        await consumer.stop()
    assert first.key == b"acme/docs/handbook%2F7"
    assert b'"version":42' in first.value
    assert DocumentUpserted.__struct_config__.tag == "upsert"


async def test_its_index_job_reads_an_export(tmp_path, monkeypatch, capsys):
    """On a stand-in for FAISS, which is none of our libraries."""
    from types import SimpleNamespace

    from tests.support.exports import SUBJECT, MemorySnapshot
    from worker.adapters.export_folder import ExportFolder
    from worker.ops.export import read

    documents = {(tenant, f"{n}"): (n, 2) for tenant in ("aa", "acme", "b") for n in range(3)}
    with ExportFolder.open(tmp_path / "docs-export", SUBJECT, force=False) as folder:
        done = await read(MemorySnapshot(documents), folder, lambda _: None)
        folder.finish(done.moment, lambda _: None)
    added, written = [], []
    faiss = SimpleNamespace(
        METRIC_INNER_PRODUCT=0,
        IndexHNSWFlat=lambda dimensions, _links, _metric: SimpleNamespace(
            d=dimensions, add=added.append
        ),
        write_index=lambda index, name: written.append((index.d, name)),
    )
    monkeypatch.setitem(sys.modules, "faiss", faiss)
    monkeypatch.chdir(tmp_path)
    (source,) = [text for text in blocks("python") if "faiss" in text]
    names: dict = {}
    exec(compile(source, "README.md", "exec"), names)
    vectors = np.load(tmp_path / "docs-export" / "vectors.npy")
    assert np.array_equal(np.concatenate(added), vectors)
    assert written == [(SUBJECT.dimensions, "docs.faiss")]
    assert {names["rows"][number]["tenant"] for number in names["nearest"]} == {"acme"}
    assert len(names["nearest"]) == 6
    assert capsys.readouterr().out.count("(") == 6


async def test_its_query_reads(database):
    import asyncpg

    from tests.support.universe import COLLECTION
    from worker.adapters.pg_catalog import PostgresCatalog
    from worker.adapters.pg_client import Database
    from worker.adapters.pg_migrations import Migrations
    from worker.core.vector_index import VectorIndex

    await Migrations(database).up()
    pool = await Database.open(database)
    from dataclasses import replace

    await PostgresCatalog(pool).create(
        replace(COLLECTION, name="docs", index=VectorIndex(build_at_rows=0))
    )
    await pool.close()
    (query,) = blocks("sql")
    query = query.replace("embedfleet.", f"{database.schema}.")
    vector = "[" + ",".join(map(str, np.ones(COLLECTION.dimensions))) + "]"
    connection = await asyncpg.connect(database.url)
    try:
        for statement in filter(None, map(str.strip, query.split(";"))):
            arguments = [vector] if "$1" in statement else []
            text = statement.replace("$1", "$1::text::vector")
            await connection.fetch(text, *arguments)
    finally:
        await connection.close()
