-------------------------------- MODULE Fleet --------------------------------
(* The protocol as it is built: a group of workers, the log, PostgreSQL, the dead letters.  *)
(*                                                                                          *)
(* An action is named as the function that it stands for; the file is said above it. What a *)
(* worker does between two waits is one step, and so is a transaction, but for those that   *)
(* hold locks while others go on. A frozen worker needs no state: it is one that takes no   *)
(* step while the group moves on. The constants of the first block are the mechanisms, with *)
(* the value that is built first; those of the second bound what goes wrong.                *)
EXTENDS Integers, Sequences, TLC, Logs

CONSTANTS
  Fence,        \* "share": checked under a lock held to COMMIT | "plain": no lock | "none"
  Guard,        \* TRUE: prepare and the WHERE of every write refuse what is not newer
  BaseCheck,    \* "exact": revision, version and order | "revision" | "blind"
  ClaimEach,    \* TRUE: every assignment takes a claim of its own | FALSE: a new owner only
  ClaimIds,     \* TRUE: the fence compares claim ids beside epochs
  Histories,    \* TRUE: the fence compares the server's history
  Reclaim,      \* TRUE: what is fenced and still assigned is claimed again
  Parking,      \* "position": under one that beats it by version and position | "version" | "early": settled at once
  ReleasesParked,  \* TRUE: a released work releases what is parked under it
  ReleasedKeeps,   \* TRUE: what is released or fenced completes nothing
  TrackerDies,  \* TRUE: a tracker counts the works of its own claim only
  Tracking,     \* "batch": tracked in the step of the poll | "late": the position runs ahead
  TableFirst,   \* TRUE: Kafka is told what the table has returned | FALSE: what the worker knows
  SaveUpdates,  \* TRUE: progress is saved in a row that a start has written, and makes none
  SaveFenced,   \* TRUE: progress is saved under the newest claim only
  StartAt,      \* "min": the smaller of Kafka's offset and the table's | "kafka"
  SecondLook,   \* TRUE: the table is read again where Kafka is ahead
  WriteBack,    \* TRUE: the start is written back as next_offset
  LedgerFirst,  \* TRUE: a pending row under the fence stands before the letter
  AckFirst,     \* TRUE: a letter is marked after its acknowledgement only
  MarkFirst,    \* TRUE: an offset completes after its letter is marked
  MarkNames,    \* "letter": the mark names its letter's incarnation | "claim": that of the claim's row
  Vouched,      \* "ledger": an origin counts if the ledger has it | "never" | "always"
  Bump,         \* TRUE: the same content under a newer version still raises the row
  HoldAnew,     \* TRUE: a partition held in a flood is claimed anew
  Landmarks,    \* TRUE: a settled record is compared with the log at the claim
  TopicIds,     \* "run": the broker's id of the topic is compared at the claim and while it runs | "claim" | "none"
  Incarnations, \* TRUE: orders carry the incarnation of the topic
  WordFences,   \* TRUE: the operator's word about a topic begins a new epoch
  WordForgets,  \* TRUE: and forgets its progress
  ScopeBarrier, \* TRUE: a scope delete waits for open writers before it sweeps
  ScopeChecked, \* TRUE: every write checks the scopes
  Purging       \* "safe": a tombstone outlives all that may be read or replayed | "young"

CONSTANTS
  Workers, MaxRebalances, MaxFaults, MaxCrashes, MaxHolds, MaxReplays, MaxRewinds,
  Restores,     \* 0, 1: the database is put back to an earlier state
  Recreates,    \* "never" | the topic is made again, "stopped": its workers stopped, a landmark saved
                \* | "early": no landmark yet | "running": under running workers
  Drains,       \* TRUE: a revoked partition is drained before it ends
  Trims         \* TRUE: retention removes what is done, and old tombstones are purged

VARIABLES
  log, inc, first,             \* the topic: its records, which creation it is, where it begins
  committed, late,             \* the group's offsets; a commit that was given up and may still land
  owner, seen, rebalances,     \* the group's assignment, and who has heard of it
  table, history, backup,      \* PostgreSQL
  open, saving,                \* transactions and statements that are under way there
  dlq,                         \* the dead-letter topic
  lives, queue, tasks,         \* the workers
  counts, claimIds,            \* the bounds; claim ids are never used twice
  ghost                        \* what only the invariants read
broker == <<log, inc, first, committed, late>>
group  == <<owner, seen, rebalances>>
server == <<table, history, backup>>
worker == <<lives, queue, tasks>>
vars   == <<broker, group, server, open, saving, dlq, worker, counts, claimIds, ghost>>

Max(x, y) == IF x > y THEN x ELSE y
Min(x, y) == IF x < y THEN x ELSE y
Least(set) == CHOOSE x \in set : \A y \in set : x <= y
None       == -1
Partitions == 0..Len(Logs[1]) - 1
Sides      == {1, 2}
Records    == UNION {{Logs[s][p + 1][n] : n \in DOMAIN Logs[s][p + 1]} : s \in Sides, p \in Partitions}
Keys       == {record.k : record \in Records}
Documents  == Keys \ {"scope"}
End(p)     == Len(log[p])
Record(p, o) == log[p][o + 1]

NoClaim == [e |-> 0, id |-> 0, h |-> 0, inc |-> 0, w |-> "nobody"]
NoMark  == [o |-> None, inc |-> None]
NoLife  == [ph |-> "none", c |-> NoClaim, nx |-> 0, fly |-> {}, hand |-> {}, mark |-> NoMark, id |-> None, tell |-> None]

Init ==
  /\ log = [p \in Partitions |-> Logs[1][p + 1]] /\ inc = 0 /\ first = [p \in Partitions |-> 0]
  /\ committed = [p \in Partitions |-> None] /\ late = <<>>
  /\ owner = [p \in Partitions |-> "nobody"] /\ seen = [w \in Workers |-> TRUE] /\ rebalances = 0
  /\ table = [claims |-> [p \in Partitions |-> NoClaim], next |-> [p \in Partitions |-> None],
              mark |-> [p \in Partitions |-> NoMark], id |-> [p \in Partitions |-> None], row |-> [k \in Documents |-> Absent],
              chunks |-> [k \in Documents |-> {}], letters |-> <<>>, scope |-> None,
              graves |-> [k \in Documents |-> {}]]
  /\ history = 0 /\ backup = <<>> /\ open = {} /\ saving = {} /\ dlq = {}
  /\ lives = [w \in Workers |-> [p \in Partitions |-> NoLife]]
  /\ queue = [w \in Workers |-> [k \in Keys |-> <<>>]] /\ tasks = [w \in Workers |-> {}]
  /\ counts = [faults |-> 0, crashes |-> 0, holds |-> 0, replays |-> 0, rewinds |-> 0]
  /\ claimIds = 0
  /\ ghost = [zombie |-> FALSE, alarm |-> "none", high |-> [p \in Partitions |-> None],
              lowered |-> [p \in Partitions |-> FALSE]]

