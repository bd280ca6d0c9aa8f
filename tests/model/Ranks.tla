-------------------------------- MODULE Ranks --------------------------------
(* The order among the records of one document: `Order` of worker/core/model.py,          *)
(* `newer`, `settled`, `upsert` and `delete` of worker/core/changeset.py, and the same in *)
(* SQL (NEWER of worker/adapters/pg_statements.py).                                       *)
EXTENDS Integers

CONSTANTS
  Ties,      \* "timestamp": across partitions (timestamp, partition) decides | "offset"
  Barriers   \* TRUE: a delete without a version beats all before it | FALSE: keeps the version

NoVersion == -1
Nowhere   == [p |-> -1, o |-> -1, ts |-> -1, inc |-> -1]
Absent    == [rev |-> 0, v |-> -2, ord |-> Nowhere, bar |-> Nowhere, del |-> TRUE, text |-> {}]

\* Order.is_after
IsAfter(x, y) ==
  IF x.p = y.p THEN x.inc > y.inc \/ (x.inc = y.inc /\ x.o > y.o)
  ELSE IF Ties = "offset" THEN x.o > y.o
  ELSE x.ts > y.ts \/ (x.ts = y.ts /\ x.p > y.p)

\* changeset.newer
NewerBy(rank, row, barriers) ==
  IF row = Absent THEN TRUE
  ELSE IF ~barriers THEN
    IF rank.v = NoVersion THEN IsAfter(rank.ord, row.ord)
    ELSE rank.v > row.v \/ (rank.v = row.v /\ IsAfter(rank.ord, row.ord))
  ELSE /\ row.bar = Nowhere \/ IsAfter(rank.ord, row.bar)
       /\ \/ rank.v = NoVersion \/ row.v = NoVersion
          \/ rank.v > row.v
          \/ rank.v = row.v /\ IsAfter(rank.ord, row.ord)

Newer(rank, row) == NewerBy(rank, row, Barriers)

\* changeset._carries: the row says exactly this already (`Unchanged`)
Carries(rank, row) ==
  row # Absent /\ IF rank.v = NoVersion THEN row.bar = rank.ord ELSE row.v = rank.v /\ row.ord = rank.ord

\* changeset.upsert, changeset.delete: the row after the write
WrittenBy(rank, del, text, row, barriers) ==
  LET rev == row.rev + 1 IN
  IF rank.v # NoVersion
  THEN [rev |-> rev, v |-> rank.v, ord |-> rank.ord, bar |-> row.bar, del |-> del, text |-> text]
  ELSE IF ~barriers
  THEN [rev |-> rev, v |-> row.v, ord |-> rank.ord, bar |-> Nowhere, del |-> TRUE, text |-> {}]
  ELSE IF row # Absent /\ IsAfter(row.ord, rank.ord)
  THEN [row EXCEPT !.rev = rev, !.bar = rank.ord]
  ELSE [rev |-> rev, v |-> NoVersion, ord |-> rank.ord, bar |-> rank.ord, del |-> TRUE, text |-> {}]

Written(rank, del, text, row) == WrittenBy(rank, del, text, row, Barriers)

\* whether a row may follow another one: its rank does not fall, but over a barrier
MayFollow(new, row) ==
  \/ row = Absent
  \/ IsAfter(new.bar, row.bar)
  \/ /\ new.bar = row.bar
     /\ new.v > row.v \/ (new.v = row.v /\ ~IsAfter(row.ord, new.ord))
==============================================================================
