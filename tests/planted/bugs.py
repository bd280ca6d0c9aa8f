"""
Bugs to plant: each breaks one promise, by a line or so of the worker that is replaced.

Every bug is a function of a `pytest.MonkeyPatch`, which also takes it out again. Where the
adapters in memory and the real ones say the same thing twice, it is broken in both.
"""

from contextlib import suppress
from dataclasses import replace

from aiokafka import AIOKafkaProducer

from worker.adapters import (
    embedding_wire,
    kafka_source,
    memory_database,
    memory_store,
    pg_documents,
    pg_ledger,
    pg_search,
    pg_statements,
    pgvector_store,
)
from worker.adapters.http_embedder import HttpEmbedder
from worker.adapters.kafka_dead_letters import KafkaDeadLetters
from worker.adapters.kafka_flow import Flow
from worker.adapters.kafka_source import KafkaSource
from worker.adapters.memory_database import MemoryDatabase
from worker.adapters.memory_kafka import MemoryDeadLetters, MemorySource
from worker.adapters.memory_store import MemoryClaims, MemoryStore
from worker.adapters.pg_claims import PostgresClaims
from worker.core import changeset, lifecycle, scheduler
from worker.core.breaker import Gate, Permit, State
from worker.core.lifecycle import PartitionLife, Start
from worker.core.model import Rank, Superseded, Unchanged
from worker.core.offsets import OffsetTracker
from worker.core.retry import RetryBudget
from worker.core.suspicion import Judgement, Suspicion
from worker.errors import BrokerUnavailable, StoreUnavailable
from worker.pipeline import partitions, prepare
from worker.pipeline.dispatch import Dispatch
from worker.pipeline.partitions import Partitions
from worker.pipeline.refusals import Refusals
from worker.pipeline.settle import Settle

# ---- what is committed ----


def commits_what_was_only_read(patch):
    patch.setattr(OffsetTracker, "committable", property(lambda self: self.handed_out))


def commits_one_too_far(patch):
    def committable(self):
        return next((offset + 1 for offset in self._in_flight), self._next)

    patch.setattr(OffsetTracker, "committable", property(committable))


def completes_all_that_is_below(patch):
    complete = OffsetTracker.complete

    def complete_all(self, offset):
        for below in [one for one in self._in_flight if one <= offset]:
            complete(self, below)

    patch.setattr(OffsetTracker, "complete", complete_all)


def waits_for_offsets_that_hold_nothing(patch):
    track, advance = OffsetTracker.track, OffsetTracker.advance

    def fill(self, end, at):
        for offset in range(self._next, end):
            track(self, offset, at)

    def track_all(self, offset, at):
        fill(self, offset, at)
        track(self, offset, at)

    def advance_all(self, next_offset):
        fill(self, next_offset, 0)
        advance(self, next_offset)

    patch.setattr(OffsetTracker, "track", track_all)
    patch.setattr(OffsetTracker, "advance", advance_all)


def completes_what_was_released(patch):
    released = Settle.released

    def complete(self, work):
        released(self, work)
        if (life := self._lives.under(work.claim)) is not None:
            life._tracker.complete(work.position.offset)

    patch.setattr(Settle, "released", complete)


def commits_the_position_when_nothing_is_in_flight(patch):
    commit = Partitions.commit

    async def commit_position(self):
        for life in self._lives:
            if life.in_flight == 0:
                life.advance(self._source._positions.get(life.partition, 0))
        await commit(self)

    patch.setattr(Partitions, "commit", commit_position)


def takes_work_of_an_old_claim_for_its_own(patch):
    patch.setattr(
        PartitionLife, "owns", lambda self, claim: claim and self.phase in lifecycle._OWNING
    )


def takes_a_failed_write_of_progress_for_done(patch):
    for claims in (MemoryClaims, PostgresClaims):
        patch.setattr(claims, "save_progress", _swallowing(claims.save_progress))


def _swallowing(save):
    async def save_progress(self, progress):
        try:
            return await save(self, progress)
        except StoreUnavailable:
            return {claim.partition: far.next_offset for claim, far in progress.items()}

    return save_progress


def tells_kafka_first(patch):
    async def commit(self):
        async with self._committing:
            due = {life.claim: life.progress for life in self._lives if self._is_due(life)}
            progress = {claim: far for claim, far in due.items() if claim is not None}
            ahead = {claim.partition: far.next_offset for claim, far in progress.items()}
            if progress:
                await self._tell(progress, ahead)

    patch.setattr(Partitions, "commit", commit)