May(what, most) == counts[what] < most /\ counts' = [counts EXCEPT ![what] = @ + 1]
Fault == May("faults", MaxFaults)

\* ---- the ranks of works: pipeline/decode.py, prepare._rank_by_origin ----
Place(work) == <<work.p, work.o, work.c.inc>>
Known(place) == place \in DOMAIN table.letters
Order(work) == [p |-> work.p, o |-> work.o, ts |-> work.rec.ts, inc |-> IF Incarnations THEN work.c.inc ELSE 0]
Trusts(work) ==
  LET org == work.rec.org IN
  /\ org # Nowhere /\ IsAfter(Order(work), org)
  /\ CASE Vouched = "ledger" -> Known(<<org.p, org.o, org.inc>>)
       [] Vouched = "never"  -> FALSE
       [] Vouched = "always" -> TRUE
Rank(work) == [v |-> work.rec.v, ord |-> IF Trusts(work) THEN work.rec.org ELSE Order(work)]
ReachedBy(scope, v) == scope # None /\ v # NoVersion /\ v <= scope
Reached(v) == ReachedBy(table.scope, v)

\* ---- the fence: pg_statements.live_claims ----
IsLive(p, claim) ==
  LET newest == table.claims[p] IN
  /\ newest.e = claim.e /\ (ClaimIds => newest.id = claim.id) /\ (Histories => history = claim.h)
Passes(p, claim) == Fence = "none" \/ IsLive(p, claim)
Superseded(p, claim) == table.claims[p].id # claim.id

\* ---- a life: core/lifecycle.py ----
Owning == {"running", "draining", "held"}
Owns(life, claim) == life.c = claim /\ life.ph \in Owning
Counts(life, work) ==
  IF TrackerDies THEN Owns(life, work.c) ELSE life.ph \in Owning /\ work.o \in life.fly
IsEnding(w, work) == LET life == lives[w][work.p] IN ~Owns(life, work.c) \/ life.ph # "running"
Committable(life) ==
  IF Tracking = "late" /\ life.fly = {} THEN life.nx ELSE IF life.fly \cup life.hand = {} THEN life.nx ELSE Least(life.fly \cup life.hand)
\* PartitionLife.end_work: the offset completes, and may become the landmark
Complete(life, work) ==
  LET done == [life EXCEPT !.fly = @ \ {work.o}] IN
  IF work.o < Committable(done) THEN [done EXCEPT !.mark = [o |-> work.o, inc |-> work.real]] ELSE done
RECURSIVE CompleteAll(_, _)
CompleteAll(life, works) ==
  IF works = <<>> THEN life
  ELSE CompleteAll(IF Counts(life, Head(works)) THEN Complete(life, Head(works)) ELSE life, Tail(works))
Dropped(works, p, claim) == SelectSeq(works, LAMBDA work : ~(work.p = p /\ work.c = claim))
Fenced(life) == [life EXCEPT !.ph = "fenced", !.fly = {}, !.hand = {}, !.tell = None]

\* ---- how a work ends: pipeline/settle.py, pipeline/dispatch.py, scheduler.done and refuse ----
\* States of a worker that `Ended` computes: its lives, its queue, its tasks.
Ended(w, task, how) ==
  LET work  == task.work
      p     == work.p
      life  == lives[w][p]
      all   == <<work>> \o task.parked
      rest  == tasks[w] \ {task}
      with(l, q) == lives' = [lives EXCEPT ![w][p] = l] /\ queue' = [queue EXCEPT ![w] = q] /\ tasks' = [tasks EXCEPT ![w] = rest]
      drop  == [k \in Keys |-> Dropped(queue[w][k], p, work.c)]
      wrong == CompleteAll(life, IF ReleasedKeeps THEN <<>> ELSE <<work>>)
      freed == IF ReleasesParked THEN wrong ELSE CompleteAll(wrong, task.parked) IN
  CASE how = "settled"  -> with(CompleteAll(life, all), queue[w])
    [] how = "dead"     -> with(CompleteAll(life, <<work>>),
                                IF IsEnding(w, work) THEN queue[w] ELSE [queue[w] EXCEPT ![work.rec.k] = task.parked \o @])
    [] how = "released" -> with(freed, queue[w])
    [] how = "held"     -> with([freed EXCEPT !.ph = "held"], drop)      \* Dispatch._hold
    [] how = "fenced"   -> IF Owns(life, work.c)
                           THEN with(IF ReleasedKeeps THEN Fenced(life) ELSE wrong, drop)   \* Dispatch._fenced
                           ELSE with(wrong, queue[w])
Turned(w, task, new) == tasks' = [tasks EXCEPT ![w] = (@ \ {task}) \cup {new}] /\ UNCHANGED <<lives, queue>>
Step(task, st) == [task EXCEPT !.st = st, !.ch = <<>>]

\* ============================ the group and the faults ============================
Unheard == [w \in Workers |-> FALSE]
Rebalance ==
  /\ rebalances < MaxRebalances /\ rebalances' = rebalances + 1
  /\ owner' \in [Partitions -> Workers] /\ seen' = Unheard
  /\ UNCHANGED <<broker, server, open, saving, dlq, worker, counts, claimIds, ghost>>

\* partitions.revoked, as far as the drain: what waits is released, what is in flight may finish
Revoked(w) ==
  /\ Drains /\ ~seen[w] /\ \E p \in Partitions : lives[w][p].ph = "running"
  /\ lives' = [lives EXCEPT ![w] = [p \in Partitions |-> IF @[p].ph = "running" THEN [@[p] EXCEPT !.ph = "draining"] ELSE @[p]]]
  /\ queue' = [queue EXCEPT ![w] = [k \in Keys |-> <<>>]]
  /\ UNCHANGED <<broker, group, server, open, saving, dlq, tasks, counts, claimIds, ghost>>

