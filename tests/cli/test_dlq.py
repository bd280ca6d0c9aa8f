"""Dead letters, from the failure to the repair, as an operator works on them."""

import io
import json
from dataclasses import replace

import pytest
from aiokafka import AIOKafkaProducer

from schemas.dead_letter import Facts, Reason, parse_dead_letter
from tests.support import provider as answers
from tests.support.fleet import Fleet, upsert
from tests.support.store_letters import letter
from worker.adapters.kafka_dead_letters import KafkaDeadLetters
from worker.adapters.pg_claims import PostgresClaims
from worker.adapters.pg_ledger import PostgresLedger
from worker.cli.dead_letter_output import Report
from worker.core.model import Partition, Position, Record
from worker.ports import LetterPlace

pytestmark = pytest.mark.real

SECRET = "the text of the document"
REFUSED = "the provider refuses this"
FILTERED = answers.status(400, code="content_filter")


# ---- with workers ----


@pytest.fixture
async def fleet(kafka_options, database, create_topic, tmp_path, monkeypatch):
    """Topics, schema, collection, provider; the commands mean the same as its workers."""
    made = Fleet(
        kafka=kafka_options,
        database=database,
        topic=await create_topic(),
        dead_letter_topic=await create_topic(),
        folder=tmp_path,
    )
    async with made:
        for name, value in made._environment().items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture
def dlq(embedfleet_beside):
    async def call(*arguments):
        return await embedfleet_beside("dlq", *arguments)

    return call


async def states(fleet) -> dict[int, str]:
    rows = await fleet.sql.fetch('select "offset", state from dead_letter')
    return {row["offset"]: row["state"] for row in rows}


async def test_a_poison_is_listed_explained_repaired_replayed_and_then_found(
    fleet, dlq, tmp_path
):
    fleet.provider.for_text(REFUSED, FILTERED)
    worker = await fleet.start()
    await worker.works_on(1)
    await fleet.publish(
        [
            (b"acme/articles/broken", b'{"type": "upsert", "text": "%s"' % SECRET.encode()),
            upsert("refused", 5, REFUSED),
            upsert("good", 1, "good"),
        ]
    )
    await fleet.settled()

    listed = await dlq("list", "--json")
    assert {(one["reason"], one["letters"]) for one in listed.json} == {
        ("undecodable", 1),
        ("content_filter", 1),
    }
    place = f"{fleet.topic}/0/0"
    shown = await dlq("show", place)
    assert Reason.UNDECODABLE.what in shown.out
    assert Reason.UNDECODABLE.remedy in shown.out
    assert SECRET not in shown.out + listed.out
    assert SECRET in (await dlq("show", place, "--value")).out

    again = await dlq("replay", place, "--json")
    assert (again.code, again.json["fates"]) == (1, {"unreadable": 1})
    repaired = tmp_path / "repaired.json"
    repaired.write_bytes(upsert("broken", 2, "now whole")[1])
    sent = await dlq("replay", place, "--value-file", str(repaired), "--json")
    assert (sent.code, sent.json["fates"]) == (0, {"replayed": 1}), sent.err
    # A newer version of the other one needs nobody's hand.
    await fleet.publish([upsert("refused", 6, "harmless")])
    await fleet.settled()
    assert await fleet.stored() == {
        "broken": "now whole",
        "refused": "harmless",
        "good": "good",
    }
    assert (await fleet.row("broken"))["order_offset"] == 0
    assert await states(fleet) == {0: "resolved", 1: "resolved"}
    assert (await dlq("list", "--json")).json == []
    assert await fleet.stop(worker) == 0


