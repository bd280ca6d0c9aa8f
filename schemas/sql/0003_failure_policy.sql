-- migrate:up
alter table dead_letter
    add column provider_status int,
    add column provider_request_id text,
    add column sqlstate text,
    add column constraint_name text;
comment on column dead_letter.provider_status is 'HTTP status of the provider''s last answer about it; null: it was not the provider.';
comment on column dead_letter.provider_request_id is 'By what the provider finds that request in its own logs.';
comment on column dead_letter.sqlstate is 'SQLSTATE of the error of PostgreSQL; null: it was not PostgreSQL.';
comment on column dead_letter.constraint_name is 'The constraint that the values broke.';

create table poison_chunk (
    tenant text collate "C" not null,
    model text collate "C" not null,
    chunk_hash bytea not null,
    reason text not null,
    detail text not null,
    seen_at timestamptz not null default now(),
    primary key (tenant, model, chunk_hash)
);
comment on table poison_chunk is 'Chunks that the embedding provider refused for their text: they are not asked for again until text or model change, or a dead letter with them is replayed.';
comment on column poison_chunk.tenant is 'Whose document.';
comment on column poison_chunk.model is 'Embedding model that refused it.';
comment on column poison_chunk.chunk_hash is 'Hash of the chunk''s text.';
comment on column poison_chunk.reason is 'Reason code of its dead letters.';
comment on column poison_chunk.detail is 'What the provider said, without prose.';
comment on column poison_chunk.seen_at is 'When it was refused last.';

create table partition_crash (
    grp text collate "C" not null,
    topic text collate "C" not null,
    partition int not null,
    claim_id uuid not null,
    owner text not null,
    history text not null,
    ended boolean not null default false,
    start_offset bigint not null,
    unclean_ends int not null default 0,
    alone_offset bigint,
    alone_fetching boolean not null default false,
    suspect_offset bigint,
    suspect_fetching boolean not null default false,
    suspect_ends int not null default 0,
    given_up int not null default 0,
    updated_at timestamptz not null default now(),
    primary key (grp, topic, partition)
);
comment on table partition_crash is 'Crash ledger: how the owners of a partition ended, to find a record after which the process dies.';
comment on column partition_crash.grp is 'Consumer group.';
comment on column partition_crash.topic is 'Topic.';
comment on column partition_crash.partition is 'Partition.';
comment on column partition_crash.claim_id is 'The claim that runs, or ran last.';
comment on column partition_crash.owner is 'The process that took it.';
comment on column partition_crash.history is 'The server''s history at that claim: an entry of another one may have been restored, and says nothing.';
comment on column partition_crash.ended is 'It was given back in order; false at the next claim of another process: an unclean end.';
comment on column partition_crash.start_offset is 'Where that claim began.';
comment on column partition_crash.unclean_ends is 'Unclean ends in a row after which the partition began at start_offset; from two on it runs one record at a time.';
comment on column partition_crash.alone_offset is 'The record that the owner is busy with now; null: none, or it waits for something.';
comment on column partition_crash.alone_fetching is 'It is being fetched, and has not been seen yet.';
comment on column partition_crash.suspect_offset is 'The record that the owner was busy with at the last unclean end.';
comment on column partition_crash.suspect_fetching is 'It was being fetched then.';
comment on column partition_crash.suspect_ends is 'At how many unclean ends in a row it was; at two it is dead-lettered.';
comment on column partition_crash.given_up is 'Records in a row that were given up; at three nothing more is before one has passed.';
comment on column partition_crash.updated_at is 'When this row was last written.';

create table partition_hold (
    grp text collate "C" not null,
    topic text collate "C" not null,
    partition int not null,
    problem text not null,
    held_at timestamptz not null default now(),
    resumed_at timestamptz,
    primary key (grp, topic, partition)
);
comment on table partition_hold is 'Partitions that are held because too many of their records would be dead letters.';
comment on column partition_hold.grp is 'Consumer group.';
comment on column partition_hold.topic is 'Topic.';
comment on column partition_hold.partition is 'Partition.';
comment on column partition_hold.problem is 'Why, in words.';
comment on column partition_hold.held_at is 'Since when.';
comment on column partition_hold.resumed_at is 'When an operator said that it should go on; its owner reads it.';

-- migrate:down
drop table partition_hold, partition_crash, poison_chunk;
alter table dead_letter
    drop column provider_status, drop column provider_request_id,
    drop column sqlstate, drop column constraint_name;
