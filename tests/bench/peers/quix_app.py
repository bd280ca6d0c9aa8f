"""
Quix Streams, a sink that embeds and stores what a checkpoint holds.

Quix reads and deserialises; at a checkpoint the sink processes the newest event of each
document since the last one, a hundred at once, and offsets are committed after it. A failure
pauses the partitions and reads them again from the last checkpoint.
"""

from typing import Any

import aiohttp
import asyncpg
from quixstreams import Application
from quixstreams.models import HeadersTuples
from quixstreams.sinks import BaseSink, SinkBackpressureError
from shared import Event, Options, Pipeline, event_of, runner

RETRY_SECONDS = 5.0
CHECKPOINT_EVENTS = 500
"""By default there is one every 5 s only, and what a backlog gives in 5 s waits in memory."""


class PgvectorSink(BaseSink):
    """Keeps the newest event of each document until the checkpoint."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._runner = runner(options)
        self._pipeline = Pipeline(options)
        self._newest: dict[str, Event] = {}

    def setup(self) -> None:
        """Open the connections."""
        self._runner.run(self._pipeline.__aenter__())

    def add(
        self,
        value: dict[str, Any],
        key: bytes,
        timestamp: int,
        headers: HeadersTuples,
        topic: str,
        partition: int,
        offset: int,
    ) -> None:
        """Take an event; one that is older than what is known of its document is none."""
        event = event_of(value)
        known = self._newest.get(event.doc_id)
        if known is None or known.version <= event.version:
            self._newest[event.doc_id] = event

    def flush(self) -> None:
        """Embed and store all that was taken."""
        try:
            self._runner.run(
                self._pipeline.process_all([event] for event in self._newest.values())
            )
        except* (aiohttp.ClientError, asyncpg.PostgresError, OSError) as error:
            raise SinkBackpressureError(RETRY_SECONDS) from error
        finally:
            self._newest.clear()

    def on_paused(self) -> None:
        """Forget what will be read again."""
        self._newest.clear()


def main() -> None:
    """Run until SIGTERM."""
    options = Options.from_environment()
    app = Application(
        broker_address=options.kafka,
        consumer_group=options.group,
        auto_offset_reset="earliest",
        commit_every=CHECKPOINT_EVENTS,
        loglevel="WARNING",
    )
    topic = app.topic(options.topic, key_deserializer="bytes", value_deserializer="json")
    app.dataframe(topic).sink(PgvectorSink(options))
    app.run()


if __name__ == "__main__":
    main()