async def test_a_replay_overtakes_nothing_brings_nothing_back_and_is_not_repeated_for_ever(
    fleet, dlq
):
    for text in ("late", "gone", "stubborn", "mended"):
        fleet.provider.for_text(text, FILTERED)
    worker = await fleet.start()
    await worker.works_on(1)
    await fleet.publish(
        [upsert(text, 5, text) for text in ("late", "gone", "stubborn", "mended")]
    )
    await fleet.settled()
    assert await fleet.stop(worker) == 0
    for text in ("late", "gone", "mended"):
        fleet.provider.forget_text(text)
    await copied_as_by_a_zombie(fleet)

    # What the workers have not met yet, the ledger cannot foresee.
    await fleet.publish([upsert("late", 5, "later"), (b"acme/articles/gone", None)])
    asked = await dlq("replay", "--json")
    assert (asked.code, asked.json["done"], asked.json["fates"]) == (1, False, {"replayed": 4})
    foretold = await dlq("replay", "--dry-run", "--json")
    assert (foretold.code, foretold.json["fates"]) == (0, {"replayed": 4})
    assert set((await states(fleet)).values()) == {"published"}
    sent = await dlq("replay", "--yes", "--json", "--rate", "20")
    assert (sent.code, sent.json["fates"]) == (0, {"replayed": 4}), sent.err
    assert sent.json["seconds"] > 3 / 20
    assert len(await fleet.records()) == 4 + 2 + 4

    await fleet.start()
    await fleet.settled()
    assert await fleet.stored() == {"late": "later", "mended": "mended"}
    assert (await fleet.row("mended"))["order_offset"] == 3
    found = await states(fleet)
    (failed_again,) = set(found) - {0, 1, 2, 3}
    assert [found[n] for n in (0, 1, 2, 3)] == ["resolved", "resolved", "replayed", "resolved"]
    assert found[failed_again] == "published"
    (chained,) = (await dlq("list", "--each", "--json")).json
    assert (chained["replays"], chained["origin"]["offset"]) == (1, 2)
    parked = await dlq("replay", "--max-replays", "1", "--yes", "--json")
    assert (parked.code, parked.json["fates"]) == (1, {"parked": 1})
    assert (await states(fleet))[failed_again] == "parked"
    # What was said to be superseded is not sent, also where it is named.
    late = await dlq("replay", f"{fleet.topic}/0/0", "--json")
    assert (late.code, late.json["fates"]) == (0, {"superseded": 1})


async def copied_as_by_a_zombie(fleet) -> None:
    """Every letter once more, and one that the ledger does not have."""
    for record in await fleet.records(fleet.dead_letter_topic):
        headers = list(record.headers)
        await fleet.producer.send_and_wait(
            fleet.dead_letter_topic, record.value, record.key, headers=headers
        )
    unknown = [
        (name, b"99" if name == "embedfleet.offset" else value) for name, value in headers
    ]
    assert parse_dead_letter(unknown)[0].offset == 99
    await fleet.producer.send_and_wait(
        fleet.dead_letter_topic, record.value, record.key, headers=unknown
    )


# ---- without workers: a ledger with letters in their topic ----


@pytest.fixture
async def dead(migrated, topics, kafka_options):
    """`await dead(3, reason=..., value=...)` makes a letter of offset 3, as a worker would."""
    documents, dead_letter_topic = topics
    ledger = PostgresLedger(migrated)
    publisher = KafkaDeadLetters(replace(kafka_options, dead_letter_topic=dead_letter_topic))
    partition = Partition(documents, 0)
    claim = await PostgresClaims(migrated).claim(kafka_options.group, partition, "worker")

    async def make(offset, *, key=b"acme/articles/a", value=b"{", headers=(), **facts):
        place = Position(*partition, offset)
        record = Record(place, 1_700_000_000_000, key, value, headers)
        made = replace(letter(claim, offset, **facts), record=record)
        (recorded,) = await ledger.record([made])
        await publisher.publish(made, recorded)
        await ledger.mark_published(claim.group, [LetterPlace(*place)])
        return "/".join(map(str, place))

    yield make
    await publisher.close()


@pytest.mark.parametrize("command", [("list",), ("list", "--each"), ("stats",)])
async def test_no_letters_is_an_empty_list_and_not_an_error(command, migrated, topics, dlq):
    ended = await dlq(*command, "--json")
    assert (ended.code, ended.json) == (0, [])
    told = await dlq(*command)
    assert (told.code, told.out, told.err) == (0, "", "there are no such dead letters\n")


async def test_letters_are_listed_by_cause_and_each_by_itself(dead, dlq):
    one = await dead(1, detail="text of 7 bytes", tenant="acme", reason=Reason.OVERSIZE)
    two = await dead(2, detail="text of 9 bytes", tenant="acme", reason=Reason.OVERSIZE)
    await dead(3)
    (group,) = (await dlq("list", "--reason", "oversize", "--json")).json
    assert (group["letters"], group["sample"]) == (2, two)
    lines = (await dlq("list")).out.splitlines()
    assert lines[0].split()[:3] == ["LETTERS", "REASON", "FINGERPRINT"]
    assert lines[1].split()[:3] == ["2", "oversize", group["fingerprint"]]
    each = ("list", "--each", "--fingerprint", group["fingerprint"])
    assert [found["position"] for found in (await dlq(*each, "--json")).json] == [one, two]
    assert "more" not in (await dlq(*each, "--limit", "2")).err
    cut = await dlq(*each, "--limit", "1")
    assert (cut.out.count("oversize"), cut.err) == (1, "1 more: --limit\n")


