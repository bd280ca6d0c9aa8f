"""What `doctor` says of nothing, of half and of all."""

import asyncio

import pytest

from worker.errors import BrokerUnavailable, ConfigError, StoreUnavailable
from worker.ops import verdicts
from worker.ops.doctor import Check, Finding, Status, examine, has_failed
from worker.ops.verdicts import TopicFacts

OK = Finding("a", Status.OK, "fine")
BAD = Finding("b", Status.FAIL, "broken", "mend it")


def check(name: str, *findings: Finding, error: Exception | None = None, **more) -> Check:
    async def look():
        if error is not None:
            raise error
        return list(findings)

    return Check(name, look, limit_seconds=5, **more)


async def examined(*checks: Check) -> list[Finding]:
    seen: list[Finding] = []
    found = await examine(checks, seen=seen.append)
    assert seen == found
    return found


async def test_a_failed_call_is_a_finding_and_ends_the_chain():
    found = await examined(
        check("x", error=BrokerUnavailable("gone"), hint="h"), check("a", OK)
    )
    assert found == [Finding("x", Status.FAIL, "gone", "h")]


async def test_a_bad_finding_ends_the_chain_at_a_gate_only():
    assert await examined(check("b", BAD), check("a", OK)) == [BAD, OK]
    assert await examined(check("b", BAD, is_gate=True), check("a", OK)) == [BAD]


async def test_a_check_that_hangs_is_cut_at_its_limit():
    async def hang():
        await asyncio.Event().wait()

    found = await examine([Check("x", hang, limit_seconds=0.01)], seen=lambda _: None)
    assert found == [Finding("x", Status.FAIL, "no answer within 0.01 s")]


async def test_a_defect_of_ours_is_not_a_finding():
    with pytest.raises(ZeroDivisionError):
        await examined(check("x", error=ZeroDivisionError()))


def test_a_warning_is_no_failure():
    assert has_failed([OK, BAD])
    assert not has_failed([OK, Finding("c", Status.WARN, "hm")])


@pytest.mark.parametrize(
    ("version", "status"),
    [
        (None, "fail"),
        ("0.5.1", "fail"),
        ("0.8.1", "fail"),
        ("0.8.2", "warn"),
        ("0.8.3", "warn"),
        ("0.8.4", "ok"),
        ("0.9.0", "ok"),
        ("0.10", "ok"),
        ("1.0.0", "ok"),
    ],
)
def test_pgvector_with_the_hole_is_refused_and_an_old_one_warned_of(version, status):
    found = verdicts.pgvector(version)
    assert found.status == status
    assert bool(found.hint) == (status != "ok")


def test_migrations_that_are_missing_are_named():
    assert verdicts.schema([], 3).status is Status.OK
    assert verdicts.schema(["0002_more"], 1).detail == "not applied: 0002_more"


def test_a_topic_that_is_missing_fails_and_a_single_partition_is_warned_of():
    assert verdicts.document_topic("d", None).status is Status.FAIL
    assert verdicts.document_topic("d", TopicFacts("d", 1, 1, None)).status is Status.WARN
    assert verdicts.document_topic("d", TopicFacts("d", 8, 3, None)).status is Status.OK


@pytest.mark.parametrize(
    ("limit", "status"), [(1000, "fail"), (1_000_000, "fail"), (1_016_384, "ok"), (None, "ok")]
)
def test_a_dead_letter_topic_must_hold_a_letter_of_the_largest_record(limit, status):
    documents = [TopicFacts("a", 8, 1, 1_000_000), TopicFacts("b", 8, 1, 500)]
    facts = TopicFacts("dead", 1, 1, limit)
    assert verdicts.dead_letter_topic("dead", facts, documents).status == status
    assert verdicts.dead_letter_topic("dead", None, documents).status is Status.FAIL


def test_a_pool_larger_than_the_server_allows_is_warned_of():
    assert verdicts.connections("x", 100, 50).status is Status.OK
    assert verdicts.connections("x", 40, 50).status is Status.WARN


def test_one_broker_that_works_is_enough():
    steps = [("a:1 TCP", False, "refused"), ("b:1 TCP", True, ""), ("b:1 SASL", True, "")]
    assert [one.status for one in verdicts.brokers(steps)] == ["warn", "ok", "ok"]
    steps[2] = ("b:1 SASL", False, "refused")
    assert [one.status for one in verdicts.brokers(steps)] == ["fail", "ok", "fail"]


@pytest.fixture
def nothing(monkeypatch):
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me@127.0.0.1:1/docs")


def test_where_nobody_is_each_part_is_one_failure_with_a_hint(nothing, embedfleet):
    ended = embedfleet("doctor")
    assert ended.code == 1
    failures = [line for line in ended.out.splitlines() if line.startswith("fail")]
    assert [line.split()[1] for line in failures] == ["kafka", "database:"]
    assert "kafka.bootstrap_servers" in ended.out
    assert "database.url" in ended.out


def test_its_json_is_a_list_of_findings_and_nothing_else(nothing, embedfleet):
    ended = embedfleet("doctor", "--json")
    assert ended.code == 1
    assert {one["status"] for one in ended.json} == {"fail"}
    assert ended.json[0].keys() == {"check", "status", "detail", "hint"}


def test_other_commands_say_in_one_sentence_that_nobody_is_there(nothing, embedfleet):
    for arguments in (("migrate", "status"), ("topics", "create"), ("partitions", "list")):
        ended = embedfleet(*arguments)
        assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)


def test_a_database_that_is_not_there_is_called_by_its_name(nothing, embedfleet):
    for arguments in (("migrate", "status"), ("partitions", "list"), ("dlq", "list")):
        err = embedfleet(*arguments).err
        assert err.startswith("embedfleet: PostgreSQL (database.url) cannot be reached: ")


async def test_one_that_refuses_us_is_told_from_one_that_is_away():
    hints = {"hint": "is it running?", "refused_hint": "see the password"}
    away = await examined(check("database", error=StoreUnavailable("away"), **hints))
    refused = await examined(check("database", error=ConfigError("password"), **hints))
    assert [away[0].hint, refused[0].hint] == ["is it running?", "see the password"]


def test_a_missing_secret_is_said_before_anything_is_connected(nothing, embedfleet):
    ended = embedfleet("migrate", "status", "--database.password-variable", "NOT_SET_HERE")
    assert ended.code == 2
    assert "names NOT_SET_HERE, which is not set" in ended.err