def lets_the_client_commit(patch):
    _with_arguments(patch, enable_auto_commit=True, auto_commit_interval_ms=100)


def reads_aborted_transactions(patch):
    _with_arguments(patch, isolation_level="read_uncommitted")


def _with_arguments(patch, **wrong):
    arguments = kafka_source.consumer_arguments
    patch.setattr(kafka_source, "consumer_arguments", lambda of: arguments(of) | wrong)


# ---- where a partition starts, and who owns it ----


def starts_at_the_end_of_the_log(patch):
    patch.setattr(partitions, "decide_start", lambda _committed, _table, ends: Start(ends[1]))


def starts_at_kafka_s_offset(patch):
    def kafka_first(committed, next_offset, bounds):
        known = (one for one in (committed, next_offset, bounds[0]) if one is not None)
        return Start(next(known))

    patch.setattr(partitions, "decide_start", kafka_first)


def keeps_the_later_of_two_seeks(patch):
    in_memory, on_kafka = MemorySource.begin, Flow.begin

    def begin(self, assignment, partition, offset):
        later = max(offset, self._positions.get(partition, 0))
        return in_memory(self, assignment, partition, later)

    def begin_on_kafka(self, partition, offset):
        return on_kafka(self, partition, max(offset, self._handed_out.get(partition, 0)))

    patch.setattr(MemorySource, "begin", begin)
    patch.setattr(Flow, "begin", begin_on_kafka)


def does_not_claim_again(patch):
    async def reclaim(_self, life):
        life.end()

    patch.setattr(Partitions, "_reclaim", reclaim)


def sends_old_commits_after_a_rebalance(patch):
    assigned = KafkaSource.assigned

    def keeping(self, places):
        self._commit = None
        assigned(self, places)

    patch.setattr(KafkaSource, "assigned", keeping)


def looks_at_the_fence_without_a_lock(patch):
    async def writers_gone(_self, _group, _partition, *, end):
        return

    fence = pg_statements._FENCE.replace("for share of c", "")
    patch.setattr(pg_statements, "_FENCE", fence)
    patch.setattr(MemoryDatabase, "writers_gone", writers_gone)


def writes_without_a_fence(patch):
    async def live_claims(_connection, claims, _history):
        return frozenset(claims)

    patch.setattr(pgvector_store, "live_claims", live_claims)
    patch.setattr(pg_ledger, "live_claims", live_claims)
    patch.setattr(MemoryDatabase, "is_live", lambda *_: True)


def compares_epochs_by_number(patch):
    def is_live(self, claim):
        row = self.state.claims.get((claim.group, claim.partition))
        return row is not None and row.epoch == claim.epoch

    patch.setattr(MemoryDatabase, "is_live", is_live)


def sweeps_a_scope_without_waiting_for_writers(patch):
    writers_gone = MemoryDatabase.writers_gone

    async def waits_for_claims_only(self, group, partition, *, end):
        if end:
            await writers_gone(self, group, partition, end=end)

    async def wait_for_writers(_database):
        return

    patch.setattr(MemoryDatabase, "writers_gone", waits_for_claims_only)
    patch.setattr(pgvector_store, "wait_for_writers", wait_for_writers)


# ---- what is written ----


def writes_older_over_newer(patch):
    for module in (changeset, memory_store, memory_database):
        patch.setattr(module, "newer", lambda _rank, _document: True)
    for name in ("_UPDATE", "_RAISE_BARRIER"):
        statement = getattr(pg_documents, name).replace(pg_documents.NEWER, "true")
        patch.setattr(pg_documents, name, statement)


def writes_whatever_the_base_was(patch):
    applies = MemoryStore._applies

    def applies_to_any(self, change):
        row = self._database.state.documents.get(change.key)
        return applies(self, replace(change, base=row.stored if row else None))

    patch.setattr(MemoryStore, "_applies", applies_to_any)


def settles_equal_text_at_the_old_version(patch):
    upsert = changeset.upsert

    def unchanged(work, collection, base, content_hash, chunks):
        if chunks is None:
            return Unchanged()
        return upsert(work, collection, base, content_hash, chunks)

    patch.setattr(changeset, "upsert", unchanged)


def ranks_a_replay_where_it_stands_now(patch):
    patch.setattr(prepare, "_rank_by_origin", lambda _work, _base: None)
    # Else what is known of refused texts would end it before its rank is asked for.
    patch.setattr(Refusals, "asks_again", lambda _self, work: work.claimed_origin is not None)


