-- Filters: a customer's jsonpath predicate, evaluated so that it can harm nobody else.

create or replace function outbox.filter_outcome(payload jsonb, filter jsonpath) returns text
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
    -- @@, not @?: with @? a predicate such as $.a == 1 matches everything.
    return case when payload @@ filter then 't' else 'f' end;
exception
    when others then  -- not query_canceled: a filter that runs too long is the fan-out's to find
        return left(sqlerrm, 500);
end
$$;
comment on function outbox.filter_outcome(jsonb, jsonpath) is
    't if the filter matches the payload, f if not, else the error that it raised.';