\* partitions.revoked (its end) and partitions.assigned; tasks in flight go on under their old claim
Assigned(w) ==
  /\ ~seen[w] /\ seen' = [seen EXCEPT ![w] = TRUE]
  /\ lives' = [lives EXCEPT ![w] = [p \in Partitions |-> IF owner[p] = w THEN [NoLife EXCEPT !.ph = "claiming"] ELSE NoLife]]
  /\ queue' = [queue EXCEPT ![w] = [k \in Keys |-> <<>>]]
  /\ UNCHANGED <<broker, owner, rebalances, server, open, saving, dlq, tasks, counts, claimIds, ghost>>

\* The process dies and is started again; what it has sent to PostgreSQL lives on.
Crash(w) ==
  /\ May("crashes", MaxCrashes)
  /\ lives' = [lives EXCEPT ![w] = [p \in Partitions |-> NoLife]]
  /\ queue' = [queue EXCEPT ![w] = [k \in Keys |-> <<>>]] /\ tasks' = [tasks EXCEPT ![w] = {}]
  /\ owner' \in [Partitions -> Workers] /\ seen' = Unheard
  /\ UNCHANGED <<broker, rebalances, server, open, saving, dlq, claimIds, ghost>>

Backup ==
  /\ Restores > 0 /\ backup = <<>> /\ backup' = <<table>>
  /\ UNCHANGED <<broker, group, table, history, open, saving, dlq, worker, counts, claimIds, ghost>>
Restore ==
  /\ Len(backup) = 1 /\ backup' = <<table, table>> /\ table' = backup[1] /\ history' = history + 1
  /\ open' = {} /\ saving' = {}
  /\ tasks' = [w \in Workers |-> {IF task.st = "sent" THEN Step(task, "prepare") ELSE task : task \in tasks[w]}]
  /\ UNCHANGED <<broker, group, dlq, lives, queue, counts, claimIds, ghost>>

\* An operator sets the group's offset back, while its workers are stopped.
Rewind(p) ==
  /\ May("rewinds", MaxRewinds) /\ committed[p] > 0
  /\ \A w \in Workers : tasks[w] = {} /\ \A q \in Partitions : lives[w][q].tell = None
  /\ saving = {} /\ committed' = [committed EXCEPT ![p] = 0] /\ seen' = Unheard
  /\ lives' = [w \in Workers |-> [q \in Partitions |-> NoLife]]
  /\ queue' = [w \in Workers |-> [k \in Keys |-> <<>>]]
  /\ UNCHANGED <<log, inc, first, late, owner, rebalances, server, open, saving, dlq, tasks, claimIds, ghost>>

\* ====================== claims: pg_claims.py, partitions._load ======================
\* PostgresClaims.claim: waits for the writers who hold the row in share mode
Claim(w, p) ==
  /\ lives[w][p].ph = "claiming"
  /\ LET old  == table.claims[p]
         mine == [e |-> old.e + 1, id |-> claimIds + 1, h |-> history, inc |-> old.inc, w |-> w]
         kept == ~ClaimEach /\ old.w = w /\ old.h = history
         new  == IF kept THEN old ELSE mine IN
     /\ kept \/ \A tx \in open : tx.p # p \/ ~tx.locks
     /\ claimIds' = IF kept THEN claimIds ELSE claimIds + 1
     /\ table' = [table EXCEPT !.claims[p] = new]
     /\ lives' = [lives EXCEPT ![w][p] = [NoLife EXCEPT !.ph = "claimed", !.c = new, !.nx = table.next[p], !.mark = table.mark[p], !.id = table.id[p]]]
  /\ UNCHANGED <<broker, group, history, backup, open, saving, dlq, queue, tasks, counts, ghost>>

