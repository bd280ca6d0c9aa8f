"""
Which run catches which planted bug: the one list, of which `README.md` is the picture.

R1 to R20 are the bugs that have lost data in other projects, C0 to C12 the counterexamples of
the protocol. A bug is caught where each of its runs is red by its sign: the name of an anomaly,
or the line of a test that does not hold. Without a bug the same runs are green: they are
ordinary tests.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.adapters import (
    test_breaker_embedder,
    test_http_embedder,
    test_kafka_dead_letters,
    test_kafka_source,
    test_pg_search,
)
from tests.contracts.test_claims import ClaimsContract
from tests.contracts.test_source import SourceContract
from tests.contracts.test_store import StoreContract
from tests.pipeline import test_counterexamples, test_provider_policy
from tests.planted import bugs
from tests.planted.runs import (
    Run,
    alone,
    by_http,
    in_memory,
    on_a_topic,
    on_kafka,
    on_postgres,
    simulation,
    story,
)
from tests.support.universe import TOPIC, tombstone


class Caught(NamedTuple):
    """A run that a bug turns red, and by what that is recognised."""

    run: Run
    sign: str


class Planted(NamedTuple):
    """One bug; `remark` says what the row cannot."""

    number: str
    broken: str
    plant: Callable[[pytest.MonkeyPatch], None]
    caught: tuple[Caught, ...]
    remark: str = ""


def seeds(sign: str) -> Caught:
    return Caught(simulation(), sign)


def told(test: Callable[..., None], sign: str, **given: Any) -> Caught:
    return Caught(story(test, **given), sign)


_STORIES = test_counterexamples
_POLICY = test_provider_policy

TABLE = (
    Planted(
        "R1",
        "What was only read is committed.",
        bugs.commits_what_was_only_read,
        (seeds("lost:"),),
    ),
    Planted(
        "R2",
        "A work of an old claim completes its offset under the next claim.",
        bugs.takes_work_of_an_old_claim_for_its_own,
        (
            told(
                _STORIES.test_c2_a_work_of_an_old_claim_completes_nothing_under_the_next_one,
                "assert worker.counters.outcomes ==",
                seed=0,
            ),
        ),
        "The second half of C2. Nothing is lost by it alone: what it completes is a fact.",
    ),
    Planted(
        "R3",
        "Of two seeks the later offset stands, though it was the earlier seek.",
        bugs.keeps_the_later_of_two_seeks,
        (seeds("unseen:"),),
    ),
    Planted(
        "R4",
        "The committed offset is one too high.",
        bugs.commits_one_too_far,
        (seeds("lost:"),),
    ),
    Planted(
        "R5",
        "A write of progress that failed is taken for done, and Kafka is told.",
        bugs.takes_a_failed_write_of_progress_for_done,
        (seeds("kafka-ahead-of-next_offset:"),),
    ),
    Planted(
        "R6",
        "The client commits by itself what was polled.",
        bugs.lets_the_client_commit,
        (
            Caught(
                on_kafka(
                    SourceContract.test_what_was_polled_is_not_committed_by_itself,
                    SourceContract,
                ),
                "assert await successor.source.committed(world.partition()) is None",
            ),
        ),
    ),
    Planted(
        "R7",
        "An offset that is completed completes all that stand below it.",
        bugs.completes_all_that_is_below,
        (seeds("settled-in-flight:"),),
    ),
    Planted(
        "R8",
        "Each assignment starts at the end of the log.",
        bugs.starts_at_the_end_of_the_log,
        (seeds("lost:"),),
        "The worker seeks itself, so no reset of the client's could do it.",
    ),
    Planted(
        "R9",
        "A commit that waits over a rebalance is sent with the new generation.",
        bugs.sends_old_commits_after_a_rebalance,
        (
            Caught(
                on_kafka(
                    test_kafka_source.test_a_commit_that_waits_over_a_rebalance_is_never_sent
                ),
                "DID NOT RAISE",
            ),
        ),
        "It only rewinds: what it says is a fact.",
    ),
    Planted(
        "R10",
        "Nobody waits until the dead-letter topic has acknowledged a letter.",
        bugs.does_not_wait_until_a_dead_letter_is_there,
        (
            seeds("dlq-missing:"),
            Caught(
                on_a_topic(
                    test_kafka_dead_letters.test_a_letter_that_the_topic_does_not_acknowledge_is_not_published
                ),
                "DID NOT RAISE",
            ),
        ),
    ),
    Planted(
        "R11",
        "Documents are blamed for an outage, and become dead letters.",
        bugs.blames_documents_for_an_outage,
        (
            seeds("dlq-extra:"),
            told(
                _POLICY.test_an_answer_to_others_before_its_first_failure_blames_no_document_for_an_outage,
                "assert universe.letters.letters == []",
            ),
        ),
    ),
    Planted(
        "R12",
        "No version guard: an older record overwrites a newer one.",
        bugs.writes_older_over_newer,
        (seeds("stale-overwrite:"),),
        "The same bug as C0.",
    ),
    Planted(
        "R13",
        "A delete removes the row and leaves no tombstone.",
        bugs.removes_the_row_of_what_is_deleted,
        (
            seeds("lost:"),
            Caught(
                in_memory(
                    StoreContract,
                    StoreContract.test_a_delete_of_what_was_never_stored_keeps_older_upserts_out,
                ),
                "is BASE_CHANGED",
            ),
        ),
        "Nothing purges tombstones, so it is planted where they are written.",
    ),
    Planted(
        "R14",
        "The fence is looked at without a lock, as in a transaction of its own.",
        bugs.looks_at_the_fence_without_a_lock,
        (
            Caught(
                in_memory(
                    ClaimsContract,
                    ClaimsContract.test_a_claim_waits_for_the_writers_of_the_old_one,
                ),
                "assert not task.done()",
            ),
            Caught(
                on_postgres(
                    ClaimsContract.test_a_claim_waits_for_the_writers_of_the_old_one,
                    ClaimsContract,
                ),
                "assert not task.done()",
            ),
        ),
    ),
    Planted(
        "R15",
        "Vectors of an answer are taken by their position and not by their index.",
        bugs.takes_answers_by_their_position,
        (
            Caught(
                by_http(
                    test_http_embedder.TestAnswers.test_an_answer_in_any_order_is_put_in_order
                ),
                'expected("one", "two", "three")',
            ),
        ),
    ),
    Planted(
        "R16",
        "A document's records of two topics share one queue.",
        bugs.queues_by_document_whatever_the_topic,
        (
            told(
                _STORIES.test_c6_a_change_set_of_a_row_that_moved_is_made_anew_and_never_torn,
                "unseen:",
                seed=0,
                topics=(TOPIC, "other"),
                workers=1,
            ),
        ),
        "Works of two claims are never parked under each other, so it only holds one up.",
    ),
    Planted(
        "R17",
        "Offsets that hold no record are waited for.",
        bugs.waits_for_offsets_that_hold_nothing,
        (seeds("unseen:"),),
    ),
    Planted(
        "R18",
        "While a breaker is half open, everybody is let through.",
        bugs.lets_everybody_probe,
        (
            Caught(
                alone(test_breaker_embedder.test_of_fifty_callers_one_is_the_probe),
                "assert world.memory.running == 1",
            ),
        ),
    ),
    Planted(
        "R19",
        "Retries draw on no budget.",
        bugs.retries_without_a_budget,
        (
            told(
                _POLICY.test_what_fails_first_spends_the_budget_of_retries_and_everybody_else_waits_for_long,
                "<= universe.embedder.requests <=",
            ),
        ),
    ),
    Planted(
        "R20",
        "A search is answered with the chunks of all tenants.",
        bugs.searches_every_tenant,
        (
            Caught(
                on_postgres(test_pg_search.test_a_tenant_finds_nothing_of_another_one),
                'assert [hit.content for hit in hits] == ["mine"]',
            ),
        ),
        "Listed as row-level security that is not FORCEd, which cannot be planted: there is"
        " none. In its place the tenant stands first in every key and in every query.",
    ),
    Planted(
        "C0",
        "No version guard: what is delivered again after a crash overwrites newer.",
        bugs.writes_older_over_newer,
        (
            told(
                _STORIES.test_c0_what_is_delivered_again_after_a_crash_is_never_written_over_newer,
                "stale-overwrite:",
                seed=0,
            ),
        ),
        "The same bug as R12.",
    ),
    Planted(
        "C1",
        "An older version is settled before the newer one that it waits under.",
        bugs.settles_an_older_version_before_the_newer_one,
        (
            told(
                _STORIES.test_c1_an_older_version_outlives_the_crash_of_the_worker_that_had_it_waiting,
                "lost:",
                seed=0,
            ),
            seeds("lost:"),
        ),
        "On a fleet the oracle calls it `coalesced-into-dead-letter`.",
    ),
    Planted(
        "C2",
        "What was fenced or released completes its offset.",
        bugs.completes_what_was_released,
        (seeds("lost:"),),
        "By a drain: a fenced claim may not save its progress, which is a wall of its own.",
    ),
    Planted(
        "C3",
        "Where nothing is in flight, the position of the client is committed.",
        bugs.commits_the_position_when_nothing_is_in_flight,
        (
            told(
                _STORIES.test_c3_a_commit_between_poll_and_track_does_not_pass_what_was_polled,
                "lost:",
                seed=0,
            ),
        ),
    ),
    Planted(
        "C4",
        "A partition starts at Kafka's offset, also where the table knows less.",
        bugs.starts_at_kafka_s_offset,
        (
            told(
                _STORIES.test_c4_workers_that_start_on_a_restored_database_fill_it_again,
                "unseen:",
                seed=0,
            ),
        ),
    ),
    Planted(
        "C5",
        "A newer version with equal text leaves the row at the older version.",
        bugs.settles_equal_text_at_the_old_version,
        (
            told(
                _STORIES.test_c5_a_newer_version_with_equal_text_keeps_an_older_one_of_elsewhere_out,
                "lost:",
                seed=0,
            ),
            seeds("lost:"),
        ),
    ),
    Planted(
        "C6",
        "A change set is written whatever the row has become meanwhile.",
        bugs.writes_whatever_the_base_was,
        (
            told(
                _STORIES.test_c6_a_change_set_of_a_row_that_moved_is_made_anew_and_never_torn,
                "torn:",
                seed=0,
                topics=(TOPIC, "other"),
                workers=1,
            ),
        ),
    ),
    Planted(
        "C7",
        "A replayed dead letter is ranked by where it stands now.",
        bugs.ranks_a_replay_where_it_stands_now,
        (
            told(
                _STORIES.test_c7_a_replay_stands_where_the_letter_first_stood_and_not_over_what_came_after,
                'assert universe.text() == "Y"',
                seed=0,
            ),
        ),
    ),
    Planted(
        "C8",
        "A delete without a version keeps the version that it has deleted.",
        bugs.keeps_the_version_under_a_delete_without_one,
        (
            told(
                _STORIES.test_c8_a_delete_without_a_version_has_one_meaning_whatever_the_timing,
                "torn:",
                seed=0,
                timing="at once",
            ),
        ),
    ),
    Planted(
        "C9",
        "The row does not know where a delete without a version stood.",
        bugs.forgets_where_a_delete_without_version_stood,
        (
            told(
                _STORIES.test_c9_a_replay_does_not_bring_back_what_was_deleted_after_it,
                "lost:",
                seed=0,
                last_word=tombstone("a"),
            ),
        ),
    ),
    Planted(
        "C10",
        "A partition that was fenced by a late claim is not claimed again.",
        bugs.does_not_claim_again,
        (
            told(
                _STORIES.test_c10_an_idle_owner_notices_a_late_claim_too,
                "unseen:",
                seed=0,
            ),
            seeds("unseen:"),
        ),
    ),
    Planted(
        "C11",
        "A scope is swept without waiting for those who write already.",
        bugs.sweeps_a_scope_without_waiting_for_writers,
        (
            Caught(
                in_memory(
                    StoreContract,
                    StoreContract.test_a_scope_delete_waits_for_those_who_write_already,
                ),
                "assert not task.done()",
            ),
            Caught(
                on_postgres(
                    StoreContract.test_a_scope_delete_waits_for_those_who_write_already,
                    StoreContract,
                ),
                "assert not task.done()",
            ),
        ),
    ),
    Planted(
        "C12",
        "A claim is known by its epoch's number alone.",
        bugs.compares_epochs_by_number,
        (
            told(
                _STORIES.test_c12_an_epoch_that_comes_again_after_a_restore_does_not_let_a_frozen_worker_write,
                "unseen:",
                seed=0,
            ),
        ),
        "The base check keeps the frozen worker from writing; that it is never fenced is seen.",
    ),
)

ON_A_FLEET = {
    bugs.commits_what_was_only_read: {"watermark-skip"},
    bugs.writes_older_over_newer: {"stale-overwrite"},
    bugs.writes_without_a_fence: {"zombie-write"},
    bugs.leaves_old_chunks: {"torn", "orphan"},
    bugs.takes_answers_in_another_order: {"wrong-vector"},
    bugs.forgets_to_publish_dead_letters: {"dlq-missing"},
    bugs.reads_aborted_transactions: {"aborted-read"},
    bugs.tells_kafka_first: {"ahead-of-store"},
    bugs.shows_deleted_documents: {"resurrected"},
}
"""What the oracle must find on real workers: one of these anomalies at least."""