async def test_the_list_names_a_document_or_a_key_and_never_a_tenant_alone(dead, dlq):
    names = {"tenant": "acme", "collection": "articles", "document_id": "a b"}
    future = await dead(1, **names, version=7, reason=Reason.VERSION_IN_FUTURE)
    await dead(2, tenant="acme", key=b"acme/\n")
    await dead(3, tenant="acme", key=None)
    lines = (await dlq("list", "--each")).out.splitlines()[1:]
    assert "  acme/articles/a b  " in lines[0]
    assert "  acme/?  " in lines[1]
    assert lines[2].split()[3] == "-"
    (found,) = (await dlq("list", "--each", "--collection", "articles", "--json")).json
    assert (found["position"], found["version"]) == (future, 7)
    told = (await dlq("show", future)).out
    assert "Document:      acme/articles/a b, version 7\n" in told
    assert "Refused:       its version stays ahead of its record" in told


async def test_letters_are_counted_by_what_is_asked(dead, dlq):
    await dead(1, tenant="acme")
    await dead(2, tenant="acme")
    await dead(3, tenant="bolt")
    counted = (await dlq("stats", "--by", "tenant", "--json")).json
    assert [(one["tenant"], one["letters"]) for one in counted] == [("acme", 2), ("bolt", 1)]
    assert counted[0]["states"]["published"] == 2
    told = (await dlq("stats", "--by", "reason", "--by", "day")).out.splitlines()
    assert told[0].split()[:4] == ["REASON", "DAY", "LETTERS", "PENDING"]


async def test_a_letter_is_shown_with_its_headers_and_without_its_text(dead, dlq):
    place = await dead(1, value=SECRET.encode(), headers=(("source", b"cms"), ("x", None)))
    found = (await dlq("show", place, "--json")).json
    assert found["record"] == {
        "key": "acme/articles/a",
        "value_bytes": len(SECRET),
        "headers": [["source", "cms"], ["x", None]],
    }
    assert found["what"] == Reason.UNDECODABLE.what
    assert (await dlq("show", place, "--value", "--json")).json["record"]["value"] == SECRET
    told = await dlq("show", place)
    assert "source: cms" in told.out
    assert SECRET not in told.out


async def test_what_provider_and_postgresql_said_is_shown_by_codes_and_names(dead, dlq):
    refused = await dead(1, facts=Facts(400, "req_7f3"))
    broken = await dead(2, facts=Facts(sqlstate="23514", constraint="short"))
    plain = await dead(3)
    told = (await dlq("show", refused)).out
    assert "Provider:      status 400, request id req_7f3\n" in told
    assert "PostgreSQL:" not in told
    told = (await dlq("show", broken)).out
    assert "PostgreSQL:    SQLSTATE 23514, constraint short\n" in told
    assert "Provider:" not in told
    assert "Refused:" not in (await dlq("show", plain)).out
    found = (await dlq("show", refused, "--json")).json
    assert (found["provider_status"], found["provider_request_id"]) == (400, "req_7f3")
    assert (found["sqlstate"], found["constraint"], found["objection"]) == (None, None, None)
    each = (await dlq("list", "--each", "--json")).json
    assert [one["sqlstate"] for one in each] == [None, "23514", None]


async def test_a_record_that_killed_workers_is_not_sent_again_but_by_force(dead, dlq):
    _, event = upsert("a", 1, "text")
    place = await dead(1, value=event, reason=Reason.WORKER_KILLER)
    why = "workers died whenever they were alone with it"
    told = (await dlq("show", place)).out
    assert f"Refused:       {why}" in told
    assert why in (await dlq("show", place, "--json")).json["objection"]
    for how in ((), ("--dry-run",)):
        ended = await dlq("replay", place, "--json", *how)
        assert (ended.code, ended.json["fates"]) == (1, {"refused": 1})
        assert why in ended.json["problems"][0]["why"]
    ended = await dlq("replay", place, "--force", "--json")
    assert (ended.code, ended.json["fates"]) == (0, {"replayed": 1}), ended.err


