"""outbox-worker: webhook delivery on PostgreSQL.

your app's transaction                       outbox-worker (any number of processes)
┌──────────────────────────┐   ┌───────────────────────────────────────────────────────────────┐
│ insert into orders …     │   │ FAN OUT   event → one delivery per subscribed endpoint        │
│ select outbox.publish(…) │──▶│ CLAIM     due deliveries, lease + token      (skip locked)    │
└──────────────────────────┘   │ DELIVER   sign → POST → classify             (no transaction) │
        events                 │ SETTLE    attempt + new state, if the lease is still ours     │
                               │ UPKEEP    reap expired leases · partitions · retention        │
                               └───────────────────────────────────────────────────────────────┘
"""

__version__ = "0.1.0"
