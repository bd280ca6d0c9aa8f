"""What a worker logs: JSON with an action in each line, and nothing of texts and secrets."""

from urllib.parse import urlsplit

from tests.support import provider
from tests.support.fleet import upsert

KEY = "sk-key-of-the-provider-0123456789"
TEXTS = [f"confidential {what}" for what in ("good", "refused", "failing", "no event")]


async def test_every_line_is_json_with_an_action_and_holds_no_text_and_no_secret(make_fleet):
    fleet = await make_fleet(partitions=1)
    good, refused, failing, no_event = TEXTS
    fleet.provider.key = KEY
    fleet.provider.for_text(refused, provider.status(400, refused, code="content_filter"))
    worker = await fleet.start(
        OPENAI_API_KEY=KEY,
        EMBEDFLEET_TELEMETRY_LOG_LEVEL="debug",
        EMBEDFLEET_INGEST_UNKNOWN_COLLECTION_GRACE_SECONDS="0.5",
    )
    await worker.works_on(1)
    # Providers quote what they were sent.
    fleet.provider.next(provider.status(500, failing), provider.status(503, failing))
    await fleet.publish([upsert("failing", 1, failing)])
    await fleet.settled()
    await fleet.publish(
        [
            upsert("good", 1, good),
            upsert("refused", 1, refused),
            (b"acme/articles/x", no_event.encode()),
            upsert("elsewhere", 1, good, collection="elsewhere"),
        ]
    )
    await fleet.settled()
    assert len(await fleet.letters()) == 3
    assert await fleet.stored() == {"failing": failing, "good": good}
    assert await fleet.stop(worker) == 0
    lines = worker.lines()
    actions = {line["action"] for line in lines}
    assert {"started", "admin_listening", "assigned", "stopping", "stopped"} <= actions
    assert all(line["action"] and line["level"] and line["time"] for line in lines)
    whole = worker.log_file.read_text()
    password = urlsplit(fleet.database.url).password
    for hidden in (*TEXTS, "confidential", KEY, *([password] if password else [])):
        assert hidden not in whole
