-- migrate:up
alter table collection
    add column index_kind text not null default 'hnsw' check (index_kind in ('hnsw', 'ivfflat', 'none')),
    add column index_m int not null default 16 check (index_m between 2 and 100),
    add column index_ef_construction int not null default 64 check (
        index_ef_construction between 4 and 1000 and index_ef_construction >= 2 * index_m
    ),
    add column index_lists int check (index_lists between 1 and 32768),
    add column index_build_at_rows bigint not null default 0 check (index_build_at_rows >= 0),
    add column index_rows_per_second double precision check (index_rows_per_second > 0);
comment on column collection.index_kind is 'Which vector index it should have: hnsw, ivfflat, or none, where every search compares all rows.';
comment on column collection.index_m is 'HNSW: to how many neighbours a row is linked.';
comment on column collection.index_ef_construction is 'HNSW: how many candidates are looked at to find them.';
comment on column collection.index_lists is 'IVFFlat: into how many lists the rows are divided; null: by their number when it is built.';
comment on column collection.index_build_at_rows is 'From how many chunks on it should have the index; 0: always.';
comment on column collection.index_rows_per_second is 'How fast the index was built last, in chunks; null: it was not built yet, or by hand.';
-- Collections of before have an index, or were created without one.
update collection set index_kind = 'none'
where to_regclass(format('chunk_%s_%s_embedding', id, generation)) is null;

-- migrate:down
alter table collection
    drop column index_kind, drop column index_m, drop column index_ef_construction,
    drop column index_lists, drop column index_build_at_rows, drop column index_rows_per_second;
