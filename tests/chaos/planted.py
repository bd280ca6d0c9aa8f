"""
A worker with one promise broken: `PLANTED_BUG=name python -m tests.chaos.planted run`.

Each bug changes a line or so of the worker, from outside. A run that a bug does not turn red
would have shown nothing.
"""

import os
import sys
from dataclasses import replace

from worker.adapters import kafka_source, pg_documents, pg_ledger, pgvector_store
from worker.adapters.http_embedder import HttpEmbedder
from worker.adapters.kafka_dead_letters import KafkaDeadLetters
from worker.cli.root import main as run
from worker.core import changeset
from worker.core.offsets import OffsetTracker
from worker.pipeline.partitions import Partitions


def commits_what_was_only_read():
    OffsetTracker.committable = property(lambda self: self.handed_out)


def writes_older_over_newer():
    def newer(_rank, _document):
        return True

    changeset.newer = newer
    changeset.settled.__globals__["newer"] = newer
    for name in ("_UPDATE", "_RAISE_BARRIER"):
        statement = getattr(pg_documents, name).replace(pg_documents.NEWER, "true")
        setattr(pg_documents, name, statement)


def writes_without_a_fence():
    async def live_claims(_connection, claims, _history):
        return frozenset(claims)

    pgvector_store.live_claims = pg_ledger.live_claims = live_claims


def leaves_old_chunks():
    pg_documents._REMOVE_CHUNKS = pg_documents._REMOVE_CHUNKS.replace(
        "where", "where false and"
    )


def takes_answers_in_another_order():
    embed = HttpEmbedder.embed

    async def reversed_answers(self, request):
        return (await embed(self, request))[::-1]

    HttpEmbedder.embed = reversed_answers


def forgets_to_publish_dead_letters():
    async def publish(_self, _letter, _recorded):
        return

    KafkaDeadLetters.publish = publish


def reads_aborted_transactions():
    arguments = kafka_source.consumer_arguments

    def uncommitted(options):
        return arguments(options) | {"isolation_level": "read_uncommitted"}

    kafka_source.consumer_arguments = uncommitted


def tells_kafka_first():
    async def commit(self):
        async with self._committing:
            due = {life.claim: life.progress for life in self._lives if self._is_due(life)}
            progress = {claim: far for claim, far in due.items() if claim is not None}
            ahead = {claim.partition: far.next_offset for claim, far in progress.items()}
            if progress:
                await self._tell(progress, ahead)

    Partitions.commit = commit


def shows_deleted_documents():
    delete = changeset.delete

    def kept(work, collection, base):
        change = delete(work, collection, base)
        return change if change.rank.version is None else _undeleted(change)

    changeset.delete = kept


def _undeleted(change):
    return replace(change, deleted=False, remove=())


BUGS = {
    commits_what_was_only_read: {"watermark-skip"},
    writes_older_over_newer: {"stale-overwrite"},
    writes_without_a_fence: {"zombie-write"},
    leaves_old_chunks: {"torn", "orphan"},
    takes_answers_in_another_order: {"wrong-vector"},
    forgets_to_publish_dead_letters: {"dlq-missing"},
    reads_aborted_transactions: {"aborted-read"},
    tells_kafka_first: {"ahead-of-store"},
    shows_deleted_documents: {"resurrected"},
}
"""What each must be found by: one of these anomalies at least."""

VARIABLE = "PLANTED_BUG"


if __name__ == "__main__":
    {bug.__name__: bug for bug in BUGS}[os.environ[VARIABLE]]()
    sys.exit(run())