async def test_a_terminal_sees_how_far_a_replay_is_and_stdout_stays_clean(
    dead, dlq, monkeypatch
):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    _, event = upsert("a", 1, "text")
    for offset in range(3):
        await dead(offset, value=event)
    ended = await dlq("replay", "--json", "--yes")
    assert (ended.code, ended.json["fates"]) == (0, {"replayed": 3}), ended.err
    assert "3/3" in ended.err


async def test_a_value_that_is_no_text_is_shown_as_base64(dead, dlq):
    place = await dead(1, value=b"\xff")
    record = (await dlq("show", place, "--value", "--json")).json["record"]
    assert record["value_base64"] == "/w=="


async def test_a_letter_is_shown_also_where_kafka_is_away(dead, dlq, monkeypatch):
    place = await dead(1)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    ended = await dlq("show", place, "--json")
    assert (ended.code, ended.json["reason"], ended.json["record"]) == (0, "undecodable", None)
    assert "cannot be looked for" in ended.err


async def test_nothing_is_discarded_without_a_yes_and_only_what_is_named(dead, dlq):
    await dead(1, tenant="acme")
    await dead(2, tenant="bolt")
    asked = await dlq("discard", "--tenant", "acme", "--json")
    assert (asked.code, asked.json) == (1, {"letters": 1, "done": False})
    assert "say --yes" in asked.err
    ended = await dlq("discard", "--tenant", "acme", "--yes", "--json")
    assert (ended.code, ended.json) == (0, {"letters": 1, "done": True})
    assert "never stored" in ended.err
    states = {one["tenant"]: one["states"] for one in await counts(dlq)}
    assert (states["acme"]["discarded"], states["bolt"]["published"]) == (1, 1)


async def test_where_nothing_is_to_be_given_up_one_sentence_says_why(dead, dlq):
    place = await dead(1, tenant="acme")
    assert "1 letter would be" in (await dlq("discard", place)).err
    assert (await dlq("discard", place, "--yes")).err == "given up: 1 letter, never stored\n"
    for how in ((place,), (place, "--yes"), ("--tenant", "acme"), ("--tenant", "nobody")):
        ended = await dlq("discard", *how)
        assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
        assert "nothing to give up: no such letter is published or parked" in ended.err


async def test_a_filter_needs_a_yes_also_where_one_letter_fits(dead, dlq):
    _, event = upsert("a", 1, "text")
    await dead(1, value=event, tenant="acme")
    for how in ((), ("--tenant", "acme")):
        asked = await dlq("replay", *how)
        assert (asked.code, asked.err) == (
            1,
            "would be: 1 replayed\nnothing was sent: say --yes\n",
        )
    sent = await dlq("replay", "--tenant", "acme", "--yes")
    assert (sent.code, sent.err) == (0, "1 replayed\n")


async def test_no_yes_is_asked_for_where_it_would_change_nothing(dead, dlq):
    await dead(1)
    ended = await dlq("replay", "--reason", "undecodable")
    assert (ended.code, "1 unreadable" in ended.err) == (1, True)
    assert "--yes" not in ended.err
    nothing = await dlq("replay", "--tenant", "nobody")
    assert (nothing.code, "nothing to replay" in nothing.err) == (0, True)


@pytest.mark.parametrize("how", [("-",), ()])
async def test_a_repaired_value_comes_from_stdin(how, dead, dlq, monkeypatch):
    place = await dead(1)
    _, event = upsert("a", 1, "text")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(event)))
    option = ("--value-file", "-") if how else ("--value-file=-",)
    ended = await dlq("replay", place, *option, "--json")
    assert (ended.code, ended.json["fates"]) == (0, {"replayed": 1}), ended.err


async def test_an_interrupted_replay_says_what_was_sent_before(dead, dlq, monkeypatch):
    _, event = upsert("a", 1, "text")
    await dead(1, value=event)
    add = Report.add

    def interrupted(report, ended):
        add(report, ended)
        raise KeyboardInterrupt

    monkeypatch.setattr(Report, "add", interrupted)
    ended = await dlq("replay", "--yes")
    assert (ended.code, ended.err) == (130, "interrupted; before that: 1 replayed\n")


async def counts(dlq):
    return (await dlq("stats", "--by", "tenant", "--json")).json


async def test_a_discarded_letter_can_still_be_named(dead, dlq, topics):
    event = json.dumps({"type": "delete", "tenant": "acme", "collection": "articles",
                        "id": "a", "version": 1}).encode()  # fmt: skip
    place = await dead(1, value=event)
    assert (await dlq("discard", place, "--yes")).code == 0
    assert (await dlq("replay", "--json", "--yes")).json["letters"] == 0
    ended = await dlq("replay", place, "--json")
    assert (ended.code, ended.json["fates"]) == (0, {"replayed": 1}), ended.err


