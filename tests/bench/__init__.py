"""Benchmarks: what a delivery costs, how many a second, how late, and whether it stays so.

Reads and writes: a PostgreSQL, a receiver and workers of its own, each benchmark's own.
Guarantee: fsync and synchronous_commit are on; the figures are counts and ratios taken in one run.
If it crashes: the server and the workers end with this process, their folder stays in the temporary folder.
"""