def keeps_the_version_under_a_delete_without_one(patch):
    delete = changeset.delete

    def floor(work, collection, base):
        change = delete(work, collection, base)
        version = base.document.version if base.document else None
        if change.rank.version is not None:
            return change
        return replace(change, rank=Rank(version, change.rank.order))

    patch.setattr(changeset, "delete", floor)


def forgets_where_a_delete_without_version_stood(patch):
    delete = changeset.delete
    patch.setattr(changeset, "delete", lambda *of: replace(delete(*of), barrier=None))


def removes_the_row_of_what_is_deleted(patch):
    write = MemoryStore._write

    def purge(self, one):
        write(self, one)
        if one.change.deleted and not one.change.keeps_row:
            del self._database.state.documents[one.change.key]

    patch.setattr(MemoryStore, "_write", purge)


def shows_deleted_documents(patch):
    delete = changeset.delete

    def kept(work, collection, base):
        change = delete(work, collection, base)
        is_barrier = change.rank.version is None
        return change if is_barrier else replace(change, deleted=False, remove=())

    patch.setattr(changeset, "delete", kept)


def leaves_old_chunks(patch):
    statement = pg_documents._REMOVE_CHUNKS.replace("where", "where false and")
    patch.setattr(pg_documents, "_REMOVE_CHUNKS", statement)


def searches_every_tenant(patch):
    statement = pg_search._NEAREST.replace("where tenant = $1", "where $1::text is not null")
    patch.setattr(pg_search, "_NEAREST", statement)


# ---- the queue ----


def settles_an_older_version_before_the_newer_one(patch):
    carry, carry_together = Dispatch._carry, Dispatch._carry_together

    def settle_parked(self, work):
        for parked in work.parked:
            self._settle._end(parked, Superseded())
            self.scheduler._forget(parked)
        work.parked = []

    async def carry_alone(self, work, stumbled=None):
        settle_parked(self, work)
        await carry(self, work, stumbled)

    async def carry_with_others(self, works):
        for work in works:
            settle_parked(self, work)
        await carry_together(self, works)

    patch.setattr(Dispatch, "_carry", carry_alone)
    patch.setattr(Dispatch, "_carry_together", carry_with_others)


def queues_by_document_whatever_the_topic(patch):
    patch.setattr(scheduler, "_key", lambda work: ("", work.document_key))


# ---- the provider ----


def takes_answers_by_their_position(patch):
    ordered = embedding_wire._ordered

    def by_position(items, count):
        for index, item in enumerate(items):
            item.index = index
        return ordered(items, count)

    patch.setattr(embedding_wire, "_ordered", by_position)


def takes_answers_in_another_order(patch):
    embed = HttpEmbedder.embed

    async def reversed_answers(self, request):
        return (await embed(self, request))[::-1]

    patch.setattr(HttpEmbedder, "embed", reversed_answers)


def lets_everybody_probe(patch):
    admit, wait_seconds = Gate.admit, Gate.wait_seconds

    def admit_all(self, now):
        return Permit(self._era, is_probe=True) if self._is_probing else admit(self, now)

    def never_wait(self, now):
        return 0.0 if self._state is State.HALF_OPEN else wait_seconds(self, now)

    patch.setattr(Gate, "admit", admit_all)
    patch.setattr(Gate, "wait_seconds", never_wait)


def retries_without_a_budget(patch):
    patch.setattr(RetryBudget, "withdraw", lambda _self, _cost: True)


def blames_documents_for_an_outage(patch):
    patch.setattr(Suspicion, "failed", lambda *_: Judgement.CONVICT)


# ---- dead letters ----


def does_not_wait_until_a_dead_letter_is_there(patch):
    publish = MemoryDeadLetters.publish

    async def publish_unseen(self, letter, recorded):
        with suppress(BrokerUnavailable):
            await publish(self, letter, recorded)

    async def send_and_forget(self, *what, **headers):
        sent = await self.send(*what, **headers)
        sent.add_done_callback(lambda end: end.cancelled() or end.exception())

    patch.setattr(MemoryDeadLetters, "publish", publish_unseen)
    patch.setattr(AIOKafkaProducer, "send_and_wait", send_and_forget)


def forgets_to_publish_dead_letters(patch):
    async def publish(_self, _letter, _recorded):
        return

    patch.setattr(KafkaDeadLetters, "publish", publish)
    patch.setattr(MemoryDeadLetters, "publish", publish)