async def test_a_record_that_is_in_neither_topic_is_told(dead, dlq, topics, create_topic):
    place = await dead(1)
    elsewhere = ("--kafka.dead-letter-topic", await create_topic())
    ended = await dlq("replay", place, *elsewhere, "--json")
    assert (ended.code, ended.json["fates"]) == (1, {"gone": 1})
    assert ended.json["problems"][0]["position"] == place
    assert "Record:        not to be had" in (await dlq("show", place, *elsewhere)).out


async def test_a_pointer_is_replayed_from_the_record_itself(
    migrated, topics, kafka_options, dlq, create_topic, monkeypatch
):
    documents, _ = topics
    small = await create_topic(config={"max.message.bytes": "2000"})
    monkeypatch.setenv("EMBEDFLEET_KAFKA_DEAD_LETTER_TOPIC", small)
    text = "".join(chr(33 + n * n % 89) for n in range(20_000))
    key, value = upsert("large", 1, text)
    servers = kafka_options.bootstrap_servers
    async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
        sent = await producer.send_and_wait(documents, value, key, partition=0)
    place, claims = Position(documents, 0, sent.offset), PostgresClaims(migrated)
    claim = await claims.claim(kafka_options.group, Partition(documents, 0), "worker")
    record = Record(place, sent.timestamp, key, value)
    made = replace(letter(claim, sent.offset, reason=Reason.OVERSIZE), record=record)
    (recorded,) = await PostgresLedger(migrated).record([made])
    publisher = KafkaDeadLetters(replace(kafka_options, dead_letter_topic=small))
    await publisher.publish(made, recorded)
    await publisher.close()
    await PostgresLedger(migrated).mark_published(claim.group, [LetterPlace(*place)])
    ended = await dlq("replay", "--yes", "--json")
    assert (ended.code, ended.json["fates"]) == (0, {"replayed": 1}), ended.err


# ---- wrong usage ----


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("show", "documents/3"), "is no TOPIC/PARTITION/OFFSET"),
        (("show", "documents/x/1"), "is no TOPIC/PARTITION/OFFSET"),
        (("show", f"documents/7/{2**63}"), f"{2**63} is too large: at most {2**63 - 1}"),
        (("show", f"documents/{2**31}/7"), f"{2**31} is too large: at most {2**31 - 1}"),
        (("discard", "documents/7/" + "9" * 5000), f"{'9' * 40} is too large"),
        (("show", "documents/3/1"), "has no dead letter documents/3/1"),
        (("replay", "documents/3/1"), "has no dead letter documents/3/1"),
        (("discard", "documents/3/1", "--yes"), "has no dead letter documents/3/1"),
        (("replay", "documents/3/1", "--tenant", "a"), "not both"),
        (("replay", "--value-file", "x.json"), "name it by TOPIC/PARTITION/OFFSET"),
        (("replay", "documents/3/1", "--value-file", "x.json"), "x.json cannot be read"),
        (("discard", "--yes"), "name the letters to discard"),
        (("discard", "--state", "pending"), "can be discarded"),
        (("list", "--reason", "oversized"), "there are undecodable, "),
        (("list", "--state", "open"), "open"),
        (("replay", "--rate", "0"), "rate"),
        (("stats", "--by", "color"), "color"),
    ],
)
async def test_wrong_usage_is_one_sentence(arguments, words, migrated, topics, dlq):
    ended = await dlq(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err


async def test_a_repair_that_is_no_event_changes_nothing(dead, dlq, tmp_path):
    place = await dead(1)
    bad = tmp_path / "bad.json"
    bad.write_text('{"type": "upsert"}')
    ended = await dlq("replay", place, "--value-file", str(bad))
    assert (ended.code, "the value is no event" in ended.err) == (2, True)
    (found,) = (await dlq("list", "--each", "--json")).json
    assert (found["state"], found["replays"]) == ("published", 0)


async def test_a_topic_that_is_gone_is_told_before_anything_is_sent(dead, dlq, topics):
    place = await dead(1)
    ended = await dlq("replay", place, "--kafka.dead-letter-topic", "nowhere")
    assert (ended.code, "there is no topic 'nowhere'" in ended.err) == (2, True)
