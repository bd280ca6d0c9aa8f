"""Migrations, collections and search on a real PostgreSQL and a provider behind HTTP."""

import pytest

from tests.support.provider import vector_of
from tests.support.store_changes import key, upsert
from worker.adapters.pg_catalog import PostgresCatalog
from worker.adapters.pg_claims import PostgresClaims
from worker.adapters.pg_client import Database
from worker.adapters.pgvector_store import PgvectorStore
from worker.core.model import Base, Partition, Vector
from worker.ports import Verdict, Write

pytestmark = pytest.mark.real

CREATE = ("collections", "create", "docs", "--model", "m", "--dimensions", "8")


async def test_migrations_are_missing_then_applied_then_nothing_is_left(
    on_database, embedfleet_beside
):
    before = await embedfleet_beside("migrate", "status", "--json")
    assert (before.code, {one["applied"] for one in before.json}) == (1, {False})
    applied = await embedfleet_beside("migrate", "up", "--json")
    assert applied.json["applied"] == [one["version"] for one in before.json]
    assert (await embedfleet_beside("migrate", "up", "--json")).json == {"applied": []}
    after = await embedfleet_beside("migrate", "status")
    assert (after.code, "no" in after.out.split()) == (0, False)


async def test_without_migrations_every_command_says_what_to_do(on_database, embedfleet_beside):
    for arguments in (("collections", "list"), CREATE):
        ended = await embedfleet_beside(*arguments)
        assert (ended.code, ended.out) == (2, "")
        assert "run `embedfleet migrate up`" in ended.err


async def test_a_collection_is_created_once_shown_and_listed(migrated, embedfleet_beside):
    markdown = (*CREATE, "--chunking", "markdown", "--size", "400", "--metric", "l2")
    created = (await embedfleet_beside(*markdown, "--json")).json
    assert (await embedfleet_beside(*markdown, "--json")).json == created
    shown = (await embedfleet_beside("collections", "show", "docs", "--json")).json
    assert shown == created
    assert shown["chunking"] == {"strategy": "markdown", "size": 400, "overlap": 0}
    assert (await embedfleet_beside("collections", "list", "--json")).json == [created]
    assert "docs" in (await embedfleet_beside("collections", "list")).out
    assert "chunking.size: 400" in (await embedfleet_beside("collections", "show", "docs")).out


async def test_no_collections_is_an_empty_list_and_not_an_error(migrated, embedfleet_beside):
    ended = await embedfleet_beside("collections", "list", "--json")
    assert (ended.code, ended.json) == (0, [])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--dimensions", "4001"), "halfvec takes 1 to 4000"),
        (("--dimensions", "8", "--size", "0"), "size"),
        (("--dimensions", "8", "--overlap", "5000"), "overlap"),
    ],
)
async def test_a_collection_that_cannot_work_is_refused(
    arguments, words, migrated, embedfleet_beside
):
    ended = await embedfleet_beside(*CREATE[:5], *arguments)
    assert ended.code == 2
    assert words in ended.err


async def test_a_collection_with_other_settings_is_refused(migrated, embedfleet_beside):
    await embedfleet_beside(*CREATE)
    ended = await embedfleet_beside(*CREATE, "--metric", "l2")
    assert (ended.code, "exists with other settings" in ended.err) == (2, True)
    ended = await embedfleet_beside("collections", "show", "dogs")
    assert (ended.code, "there are: docs" in ended.err) == (2, True)


async def stored(database: Database, *texts: str) -> None:
    """Documents of one chunk each, named by their text, of the tenant `acme`."""
    claims = PostgresClaims(database)
    collection = await PostgresCatalog(database).collection("docs")
    claim = await claims.claim("g", Partition("documents", 0), "owner")
    writes = []
    for number, text in enumerate(texts):
        of = key(text, tenant="acme", collection="docs")
        change = upsert(collection, Base(), version=1, offset=number, texts=[text], of=of)
        vector = Vector(vector_of(text, "m", 8).tobytes())
        writes.append(Write(change, claim, {change.insert[0].id: vector}))
    assert set(await PgvectorStore(database).apply(writes)) == {Verdict.APPLIED}


async def test_search_ranks_the_chunks_of_the_tenant(
    migrated, provider, embedfleet_beside, monkeypatch
):
    monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
    await embedfleet_beside(*CREATE)
    await stored(migrated, "apples", "pears", "plums")
    where = ("--collection", "docs", "--tenant", "acme")
    found = (await embedfleet_beside("search", "pears", *where, "--json")).json
    assert [one["rank"] for one in found] == [1, 2, 3]
    assert found[0]["document"] == found[0]["content"] == "pears"
    assert found[0]["score"] == pytest.approx(1, abs=1e-3)
    assert found[0]["score"] > found[1]["score"] >= found[2]["score"]
    shown = await embedfleet_beside("search", "pears", *where, "--k", "1")
    assert shown.out.startswith("1. 1.000  pears\n")
    assert shown.out.count("\n") == 2
    nobody = await embedfleet_beside("search", "x", "--collection", "docs", "--tenant", "other")
    assert (nobody.code, nobody.out) == (0, "")
    assert "'other' has nothing" in nobody.err


async def test_search_says_which_collections_there_are_and_that_a_provider_is_away(
    migrated, embedfleet_beside, monkeypatch
):
    await embedfleet_beside(*CREATE)
    ended = await embedfleet_beside("search", "x", "--collection", "dogs", "--tenant", "t")
    assert (ended.code, "there are: docs" in ended.err) == (2, True)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    ended = await embedfleet_beside("search", "x", "--collection", "docs", "--tenant", "t")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
