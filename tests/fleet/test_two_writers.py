"""One document or one scope under two workers, on real parts."""

import random

from tests.support.fleet import delete_scope, upsert

SHOWN = """
select d.id, d.version, array_agg(c.content order by c.seq) as paragraphs
from document d join "articles_chunks" c on c.document_id = d.id
group by d.id, d.version
"""


def paragraphs(document, version):
    """Some paragraphs that versions share, and one that is this version's own."""
    shared = random.Random(f"{document} {version}").sample("abcdefgh", 3)
    texts = [f"{document} {letter} " * 40 for letter in shared]
    return [text.strip() for text in (*texts, f"{document} version {version} " * 12)]


async def test_one_key_on_two_partitions_ends_at_the_highest_version_and_is_never_torn(
    make_fleet,
):
    """C6: as by producers with different partitioners."""
    fleet = await make_fleet(partitions=2)
    fleet.provider.latency_seconds = 0.03
    for worker in (await fleet.start(), await fleet.start()):
        await worker.works_on(1)
    chance = random.Random(6)
    documents = [f"doc{number}" for number in range(6)]
    samples = 0

    async def is_whole():
        """Look at everything in one statement, as a reader does."""
        nonlocal samples
        for row in await fleet.sql.fetch(SHOWN):
            samples += 1
            assert row["paragraphs"] == paragraphs(row["id"], row["version"])
        return await fleet.committed() == await fleet.ends()

    def version_of(document, number, partition):
        return number + (partition + documents.index(document)) % 2

    for number in range(0, 80, 2):
        # The next two versions, one to each partition: who is first is anybody's guess.
        for partition in chance.sample([0, 1], 2):
            events = []
            for document in documents:
                version = version_of(document, number, partition)
                text = "\n\n".join(paragraphs(document, version))
                events.append(upsert(document, version, text))
            await fleet.publish(events, partition=partition)
        await fleet.pass_time(0.05)
        await is_whole()
    await fleet.until(is_whole)
    stored = {row["id"]: row["version"] for row in await fleet.sql.fetch(SHOWN)}
    assert stored == dict.fromkeys(documents, 79)
    assert samples >= 100
    await fleet.check_vectors()


async def test_a_scope_delete_leaves_only_what_is_newer_whatever_races_with_it(make_fleet):
    fleet = await make_fleet(partitions=4)
    fleet.provider.latency_seconds = 0.05
    fleet.environment["EMBEDFLEET_EMBEDDING_MAX_INPUTS"] = "4"
    for worker in (await fleet.start(), await fleet.start()):
        await worker.works_on(2)
    chance = random.Random(11)

    def events():
        for number in range(600):
            tenant = chance.choice(["acme", "acme", "globex"])
            document = f"{tenant}{number % 150}"
            version = chance.randrange(1000)
            yield upsert(document, version, f"{document} {version}", tenant)
            if number in (150, 300, 450):
                yield delete_scope("acme", number)

    await fleet.publish_slowly(events(), size=30)
    await fleet.settled()
    expected = await fleet.expected()
    assert await fleet.stored() == expected
    assert any(document.startswith("acme") for document in expected)
    await fleet.check_vectors()


async def test_an_insert_that_is_not_committed_yet_does_not_outlive_a_scope_delete(make_fleet):
    """C11: the sweep cannot see it, so it waits for the writers that were before it."""
    fleet = await make_fleet(partitions=2)
    fleet.environment["EMBEDFLEET_DATABASE_LOCK_TIMEOUT_SECONDS"] = "20"
    for worker in (await fleet.start(), await fleet.start()):
        await worker.works_on(1)
    await fleet.publish_together([upsert("held", 1, "one", "globex")], partition=1)
    await fleet.settled()
    session = await fleet.session()
    async with session.transaction():
        await session.execute("select from document where id = 'held' for update")
        # One transaction inserts the first and then waits for the second one's lock.
        await fleet.publish_together(
            [upsert("new", 5, "text"), upsert("held", 2, "two", "globex")], partition=1
        )
        await fleet.until(lambda: _waiting(fleet, 1))
        await fleet.publish_together([delete_scope("acme", 10)], partition=0)
        await fleet.until(lambda: fleet.sql.fetchval("select true from scope_tombstone"))
        await fleet.until(lambda: _waiting(fleet, 2))
    await session.close()
    await fleet.settled()
    assert await fleet.stored() == {"held": "two"}
    assert await fleet.row("new") is None


async def _waiting(fleet, count):
    """Whether so many sessions of the workers wait for a lock."""
    waiting = await fleet.sql.fetchval(
        "select count(*) from pg_stat_activity where application_name = 'embedfleet' "
        "and wait_event_type = 'Lock' and datname = current_database()"
    )
    return waiting >= count
