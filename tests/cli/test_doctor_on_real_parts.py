"""What `doctor` says of real parts that are well, half there, or wrong."""

import pytest

pytestmark = pytest.mark.real

CREATE = ("collections", "create", "docs", "--model", "m", "--dimensions", "8")


async def found_by(call, *arguments: str) -> tuple[int, dict[str, str]]:
    ended = await call("doctor", "--json", *arguments)
    return ended.code, {one["check"]: one["status"] for one in ended.json}


async def test_doctor_is_content_where_all_is_well(
    migrated, topics, provider, embedfleet_beside, monkeypatch, kafka_server
):
    monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
    await embedfleet_beside(*CREATE)
    letters = ("topics", "create", "--kafka.dead-letter-topic", f"{topics[1]}-big")
    await embedfleet_beside(*letters)
    code, found = await found_by(
        embedfleet_beside, "--kafka.dead-letter-topic", f"{topics[1]}-big"
    )
    assert code == 0, found
    assert set(found.values()) <= {"ok", "warn"}
    assert found["collection docs"] == found["schema"] == found[f"topic {topics[0]}"] == "ok"


async def test_doctor_goes_on_with_the_rest_where_kafka_is_away(
    migrated, embedfleet_beside, monkeypatch
):
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    code, found = await found_by(embedfleet_beside)
    assert code == 1
    assert found["kafka 127.0.0.1:1 TCP"] == "fail"
    assert found["schema"] == "ok"
    assert found["collections"] == "warn"
    assert not any(name.startswith("topic ") for name in found)


async def test_doctor_names_a_schema_that_is_not_there_and_topics_that_are_not(
    on_database, on_kafka, embedfleet_beside
):
    arguments = ("--kafka.topics", "nowhere", "--kafka.dead-letter-topic", "nowhere.dead")
    code, found = await found_by(embedfleet_beside, *arguments)
    assert code == 1
    assert (
        found["schema"]
        == found["topic nowhere"]
        == found["dead letters nowhere.dead"]
        == "fail"
    )
    assert "collections" not in found


async def test_doctor_warns_of_a_dead_letter_topic_that_is_too_small(
    migrated, topics, embedfleet_beside
):
    _, found = await found_by(embedfleet_beside)
    assert found[f"dead letters {topics[1]}"] == "fail"


async def test_doctor_names_a_provider_whose_dimensions_differ(
    migrated, topics, provider, embedfleet_beside, monkeypatch
):
    monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
    await embedfleet_beside(*CREATE)
    provider.dimensions = 8 + 1
    ended = await embedfleet_beside("doctor")
    assert ended.code == 1
    assert "fail  collection docs: m: " in ended.out
    assert "dimensions" in ended.out.rpartition("collection docs")[2]
