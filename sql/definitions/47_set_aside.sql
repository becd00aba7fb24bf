-- One event that cannot be fanned out must not stop the others.

create or replace function outbox.set_first_event_aside(error text) returns uuid
language sql volatile security definer set search_path = pg_catalog, outbox, pg_temp
begin atomic
    with first as (
        select q.seq, q.event_id, q.workspace_id from outbox.fan_out_queue q order by q.seq limit 1 for update skip locked
    ), gone as (
        delete from outbox.fan_out_queue q using first f where q.seq = f.seq
    )
    insert into outbox.set_aside_events (event_id, workspace_id, error)
    select f.event_id, f.workspace_id, left(set_first_event_aside.error, 500) from first f
    on conflict (event_id) do nothing
    returning event_id;
end;
comment on function outbox.set_first_event_aside(text) is
    'Called by the worker when the fan-out of the first queued event alone fails for its content: moves it to set_aside_events and returns its id.';
