-- Filters: a customer's jsonpath predicate, evaluated so that it can harm nobody else.

create or replace function outbox.filter_problem(filter jsonpath) returns text
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
    bare text := regexp_replace(filter::text, '"(?:[^"\\]|\\.)*"', '""', 'g');
    left_side text;
begin
    if length(filter::text) > 1000 then
        return 'it is longer than 1,000 characters';
    end if;
    -- The comparison of two lists tries every pair, and PostgreSQL cannot interrupt it: two lists of 30,000 numbers
    -- would hold the fan-out for a minute, whatever the timeout.
    for left_side in
        select m[1] from regexp_matches(bare, '(\S+)\s*(?:==|!=|<>|<=|>=|<|>)\s*[(+-]*\s*[$@]', 'g') m loop
        if left_side !~ '^[(]*(?:""|-?[0-9.eE+]+|true|false|null)$' then
            return 'it compares one path with another';
        end if;
    end loop;
    return null;
end
$$;
comment on function outbox.filter_problem(jsonpath) is
    'Why a jsonpath may not be a filter: a comparison must have a literal on one side. Null if it may.';

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
