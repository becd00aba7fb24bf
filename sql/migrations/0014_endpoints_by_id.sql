-- An endpoint is found by its id in the primary key and nowhere else. The index of shards had the id in second place: a plan
-- that was made while there were few endpoints, and kept, could read all of that index for each one it looked for.

drop index outbox.endpoints_shard_idx;
create index endpoints_shard_idx on outbox.endpoints (shard);
