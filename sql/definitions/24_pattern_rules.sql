-- Rules of event types and subscription patterns: which may be stored, and what matches. No tables are read.

create or replace function outbox.event_type_problem(name text) returns text
language sql immutable parallel safe
return case
    when coalesce(name, '') = '' then 'it is empty'
    when length(name) > 200 then 'it is ' || length(name)::text || ' characters long; at most 200 are allowed'
    when name collate "C" !~ '^[a-z0-9_]+(\.[a-z0-9_]+)+$' then 'it is not two or more words of a-z, 0-9 and _ joined by dots'
end;
comment on function outbox.event_type_problem(text) is 'Why an event type may not have this name, in words, or null.';

create or replace function outbox.pattern_problem(pattern text) returns text
language sql immutable parallel safe
return case
    when coalesce(pattern, '') = '' then 'it is empty'
    when length(pattern) > 200 then 'it is ' || length(pattern)::text || ' characters long; at most 200 are allowed'
    when pattern collate "C" !~ '^(\*|[a-z0-9_]+(\.[a-z0-9_]+)*\.(\*|[a-z0-9_]+))$'
        then 'it is not an event type''s name, a prefix such as message.*, or *'
end;
comment on function outbox.pattern_problem(text) is 'Why an endpoint may not subscribe to this pattern, in words, or null.';

create or replace function outbox.pattern_matches(pattern text, event_type text) returns boolean
language sql immutable parallel safe
return pattern = event_type
    or pattern = '*'
    or (right(pattern, 2) = '.*' and starts_with(event_type, left(pattern, -1)));
comment on function outbox.pattern_matches(text, text) is
    'Whether a subscription pattern matches an event type that is not operational: the name itself, prefix.* at any depth, or *.';

create or replace function outbox.patterns_of(event_type text, operational boolean) returns text[]
language sql immutable strict parallel safe
return array[event_type] || case
    when not operational then
        array(select array_to_string((string_to_array(event_type, '.'))[1:n], '.') || '.*'
              from generate_series(cardinality(string_to_array(event_type, '.')) - 1, 1, -1) as n) || array['*']
    else '{}'
end;
comment on function outbox.patterns_of(text, boolean) is
    'Every subscription pattern that matches an event type, the closest first; an operational type matches only its own name.';