\* what the broker tells of the topic
Told(id) == IF TopicIds = "none" THEN None ELSE id
\* lifecycle.decide_start
Start(p, next) ==
  IF StartAt = "kafka" THEN (IF committed[p] # None THEN committed[p] ELSE IF next # None THEN next ELSE first[p])
  ELSE IF next = None THEN first[p]
  ELSE IF committed[p] = None THEN next ELSE Max(Min(committed[p], next), first[p])
\* partitions._start: decide, then PostgresClaims.begin under the fence, then seek
Begin(w, p) ==
  /\ lives[w][p].ph = "claimed"
  /\ LET life  == lives[w][p]
         ahead == committed[p] # None /\ life.nx # None /\ committed[p] > life.nx
         next  == IF ahead /\ SecondLook THEN table.next[p] ELSE life.nx
         alarm == committed[p] # None /\ next # None /\ committed[p] > next
         other == life.mark.o # None /\ life.mark.o < End(p) /\ life.mark.o >= first[p] /\ life.mark.inc # inc
         halts == (Landmarks /\ other) \/ (TopicIds # "none" /\ life.id \notin {None, inc}) \/ (next # None /\ (next > End(p) \/ next < first[p]))
         at    == Start(p, next) IN
     IF halts THEN lives' = [lives EXCEPT ![w][p] = [NoLife EXCEPT !.ph = "halted"]] /\ UNCHANGED <<table, ghost>>
     ELSE /\ ghost' = [ghost EXCEPT !.alarm = IF ~alarm THEN @ ELSE IF ghost.lowered[p] THEN "lowered" ELSE "plain", !.high[p] = Max(@, at),
                                    !.lowered[p] = @ \/ at < table.next[p]]
          /\ IF ~Passes(p, life.c)
             THEN lives' = [lives EXCEPT ![w][p] = Fenced(life)] /\ UNCHANGED table
             ELSE /\ table' = [table EXCEPT !.next[p] = IF WriteBack \/ @ = None THEN at ELSE @, !.id[p] = Told(inc)]
                  /\ lives' = [lives EXCEPT ![w][p] = [life EXCEPT !.ph = "running", !.nx = at, !.id = Told(inc)]]
  /\ UNCHANGED <<broker, group, history, backup, open, saving, dlq, queue, tasks, counts, claimIds>>

\* partitions._heed_operators: a halted partition whose progress is forgotten is one that is fenced
IsFenced(w, p) == lives[w][p].ph = "fenced" \/ (lives[w][p].ph = "halted" /\ table.next[p] = None)
\* partitions._reclaim: after a heartbeat has confirmed the assignment
ClaimAgain(w, p) ==
  /\ Reclaim /\ IsFenced(w, p) /\ seen[w] /\ owner[p] = w
  /\ lives' = [lives EXCEPT ![w][p] = [NoLife EXCEPT !.ph = "claiming"]]
  /\ UNCHANGED <<broker, group, server, open, saving, dlq, queue, tasks, counts, claimIds, ghost>>

\* partitions.run with floods.due: the probe of a held partition
Probe(w, p) ==
  /\ lives[w][p].ph = "held"
  /\ lives' = [lives EXCEPT ![w][p] = IF HoldAnew THEN [NoLife EXCEPT !.ph = "claiming"] ELSE [@ EXCEPT !.ph = "running"]]
  /\ UNCHANGED <<broker, group, server, open, saving, dlq, queue, tasks, counts, claimIds, ghost>>

\* ============== records come in: intake._take, core/scheduler.py, prepare ==============
WorkAt(w, p, o) == [p |-> p, o |-> o, rec |-> Record(p, o), real |-> inc, c |-> lives[w][p].c]
Poll(w, p) ==
  LET life == lives[w][p]  o == life.nx IN
  /\ life.ph = "running" /\ o < End(p) /\ o >= first[p]
  /\ IF Tracking = "late"
     THEN lives' = [lives EXCEPT ![w][p] = [life EXCEPT !.nx = o + 1, !.hand = @ \cup {o}]] /\ UNCHANGED queue
     ELSE /\ lives' = [lives EXCEPT ![w][p] = [life EXCEPT !.nx = o + 1, !.fly = @ \cup {o}]]
          /\ queue' = [queue EXCEPT ![w][Record(p, o).k] = Append(@, WorkAt(w, p, o))]
  /\ UNCHANGED <<broker, group, server, open, saving, dlq, tasks, counts, claimIds, ghost>>
\* only where it is not built as it should be: polled before, tracked now
Track(w, p) ==
  LET life == lives[w][p] IN
  /\ life.hand # {} /\ life.ph = "running"
  /\ LET o == Least(life.hand) IN
     /\ lives' = [lives EXCEPT ![w][p] = [life EXCEPT !.fly = @ \cup {o}, !.hand = @ \ {o}]]
     /\ queue' = [queue EXCEPT ![w][Record(p, o).k] = Append(@, WorkAt(w, p, o))]
  /\ UNCHANGED <<broker, group, server, open, saving, dlq, tasks, counts, claimIds, ghost>>
\* Flow._fail: the log ends before our position
OutOfRange(w, p) ==
  /\ lives[w][p].ph = "running" /\ lives[w][p].nx > End(p)
  /\ lives' = [lives EXCEPT ![w][p] = [NoLife EXCEPT !.ph = "halted"]]
  /\ queue' = [queue EXCEPT ![w] = [k \in Keys |-> Dropped(@[k], p, lives[w][p].c)]]
  /\ UNCHANGED <<broker, group, server, open, saving, dlq, tasks, counts, claimIds, ghost>>

\* partitions._compare_topics, before progress is saved
IsAnother(life) == TopicIds = "run" /\ life.id # inc
CompareTopics(w, p) ==
  /\ lives[w][p].ph \in Owning /\ IsAnother(lives[w][p])
  /\ lives' = [lives EXCEPT ![w][p] = [NoLife EXCEPT !.ph = "halted"]]
  /\ queue' = [queue EXCEPT ![w] = [k \in Keys |-> Dropped(@[k], p, lives[w][p].c)]]
  /\ UNCHANGED <<broker, group, server, open, saving, dlq, tasks, counts, claimIds, ghost>>

\* scheduler._replaces
Replaces(work, older) ==
  /\ work.rec.org = Nowhere /\ older.rec.org = Nowhere /\ work.rec.kind # "scope"
  /\ work.rec.v # NoVersion /\ older.rec.v # NoVersion
  /\ (Parking # "version" => work.rec.v >= older.rec.v)
  /\ work.c = older.c
RECURSIVE RunLength(_, _)
RunLength(works, n) == IF n < Len(works) /\ Replaces(works[n + 1], works[n]) THEN RunLength(works, n + 1) ELSE n
\* the work of a run that is done: the last one, which is the highest where versions do not fall
Chosen(works, n) ==
  CHOOSE m \in 1..n : \A i \in 1..n : works[i].rec.v < works[m].rec.v \/ (works[i].rec.v = works[m].rec.v /\ i <= m)

\* prepare, then ingest._write as far as the change set; poison shows when it is embedded
Prepared(w, task, bad) ==
  LET work == task.work  k == work.rec.k IN
  IF work.rec.kind = "scope" THEN Turned(w, task, Step(task, "ready"))
  ELSE LET row == table.row[k]  rank == Rank(work)
           same == ~row.del /\ work.rec.kind = "upsert" /\ row.text = work.rec.text IN
    IF Carries(rank, row) \/ (Guard /\ ~Newer(rank, row)) \/ Reached(rank.v) \/ (~Bump /\ same)
    THEN Ended(w, task, "settled")
    ELSE IF IsEnding(w, work) THEN Ended(w, task, "released")
    ELSE IF bad THEN Turned(w, task, Step(task, "letter"))
    ELSE LET new == Written(rank, work.rec.kind = "delete", work.rec.text, row)
             keeps == new.ord = row.ord /\ row # Absent
             have == IF row.del THEN {} ELSE row.text IN
         Turned(w, task, [task EXCEPT !.st = "ready", !.ch =
           [base |-> row, rank |-> rank, new |-> new, insert |-> IF keeps THEN {} ELSE new.text \ have, remove |-> IF keeps THEN {} ELSE have \ new.text]])
Verdicts(work) == CASE work.rec.poison = "no" -> {FALSE} [] work.rec.poison = "yes" -> {TRUE} [] OTHER -> BOOLEAN
\* scheduler.take, then prepare: one work of a key is in flight, whatever its claim
Take(w, k) ==
  /\ queue[w][k] # <<>> /\ \A task \in tasks[w] : task.work.rec.k # k
  /\ LET works == queue[w][k]
         n     == RunLength(works, 1)
         m     == Chosen(works, n)
         run   == SubSeq(works, 1, m - 1) \o SubSeq(works, m + 1, n)
         task  == [work |-> works[m], parked |-> IF Parking = "early" THEN <<>> ELSE run, st |-> "prepare", ch |-> <<>>]
         p     == works[m].p
         life  == IF Parking = "early" THEN CompleteAll(lives[w][p], run) ELSE lives[w][p] IN
     /\ queue' = [queue EXCEPT ![w][k] = SubSeq(works, n + 1, Len(works))]
     /\ tasks' = [tasks EXCEPT ![w] = @ \cup {task}]
     /\ lives' = [lives EXCEPT ![w][p] = life]
  /\ UNCHANGED <<broker, group, server, open, saving, dlq, counts, claimIds, ghost>>
Prepare(w) ==
  /\ \E task \in tasks[w] : task.st = "prepare" /\ \E bad \in Verdicts(task.work) : Prepared(w, task, bad)
  /\ UNCHANGED <<broker, group, server, open, saving, dlq, counts, claimIds, ghost>>

\* ================= rows: pgvector_store.apply, pg_documents.py, pipeline/store.py =================
Open(w) == \E task \in tasks[w] :
  /\ task.st = "ready" /\ task.work.rec.kind # "scope"
  /\ IF ~Passes(task.work.p, task.work.c) THEN Ended(w, task, "fenced") /\ UNCHANGED open
     ELSE /\ open' = open \cup {[w |-> w, p |-> task.work.p, o |-> task.work.o, k |-> task.work.rec.k, c |-> task.work.c,
                                 ch |-> task.ch, locks |-> Fence = "share",
                                 saw |-> table.scope]}
          /\ Turned(w, task, [task EXCEPT !.st = "sent"])
  /\ UNCHANGED <<broker, group, server, saving, dlq, counts, claimIds, ghost>>
