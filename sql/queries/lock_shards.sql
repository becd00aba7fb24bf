-- lock_shards: only one worker at a time looks at the shards and changes them.
-- params:  none
-- index:   none
-- hazard:  held for one short transaction; readers are not held up.
lock table outbox.shards in share row exclusive mode
