-- migrate:up
-- Keys of chunks stay in the row, whatever is stored out of line: they are read all the time.
-- Rows that are there stay as they are until they are written again.
do $$
declare
    chunks text;
begin
    for chunks in select format('chunk_%s_%s', id, generation) from collection order by id loop
        execute format(
            'alter table if exists %I alter column tenant set storage plain, alter column id set storage plain,'
            ' alter column chunk_hash set storage plain, set (toast_tuple_target = 256)',
            chunks
        );
    end loop;
end $$;

-- migrate:down
do $$
declare
    chunks text;
begin
    for chunks in select format('chunk_%s_%s', id, generation) from collection order by id loop
        execute format(
            'alter table if exists %I alter column tenant set storage extended, alter column id set storage extended,'
            ' alter column chunk_hash set storage extended, set (toast_tuple_target = 128)',
            chunks
        );
    end loop;
end $$;