IsBase(row, base) ==
  CASE BaseCheck = "exact"    -> row = base
    [] BaseCheck = "revision" -> row.rev = base.rev
    [] OTHER                  -> TRUE
Waiting(tx) == {task \in tasks[tx.w] : task.st = "sent" /\ task.work.p = tx.p /\ task.work.o = tx.o /\ task.work.c = tx.c}
Graves(k, ch) == IF ch.new.del \/ ch.rank.v = NoVersion THEN {ch.rank} ELSE {}
\* The row is compared and written under its lock, so at one moment; the scopes are those of an
\* earlier one, that of the statement's snapshot. The answer may be lost.
Commit == \E tx \in open :
  LET row  == table.row[tx.k]
      wins == /\ IsBase(row, tx.ch.base) /\ (Guard => Newer(tx.ch.rank, row)) /\ ~(ScopeChecked /\ ReachedBy(tx.saw, tx.ch.rank.v))
      new  == IF BaseCheck = "blind" /\ row # tx.ch.base THEN [tx.ch.new EXCEPT !.rev = row.rev + 1] ELSE tx.ch.new IN
  /\ open' = open \ {tx}
  /\ table' = IF ~wins THEN table ELSE
       [table EXCEPT !.row[tx.k] = new, !.chunks[tx.k] = (@ \ tx.ch.remove) \cup tx.ch.insert, !.graves[tx.k] = @ \cup Graves(tx.k, tx.ch)]
  /\ ghost' = [ghost EXCEPT !.zombie = @ \/ (wins /\ Superseded(tx.p, tx.c))]
  /\ IF Waiting(tx) = {} THEN UNCHANGED <<worker, counts>> ELSE \E task \in Waiting(tx) :
       \/ (IF wins THEN Ended(tx.w, task, "settled") ELSE Turned(tx.w, task, Step(task, "prepare"))) /\ UNCHANGED counts
       \/ Turned(tx.w, task, Step(task, "prepare")) /\ Fault
  /\ UNCHANGED <<broker, group, history, backup, saving, dlq, claimIds>>
\* a connection that breaks, or a claim that ends who blocks it
Abort == \E tx \in open :
  /\ open' = open \ {tx}
  /\ IF Waiting(tx) = {} THEN UNCHANGED <<worker, counts>> ELSE \E task \in Waiting(tx) : Turned(tx.w, task, Step(task, "prepare")) /\ Fault
  /\ UNCHANGED <<broker, group, server, saving, dlq, claimIds, ghost>>
\* the client gives up, the server does not
Orphan == \E tx \in open : \E task \in Waiting(tx) :
  /\ Turned(tx.w, task, Step(task, "prepare")) /\ Fault
  /\ UNCHANGED <<broker, group, server, open, saving, dlq, claimIds, ghost>>

\* ---- a scope delete: pg_scopes.py, in three steps ----
StoreTombstone(w) == \E task \in tasks[w] :
  /\ task.st = "ready" /\ task.work.rec.kind = "scope"
  /\ IF ~Passes(task.work.p, task.work.c) THEN Ended(w, task, "fenced") /\ UNCHANGED table
     ELSE /\ table' = [table EXCEPT !.scope = Max(@, task.work.rec.v)]
          /\ Turned(w, task, Step(task, IF ScopeBarrier THEN "barrier" ELSE "sweep"))
  /\ UNCHANGED <<broker, group, history, backup, open, saving, dlq, counts, claimIds, ghost>>
\* Each claim row is locked once: whoever wrote before is waited for. Who comes later sees the scope.
WaitForWriters(w) == \E task \in tasks[w] :
  /\ task.st = "barrier" /\ \A tx \in open : ~tx.locks
  /\ Turned(w, task, Step(task, "sweep"))
  /\ UNCHANGED <<broker, group, server, open, saving, dlq, counts, claimIds, ghost>>
Sweep(w) == \E task \in tasks[w] :
  /\ task.st = "sweep"
  /\ LET gone == {k \in Documents : LET row == table.row[k] IN row # Absent /\ row.v # NoVersion /\ row.v <= task.work.rec.v}
         left(row) == IF row.bar = Nowhere THEN Absent
                      ELSE [rev |-> row.rev + 1, v |-> NoVersion, ord |-> row.bar, bar |-> row.bar, del |-> TRUE, text |-> {}] IN
     table' = [table EXCEPT !.row = [k \in Documents |-> IF k \in gone THEN left(@[k]) ELSE @[k]],
                            !.chunks = [k \in Documents |-> IF k \in gone THEN {} ELSE @[k]]]
  /\ Ended(w, task, "settled")
  /\ UNCHANGED <<broker, group, history, backup, open, saving, dlq, counts, claimIds, ghost>>

