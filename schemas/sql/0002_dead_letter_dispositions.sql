-- migrate:up
-- The fingerprint is computed here, so that the path of a letter into the ledger does not
-- depend on it, and rows of before have one too. Words with a digit are numbers, ids and hex;
-- collate "C" makes them the same in every database. Not md5(): a server in FIPS mode has none.
alter table dead_letter
    add column record_key bytea,
    add column replays int not null default 0 check (replays >= 0),
    add column state_changed_at timestamptz,
    add column fingerprint text not null generated always as (
        lpad(to_hex(hashtextextended(
            reason || E'\n' || stage || E'\n' || regexp_replace(
                detail collate "C", '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\w*\d\w*', '#', 'gi'
            ), 0
        )), 16, '0')
    ) stored,
    drop constraint dead_letter_state_check,
    add constraint dead_letter_state_check check (
        state in ('pending', 'published', 'parked', 'replayed', 'discarded', 'resolved')
    );
comment on column dead_letter.record_key is 'Key of the record, where it is not longer than a key of ours can be.';
comment on column dead_letter.replays is 'How often the record was replayed, counted along a chain of replays.';
comment on column dead_letter.state_changed_at is 'When it was replayed, parked, discarded or resolved; null: never.';
comment on column dead_letter.fingerprint is 'Hash of reason, stage and detail without numbers and ids: letters of one cause have one.';
comment on column dead_letter.state is 'pending: the dead-letter topic has not acknowledged it yet; published: it has; replayed: sent to its topic again; parked: replayed too often; discarded: given up by an operator; resolved: a row at or above its rank is stored.';

create index dead_letter_listed on dead_letter (grp, state, first_seen);
-- Asked by every write transaction, so it holds only what a success can resolve.
create index dead_letter_resolvable on dead_letter (tenant, collection, document_id)
    where document_id is not null and state in ('published', 'parked', 'replayed');

-- migrate:down
drop index dead_letter_resolvable, dead_letter_listed;
update dead_letter set state = 'published' where state = 'parked';
alter table dead_letter
    drop constraint dead_letter_state_check,
    add constraint dead_letter_state_check check (
        state in ('pending', 'published', 'replayed', 'discarded', 'resolved')
    ),
    drop column fingerprint, drop column state_changed_at, drop column replays, drop column record_key;
