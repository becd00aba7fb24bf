"""The fault campaign: break everything that can be broken, then account for every event.

Reads: the repository, nothing else. Writes: a folder of its own with a PostgreSQL, a journal and a ledger.
Guarantee: one seed draws the same faults, the same events and the same receivers; every promise is a named
invariant in `invariants`, and `mutants` shows that each of them can fail.
If it crashes: the workers end with their parent, the server is stopped by the next campaign in that folder.
"""