\* =========== dead letters: settle._dead_letter, pg_ledger.py, kafka_dead_letters.py ===========
\* Dispatch._floods: one letter too many; the partition is held instead
Hold(w) == \E task \in tasks[w] :
  /\ task.st = "letter" /\ lives[w][task.work.p].ph = "running" /\ Owns(lives[w][task.work.p], task.work.c)
  /\ May("holds", MaxHolds) /\ Ended(w, task, "held")
  /\ UNCHANGED <<broker, group, server, open, saving, dlq, claimIds, ghost>>
Letter(place, state) == [at \in DOMAIN table.letters \cup {place} |-> IF at = place THEN state ELSE table.letters[at]]
\* PostgresLedger.record: a pending row under the fence; one that is published is not sent again
RecordLetter(w) == \E task \in tasks[w] : LET place == Place(task.work) IN
  /\ task.st = IF LedgerFirst THEN "letter" ELSE "acked"
  /\ ghost' = [ghost EXCEPT !.zombie = @ \/ (Passes(task.work.p, task.work.c) /\ Superseded(task.work.p, task.work.c))]
  /\ IF ~Passes(task.work.p, task.work.c) THEN Ended(w, task, "fenced") /\ UNCHANGED table
     ELSE IF Known(place) /\ table.letters[place] = "published" THEN Ended(w, task, "dead") /\ UNCHANGED table
     ELSE IF ~LedgerFirst THEN table' = [table EXCEPT !.letters = Letter(place, "published")] /\ Ended(w, task, "dead")
     ELSE table' = [table EXCEPT !.letters = Letter(place, "pending")] /\ Turned(w, task, Step(task, IF AckFirst THEN "recorded" ELSE "acked"))
  /\ UNCHANGED <<broker, group, history, backup, open, saving, dlq, counts, claimIds>>
\* KafkaDeadLetters.publish: repeated until it is acknowledged
Publish(w) == \E task \in tasks[w] :
  /\ task.st = IF ~LedgerFirst THEN "letter" ELSE "recorded"
  /\ dlq' = dlq \cup {Place(task.work)}
  /\ \/ Turned(w, task, Step(task, "acked")) /\ UNCHANGED counts
     \/ UNCHANGED worker /\ Fault
  /\ UNCHANGED <<broker, group, server, open, saving, claimIds, ghost>>
\* PostgresLedger.mark_published: no fence; it names the position, and the claim's row the incarnation
MarkPublished(w) == \E task \in tasks[w] :
  LET work == task.work
      place == IF MarkNames = "letter" THEN Place(work) ELSE <<work.p, work.o, table.claims[work.p].inc>> IN
  /\ LedgerFirst /\ task.st = "acked"
  /\ table' = IF Known(place) /\ MarkFirst THEN [table EXCEPT !.letters[place] = "published"] ELSE table
  /\ IF AckFirst THEN Ended(w, task, "dead") ELSE Turned(w, task, Step(task, "unsent"))
  /\ UNCHANGED <<broker, group, history, backup, open, saving, dlq, counts, claimIds, ghost>>
\* only where a letter is marked before it is sent
PublishLate(w) == \E task \in tasks[w] :
  /\ task.st = "unsent" /\ dlq' = dlq \cup {Place(task.work)} /\ Ended(w, task, "dead")
  /\ UNCHANGED <<broker, group, server, open, saving, counts, claimIds, ghost>>

\* ops/dead_letters.Replay: what no row covers is sent again, with its origin
Replay == \E place \in DOMAIN table.letters : LET p == place[1]  o == place[2] IN
  /\ May("replays", MaxReplays) /\ table.letters[place] = "published" /\ place[3] = inc
  /\ LET rec == Record(p, o)
         ord == [p |-> p, o |-> o, ts |-> rec.ts, inc |-> place[3]] IN
     /\ Newer([v |-> rec.v, ord |-> ord], table.row[rec.k])
     /\ log' = [log EXCEPT ![p] = Append(@, Again(rec, ord))]
  /\ UNCHANGED <<inc, first, committed, late, group, server, open, saving, dlq, worker, claimIds, ghost>>

