--------------------------------- MODULE Logs ---------------------------------
(* What is in the topic: small logs, each made for the rules that it tries.       *)
(* A text is the set of its chunks. One sequence a partition; the second entry is *)
(* what the topic holds after it was created again.                               *)
EXTENDS Integers, Sequences, Ranks

CONSTANT Scenario

Event(kind, key, v, text, ts) ==
  [kind |-> kind, k |-> key, v |-> v, text |-> text, ts |-> ts, poison |-> "no", org |-> Nowhere]
U(key, v, text, ts) == Event("upsert", key, v, text, ts)
D(key, v, ts)       == Event("delete", key, v, {}, ts)
T(key, ts)          == Event("delete", key, NoVersion, {}, ts)     \* a Kafka tombstone
S(v, ts)            == Event("scope", "scope", v, {}, ts)          \* all documents up to v
P(event)            == [event EXCEPT !.poison = "yes"]
M(event)            == [event EXCEPT !.poison = "maybe"]           \* for some workers only
Again(event, ord)   == [event EXCEPT !.poison = "no", !.org = ord] \* a dead letter, replayed
At(p, o, ts)        == [p |-> p, o |-> o, ts |-> ts, inc |-> 0]

One(log)  == <<<<log>>, <<log>>>>
Both(x, y) == <<<<x, y>>, <<x, y>>>>

Logs ==
  CASE Scenario = "two"    -> One(<<U("a", 1, {1, 2}, 1), U("a", 2, {1, 3}, 2)>>)
    [] Scenario = "three"  -> One(<<U("a", 1, {1, 2}, 1), U("a", 2, {2, 4}, 2), U("a", 3, {1, 3}, 3)>>)
    [] Scenario = "one"    -> One(<<U("a", 1, {1}, 1)>>)
    [] Scenario = "others" -> One(<<U("a", 1, {1}, 1), U("b", 1, {2}, 2)>>)
    [] Scenario = "fall"   -> One(<<U("a", 2, {1, 2}, 1), U("a", 1, {1, 3}, 2), D("b", 2, 3), U("b", 1, {1}, 4)>>)
    [] Scenario = "mixed"  -> One(<<U("a", 1, {1, 2}, 1), P(U("b", 1, {1}, 2)), U("a", 2, {2, 3}, 3)>>)
    [] Scenario = "poison" -> One(<<U("a", 1, {1}, 1), P(U("a", 2, {2}, 2))>>)
    [] Scenario = "bad"    -> One(<<P(U("a", 1, {1}, 1))>>)
    [] Scenario = "maybe"  -> One(<<M(U("a", 1, {1}, 1))>>)
    [] Scenario = "same"   -> One(<<U("a", 1, {1}, 1), U("a", 3, {1}, 2), U("a", 2, {2}, 3)>>)
    [] Scenario = "null"   -> One(<<U("a", 5, {1}, 1), T("a", 2), U("a", 3, {2}, 3)>>)
    [] Scenario = "null, replay" -> One(<<P(U("a", 5, {1}, 1)), T("a", 2), Again(U("a", 5, {1}, 3), At(0, 0, 1))>>)
    [] Scenario = "replay" -> One(<<P(U("a", 5, {1}, 1)), U("a", 5, {2}, 2), Again(U("a", 5, {1}, 3), At(0, 0, 1))>>)
    [] Scenario = "forged" -> One(<<U("a", 5, {1}, 1), Again(U("a", 5, {2}, 2), At(0, 0, 1))>>)
    [] Scenario = "dead"   -> One(<<P(U("a", 1, {1}, 1)), D("a", 2, 2)>>)
    [] Scenario = "moves"  -> Both(<<U("a", 1, {1, 2}, 1), U("a", 3, {1, 3}, 3)>>, <<U("a", 2, {2, 4}, 2)>>)
    [] Scenario = "tie"    -> Both(<<U("a", 1, {1}, 2)>>, <<U("a", 1, {2}, 1)>>)
    [] Scenario = "crossed" -> Both(<<U("a", 7, {1}, 1), U("a", 5, {2}, 3)>>, <<T("a", 2)>>)
    [] Scenario = "scope"  -> Both(<<U("a", 5, {1}, 1)>>, <<S(7, 2)>>)
    [] Scenario = "swept"  -> Both(<<U("a", 1, {1}, 1), U("a", 9, {2}, 3)>>, <<S(1, 2), U("a", 5, {3}, 4)>>)
    [] Scenario = "again"  -> <<<<<<U("a", 1, {1}, 1)>>>>, <<<<U("a", 1, {2}, 5), U("b", 1, {1}, 6)>>>>>>
    [] Scenario = "again, tombstone" -> <<<<<<U("b", 1, {1}, 1), T("a", 2)>>>>, <<<<U("a", 1, {2}, 5)>>>>>>
    [] Scenario = "again, poison" -> <<<<<<U("b", 1, {1}, 1), P(U("a", 1, {1}, 2))>>>>, <<<<U("b", 2, {2}, 5), P(U("c", 1, {1}, 6))>>>>>>
==============================================================================
