-- migrate:up
create extension if not exists vector with schema public;

-- Names compare byte by byte (collate "C"): PostgreSQL then sorts and ranks as the workers do.

create table collection (
    id int generated always as identity primary key,
    name text collate "C" not null unique check (name ~ '^[a-z][a-z0-9_-]{0,47}$'),
    model text not null,
    embedding_space text not null,
    dimensions int not null check (dimensions > 0),
    storage text not null check (storage in ('halfvec', 'vector')),
    metric text not null check (metric in ('cosine', 'l2', 'inner_product')),
    chunking jsonb not null,
    generation int not null default 1,
    created_at timestamptz not null default now()
);
comment on table collection is 'Collections of documents: one embedding model and one way of chunking each. The chunks are in chunk_<id>_<generation>, readers use the view "<name>_chunks".';
comment on column collection.id is 'Names the chunk tables.';
comment on column collection.name is 'As in the events.';
comment on column collection.model is 'Embedding model, as its provider calls it.';
comment on column collection.embedding_space is 'What vectors must have in common to be compared; empty: the model alone decides.';
comment on column collection.dimensions is 'Length of the vectors.';
comment on column collection.storage is 'Type of the embedding column: halfvec (2 bytes a dimension) or vector (4 bytes).';
comment on column collection.metric is 'Distance that the index serves: cosine (<=>), l2 (<->) or inner_product (<#>).';
comment on column collection.chunking is 'How texts are split: strategy, size and overlap in characters.';
comment on column collection.generation is 'The chunk table that workers write and the view reads.';
comment on column collection.created_at is 'When it was created.';

create table document (
    tenant text collate "C" not null,
    collection text collate "C" not null,
    id text collate "C" not null,
    version bigint check (version >= 0),
    order_topic text collate "C" not null,
    order_partition int not null,
    order_offset bigint not null,
    order_timestamp_ms bigint not null,
    order_incarnation int not null,
    barrier_topic text collate "C",
    barrier_partition int,
    barrier_offset bigint,
    barrier_timestamp_ms bigint,
    barrier_incarnation int,
    revision bigint not null check (revision > 0),
    deleted boolean not null,
    content_hash bytea,
    content_type text,
    metadata jsonb,
    trace_id text,
    occurred_at timestamptz,
    stored_at timestamptz not null default now(),
    primary key (tenant, collection, id),
    check (num_nulls(barrier_topic, barrier_partition, barrier_offset, barrier_timestamp_ms, barrier_incarnation) in (0, 5)),
    check (version is not null or deleted)
) with (fillfactor = 70);
comment on table document is 'One row a document, also of a deleted one. Written by workers only, by compare-and-set on revision; fillfactor 70 keeps updates HOT.';
comment on column document.tenant is 'Whose document it is.';
comment on column document.collection is 'Name of its collection.';
comment on column document.id is 'Its id in the source of truth.';
comment on column document.version is 'Version of the last record that counted; null: a delete without a version.';
comment on column document.order_topic is 'Where the record of this version stands in the log: topic.';
comment on column document.order_partition is 'Where the record of this version stands in the log: partition.';
comment on column document.order_offset is 'Where the record of this version stands in the log: offset. Of a replayed dead letter, the first one.';
comment on column document.order_timestamp_ms is 'Timestamp of that record, in milliseconds since 1970; decides between partitions.';
comment on column document.order_incarnation is 'Which topic of that name: raised when a topic is created again.';
comment on column document.barrier_topic is 'Topic of the latest delete without a version, whatever came after it; null: there was none.';
comment on column document.barrier_partition is 'Partition of that delete.';
comment on column document.barrier_offset is 'Offset of that delete; records before it never count.';
comment on column document.barrier_timestamp_ms is 'Timestamp of that delete.';
comment on column document.barrier_incarnation is 'Topic incarnation of that delete.';
comment on column document.revision is 'Raised by every write of this row; a change set applies only to the revision it was computed from.';
comment on column document.deleted is 'A tombstone: the document is gone, its row guards against older records.';
comment on column document.content_hash is 'Hash of text and chunking: equal means that no chunk changes.';
comment on column document.content_type is 'Media type of the text, as published.';
comment on column document.metadata is 'Metadata as published.';
comment on column document.trace_id is 'W3C trace id of the record.';
comment on column document.occurred_at is 'When the change happened, as published.';
comment on column document.stored_at is 'When this row was last written.';

create table scope_tombstone (
    tenant text collate "C" not null,
    collection text collate "C" not null default '',
    version bigint not null,
    order_topic text collate "C" not null,
    order_partition int not null,
    order_offset bigint not null,
    order_timestamp_ms bigint not null,
    order_incarnation int not null,
    created_at timestamptz not null default now(),
    primary key (tenant, collection)
);
comment on table scope_tombstone is 'Deletes of a whole tenant, or of its part of a collection: they reach every document whose version is not higher.';
comment on column scope_tombstone.tenant is 'Whose documents.';
comment on column scope_tombstone.collection is 'Name of the collection; empty: all collections.';
comment on column scope_tombstone.version is 'The highest version that is deleted.';
comment on column scope_tombstone.order_topic is 'Where the record stands in the log: topic.';
comment on column scope_tombstone.order_partition is 'Where the record stands in the log: partition.';
comment on column scope_tombstone.order_offset is 'Where the record stands in the log: offset.';
comment on column scope_tombstone.order_timestamp_ms is 'Timestamp of the record, in milliseconds since 1970.';
comment on column scope_tombstone.order_incarnation is 'Topic incarnation of the record.';
comment on column scope_tombstone.created_at is 'When it was stored.';