\* ====================== the committer: partitions.commit and _tell ======================
\* The statement of PostgresClaims.save_progress takes no lock: it sees the claim at one moment,
\* and its row changes at a later one. What finds no claim is fenced; where nothing is due, the
\* commit that is sent again every minute finds it.
SaveProgress(w, p) == LET life == lives[w][p]  far == Committable(life) IN
  /\ TableFirst /\ life.ph \in Owning /\ (far # committed[p] \/ far > table.next[p] \/ ~IsLive(p, life.c)) /\ life.tell = None
  /\ \A save \in saving : save.w # w
  /\ IF SaveFenced /\ ~IsLive(p, life.c)
     THEN /\ lives' = [lives EXCEPT ![w][p] = Fenced(life)]
          /\ queue' = [queue EXCEPT ![w] = [k \in Keys |-> Dropped(@[k], p, life.c)]]
          /\ UNCHANGED saving
     ELSE /\ saving' = saving \cup {[w |-> w, p |-> p, c |-> life.c, far |-> far, mark |-> life.mark]}
          /\ UNCHANGED <<lives, queue>>
  /\ UNCHANGED <<broker, group, server, open, dlq, tasks, counts, claimIds, ghost>>
Saved == \E save \in saving : LET p == save.p  next == Max(table.next[p], save.far) IN
  /\ saving' = saving \ {save}
  /\ IF SaveUpdates /\ (table.next[p] = None \/ table.claims[p].inc # save.c.inc)
     THEN UNCHANGED <<table, ghost, lives>>    \* the operator's word has removed the row that it has seen
     ELSE /\ table' = [table EXCEPT !.next[p] = next,
                                    !.mark[p] = IF save.mark.o = None \/ save.far < table.next[p] THEN @ ELSE save.mark]
          /\ ghost' = [ghost EXCEPT !.high[p] = Max(@, next)]
          /\ IF Owns(lives[save.w][p], save.c) THEN lives' = [lives EXCEPT ![save.w][p].tell = next] ELSE UNCHANGED lives
  /\ UNCHANGED <<broker, group, history, backup, open, dlq, queue, tasks, counts, claimIds>>
\* Source.commit: the broker takes any offset from anybody here, which is worse than it is
Tell(w, p) == LET life == lives[w][p]  far == IF TableFirst THEN life.tell ELSE Committable(life) IN
  /\ life.ph \in Owning /\ far # None /\ (TableFirst \/ far # committed[p])
  /\ lives' = [lives EXCEPT ![w][p].tell = None]
  /\ \/ committed' = [committed EXCEPT ![p] = far] /\ UNCHANGED <<late, counts>>
     \/ late = <<>> /\ late' = <<p, far>> /\ Fault /\ UNCHANGED committed
  /\ UNCHANGED <<log, inc, first, group, server, open, saving, dlq, queue, tasks, claimIds, ghost>>
\* a commit that was given up lands, whenever
Land ==
  /\ late # <<>> /\ committed' = [committed EXCEPT ![late[1]] = late[2]] /\ late' = <<>>
  /\ UNCHANGED <<log, inc, first, group, server, open, saving, dlq, worker, counts, claimIds, ghost>>

\* =================== the topic is created again; retention; purge ===================
Recreate ==
  /\ Recreates # "never" /\ inc = 0 /\ inc' = 1
  /\ (Recreates # "early" => \A p \in Partitions : table.mark[p].o # None)
  /\ log' = [p \in Partitions |-> Logs[2][p + 1]] /\ first' = [p \in Partitions |-> 0]
  /\ committed' = [p \in Partitions |-> None]                     \* the broker drops its offsets
  /\ IF Recreates = "running" THEN UNCHANGED <<seen, owner, lives, queue>>
     ELSE /\ seen' = Unheard /\ owner' \in [Partitions -> Workers]    \* tasks of a frozen process may be left
          /\ lives' = [w \in Workers |-> [p \in Partitions |-> NoLife]]
          /\ queue' = [w \in Workers |-> [k \in Keys |-> <<>>]]
  /\ UNCHANGED <<late, rebalances, server, open, saving, dlq, tasks, counts, claimIds, ghost>>
\* PostgresProgress.begin_incarnation: an operator's word; the workers may be started again after it
Word ==
  /\ \A p \in Partitions : table.claims[p].inc < inc /\ \A tx \in open : ~tx.locks
  /\ \E w \in Workers, p \in Partitions : lives[w][p].ph = "halted"
  /\ claimIds' = claimIds + 1
  /\ table' = [table EXCEPT
       !.claims = [p \in Partitions |-> [e |-> @[p].e + (IF WordFences THEN 1 ELSE 0), id |-> IF WordFences THEN claimIds + 1 ELSE @[p].id,
                                              h |-> @[p].h, inc |-> inc, w |-> "nobody"]],
       !.next = IF WordForgets THEN [p \in Partitions |-> None] ELSE @,
       !.mark = IF WordForgets THEN [p \in Partitions |-> NoMark] ELSE @,
       !.id = IF WordForgets THEN [p \in Partitions |-> None] ELSE @]
  /\ (owner' \in [Partitions -> Workers] /\ seen' = Unheard) \/ UNCHANGED <<owner, seen>>
  /\ ghost' = [ghost EXCEPT !.high = [p \in Partitions |-> None]]
  /\ UNCHANGED <<broker, rebalances, history, backup, open, saving, dlq, worker, counts>>

\* Retention takes what is done. (No part of the worker purges yet: this is what a purge must keep to.)
Trim(p) ==
  /\ Trims /\ first[p] < Min(committed[p], table.next[p]) /\ first' = [first EXCEPT ![p] = @ + 1]
  /\ UNCHANGED <<log, inc, committed, late, group, server, open, saving, dlq, worker, counts, claimIds, ghost>>
IsReadable(k, ord) == \E p \in Partitions : \E o \in first[p]..End(p) - 1 :
  Record(p, o).k = k /\ (Record(p, o).org # Nowhere \/ ~IsAfter([p |-> p, o |-> o, ts |-> Record(p, o).ts, inc |-> inc], ord))
IsReplayable(k, ord) == \E place \in DOMAIN table.letters :
  place[3] = inc /\ Record(place[1], place[2]).k = k /\ counts.replays < MaxReplays
Purge(k) ==
  /\ Trims /\ table.row[k] # Absent /\ table.row[k].del
  /\ (Purging = "safe" => ~IsReadable(k, table.row[k].ord) /\ ~IsReplayable(k, table.row[k].ord))
  /\ table' = [table EXCEPT !.row[k] = Absent]
  /\ UNCHANGED <<broker, group, history, backup, open, saving, dlq, worker, counts, claimIds, ghost>>

Work(w) ==
  \/ Revoked(w) \/ Assigned(w) \/ Prepare(w) \/ Open(w) \/ Hold(w) \/ Crash(w)
  \/ StoreTombstone(w) \/ WaitForWriters(w) \/ Sweep(w)
  \/ RecordLetter(w) \/ Publish(w) \/ MarkPublished(w) \/ PublishLate(w)
  \/ \E k \in Keys : Take(w, k)
  \/ \E p \in Partitions : Claim(w, p) \/ Begin(w, p) \/ ClaimAgain(w, p) \/ Probe(w, p) \/ Poll(w, p) \/ Track(w, p)
       \/ OutOfRange(w, p) \/ CompareTopics(w, p) \/ SaveProgress(w, p) \/ Tell(w, p)
Next ==
  \/ Rebalance \/ Backup \/ Restore \/ Commit \/ Abort \/ Orphan \/ Saved \/ Land \/ Replay \/ Recreate \/ Word
  \/ \E w \in Workers : Work(w)
  \/ \E p \in Partitions : Rewind(p) \/ Trim(p)
  \/ \E k \in Documents : Purge(k)
Spec == Init /\ [][Next]_vars
Fair ==
  /\ WF_vars(Rebalance) /\ WF_vars(Commit) /\ WF_vars(Saved) /\ WF_vars(Land)
  /\ \A w \in Workers :
       /\ WF_vars(Assigned(w)) /\ WF_vars(Prepare(w)) /\ WF_vars(Open(w)) /\ WF_vars(StoreTombstone(w)) /\ WF_vars(WaitForWriters(w))
       /\ WF_vars(Sweep(w)) /\ WF_vars(RecordLetter(w)) /\ WF_vars(Publish(w)) /\ WF_vars(MarkPublished(w))
       /\ \A k \in Keys : WF_vars(Take(w, k))
       /\ \A p \in Partitions : /\ WF_vars(Claim(w, p)) /\ WF_vars(Begin(w, p)) /\ WF_vars(ClaimAgain(w, p)) /\ WF_vars(Probe(w, p))
                                /\ WF_vars(Poll(w, p)) /\ WF_vars(SaveProgress(w, p)) /\ WF_vars(Tell(w, p))
Live == Spec /\ Fair
Alike == Permutations(Workers)

\* ================================ what must hold ================================
\* S1: the rank of a row never falls
S1 == [][\/ history' # history
         \/ \A k \in Documents : table'.row[k] = Absent \/ MayFollow(table'.row[k], table.row[k])]_vars

\* The rules as they should be, whatever was removed.
TrulyNewer(rank, row) == NewerBy(rank, row, TRUE)
TrulyWritten(rank, del, text, row) == WrittenBy(rank, del, text, row, TRUE)
Outlives(rank, grave) ==
  IF grave.v = NoVersion THEN IsAfter(rank.ord, grave.ord)
  ELSE rank.v > grave.v \/ (rank.v = grave.v /\ IsAfter(rank.ord, grave.ord))

\* What a record says is in the table, or counts no more, or is a dead letter.
TrueOrder(p, o) == [p |-> p, o |-> o, ts |-> Record(p, o).ts, inc |-> inc]
TrueRank(p, o) ==
  LET rec == Record(p, o)  org == rec.org IN
  [v |-> rec.v, ord |-> IF org # Nowhere /\ Known(<<org.p, org.o, org.inc>>) THEN org ELSE TrueOrder(p, o)]
Buried(k, rank) == \E grave \in table.graves[k] : ~Outlives(rank, grave)
IsLetter(p, o) == Known(<<p, o, inc>>) /\ table.letters[<<p, o, inc>>] = "published"
Covered(p, o) ==
  LET rec == Record(p, o)  rank == TrueRank(p, o) IN
  \/ IsLetter(p, o)
  \/ IF rec.kind = "scope" THEN table.scope >= rec.v
     ELSE \/ ~TrulyNewer(rank, table.row[rec.k]) \/ Reached(rank.v)
          \/ table.row[rec.k] = Absent /\ Buried(rec.k, rank)

CoveredNext(p, o) == Covered(p, o)'

\* S3: whatever lies below an offset that was told is covered, at all times
S3 == \A p \in Partitions : \A o \in first[p]..End(p) - 1 : o < committed[p] => Covered(p, o)
\* (of another creation of the topic it says nothing: who claims it halts)
S3Table == \A p \in Partitions : table.claims[p].inc = inc /\ table.mark[p].inc \in {None, inc} => \A o \in first[p]..End(p) - 1 : o < table.next[p] => Covered(p, o)
\* the same at the moment when an offset completes, under the claim that it was tracked with
Completed(w, p) ==
  LET old == lives[w][p]  new == lives'[w][p] IN
  IF old.ph \in Owning /\ new.ph \in Owning /\ new.c = old.c THEN old.fly \ new.fly ELSE {}
Settled == [][\A w \in Workers, p \in Partitions : \A o \in Completed(w, p) : CoveredNext(p, o)]_vars

RECURSIVE FoldLog(_, _, _, _)
FoldLog(k, p, o, row) ==
  IF p \notin Partitions THEN row
  ELSE IF o = End(p) THEN FoldLog(k, p + 1, 0, row)
  ELSE LET rec == Record(p, o)  rank == TrueRank(p, o) IN
    FoldLog(k, p, o + 1, IF rec.k = k /\ ~IsLetter(p, o) /\ TrulyNewer(rank, row) THEN TrulyWritten(rank, rec.kind = "delete", rec.text, row) ELSE row)
Scopes == {Record(p, o).v : <<p, o>> \in {<<q, n>> \in Partitions \X (0..9) : n < End(q) /\ Record(q, n).kind = "scope"}}
Swept(row) == IF \E v \in Scopes : row # Absent /\ row.v <= v THEN Absent ELSE row
Shown(row) == IF row.del THEN <<>> ELSE <<row.v, row.text>>
MayDie(k) == \E p \in Partitions : \E o \in 0..End(p) - 1 : Record(p, o).k = k /\ Record(p, o).poison = "maybe"
IsRead(p) == LET life == lives[owner[p]][p] IN life.ph = "running" /\ life.nx = End(p) /\ IsLive(p, life.c) /\ ~IsAnother(life)
Quiet ==
  /\ open = {} /\ saving = {} /\ late = <<>>
  /\ \A w \in Workers : seen[w] /\ tasks[w] = {} /\ \A k \in Keys : queue[w][k] = <<>>
  /\ \A p \in Partitions : owner[p] # "nobody" /\ committed[p] = End(p) /\ IsRead(p)
IsTold(k) == inc = 0 \/ \E p \in Partitions : \E o \in 0..End(p) - 1 : Record(p, o).k = k
\* S2: when all is read, the table is the log (of another creation, the documents are left that it does not tell of)
S2 == Quiet => \A k \in {d \in Documents : IsTold(d)} : LET fold == Swept(FoldLog(k, 0, 0, Absent))  row == table.row[k] IN
  IF MayDie(k) THEN fold = Absent \/ MayFollow(row, fold) ELSE Shown(row) = Shown(fold)
\* S4: nothing is written under a claim that was superseded
S4 == ~ghost.zombie
\* S5: what was deleted stays deleted
S5 == \A k \in Documents : LET row == table.row[k] IN
  ~row.del => \A grave \in table.graves[k] : Outlives([v |-> row.v, ord |-> row.ord], grave)
\* S6: the chunks are those of the row, at all times
S6 == \A k \in Documents : table.chunks[k] = table.row[k].text
\* S7: what the ledger calls published is in the dead-letter topic, and nothing is there without a row
S7 == \A place \in DOMAIN table.letters : table.letters[place] = "published" => place \in dlq
NoStray == \A place \in dlq : Known(place)
\* Kafka is told nothing that the table has not said before
Behind == \A p \in Partitions : committed[p] <= ghost.high[p]
\* an alarm about a restored database is true, but after a start that was written back lower
Alarms == ghost.alarm = "plain" => history > 0
AlarmsEver == ghost.alarm # "none" => history > 0
\* after a rewind by an operator nothing is told to Kafka that was not read again
Rewound == counts.rewinds > 0 => \A w \in Workers, p \in Partitions : lives[w][p].tell <= Committable(lives[w][p])
\* L1: it drains
L1 == <>[]Quiet
==============================================================================
