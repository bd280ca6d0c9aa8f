-- migrate:up
alter table partition_progress add column topic_id uuid;
comment on column partition_progress.topic_id is 'Id of the topic that this was read from, where the broker tells it: a topic that is created again has another one.';

-- migrate:down
alter table partition_progress drop column topic_id;