create table partition_claim (
    grp text collate "C" not null,
    topic text collate "C" not null,
    partition int not null,
    epoch bigint not null,
    claim_id uuid not null,
    owner text not null,
    incarnation int not null default 0,
    claimed_at timestamptz not null default now(),
    primary key (grp, topic, partition)
);
comment on table partition_claim is 'Who may write for a partition: every write locks its row in share mode and compares (epoch, claim_id).';
comment on column partition_claim.grp is 'Consumer group.';
comment on column partition_claim.topic is 'Topic.';
comment on column partition_claim.partition is 'Partition.';
comment on column partition_claim.epoch is 'Raised by every claim.';
comment on column partition_claim.claim_id is 'New for every claim: tells it from one of the same epoch before a restore.';
comment on column partition_claim.owner is 'The worker that claimed it, for people.';
comment on column partition_claim.incarnation is 'Which topic of that name the progress is about.';
comment on column partition_claim.claimed_at is 'When it was claimed.';

-- Not in partition_claim: a share lock there would block every update of next_offset.
create table partition_progress (
    grp text collate "C" not null,
    topic text collate "C" not null,
    partition int not null,
    next_offset bigint not null,
    landmark_offset bigint,
    landmark_timestamp_ms bigint,
    landmark_key_hash bytea,
    updated_at timestamptz not null default now(),
    primary key (grp, topic, partition),
    check (num_nulls(landmark_offset, landmark_timestamp_ms, landmark_key_hash) in (0, 3))
);
comment on table partition_progress is 'How far a partition is done. Kafka is told what stands here, never more.';
comment on column partition_progress.grp is 'Consumer group.';
comment on column partition_progress.topic is 'Topic.';
comment on column partition_progress.partition is 'Partition.';
comment on column partition_progress.next_offset is 'Every record below it is stored, superseded or in the ledger of dead letters.';
comment on column partition_progress.landmark_offset is 'A settled record by which the topic is recognised: its offset.';
comment on column partition_progress.landmark_timestamp_ms is 'Timestamp of that record.';
comment on column partition_progress.landmark_key_hash is 'Hash of the key of that record.';
comment on column partition_progress.updated_at is 'When it was last raised or set.';

create table dead_letter (
    grp text collate "C" not null,
    topic text collate "C" not null,
    partition int not null,
    incarnation int not null,
    "offset" bigint not null,
    timestamp_ms bigint not null,
    state text not null default 'pending' check (state in ('pending', 'published', 'replayed', 'discarded', 'resolved')),
    reason text not null,
    stage text not null,
    detail text not null,
    tenant text collate "C",
    collection text collate "C",
    document_id text collate "C",
    version bigint,
    origin_topic text collate "C",
    origin_partition int,
    origin_offset bigint,
    origin_timestamp_ms bigint,
    origin_incarnation int,
    traceparent text,
    passes int not null,
    attempts int not null default 1,
    first_seen timestamptz not null default now(),
    last_seen timestamptz not null default now(),
    primary key (grp, topic, partition, incarnation, "offset"),
    check (num_nulls(origin_topic, origin_partition, origin_offset, origin_timestamp_ms, origin_incarnation) in (0, 5))
);
comment on table dead_letter is 'Ledger of records that could not pass: the truth for replay. The records themselves are in the dead-letter topic.';
comment on column dead_letter.grp is 'Consumer group.';
comment on column dead_letter.topic is 'Topic of the record.';
comment on column dead_letter.partition is 'Partition of the record.';
comment on column dead_letter.incarnation is 'Topic incarnation of the record.';
comment on column dead_letter."offset" is 'Offset of the record.';
comment on column dead_letter.timestamp_ms is 'Timestamp of the record, in milliseconds since 1970.';
comment on column dead_letter.state is 'pending: the dead-letter topic has not acknowledged it yet; published: it has; replayed, discarded, resolved: what an operator did.';
comment on column dead_letter.reason is 'Stable code of why it cannot pass.';
comment on column dead_letter.stage is 'Stage of the worker in which it failed.';
comment on column dead_letter.detail is 'What was wrong, for people; holds no secret and no text of the document.';
comment on column dead_letter.tenant is 'Whose document, where known.';
comment on column dead_letter.collection is 'Name of its collection, where known.';
comment on column dead_letter.document_id is 'Its id, where known.';
comment on column dead_letter.version is 'Version of the record, where it has one.';
comment on column dead_letter.origin_topic is 'Of a replayed record that failed again: where it stood first; topic.';
comment on column dead_letter.origin_partition is 'Partition of the origin.';
comment on column dead_letter.origin_offset is 'Offset of the origin.';
comment on column dead_letter.origin_timestamp_ms is 'Timestamp of the origin.';
comment on column dead_letter.origin_incarnation is 'Topic incarnation of the origin.';
comment on column dead_letter.traceparent is 'W3C trace context of the record.';
comment on column dead_letter.passes is 'How often it was queued again before.';
comment on column dead_letter.attempts is 'How often it was recorded here: more than once after a crash or a rewind.';
comment on column dead_letter.first_seen is 'When it was recorded first.';
comment on column dead_letter.last_seen is 'When it was recorded last.';

-- migrate:down
do $$
declare
    doomed record;
begin
    for doomed in select id, name, generation from collection loop
        execute format('drop view if exists %I', doomed.name || '_chunks');
        execute format('drop table if exists %I', 'chunk_' || doomed.id || '_' || doomed.generation);
    end loop;
end
$$;
drop table dead_letter, partition_progress, partition_claim, scope_tombstone, document, collection;
