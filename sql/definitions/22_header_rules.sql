-- Rules of headers: which names and values may be stored. No tables are read.
-- Null is fine, anything else is the reason in words, which follows a subject and never quotes a header's value.
-- outbox_worker/egress.py decides the same; a test holds the two together. Regular expressions run under the collation "C".

create or replace function outbox.header_names_problem(names text[], signature_header text default 'Edesy-Signature') returns text
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
    -- Receivers behind CGI or WSGI read an underscore as a hyphen: webhook_signature would stand in for ours.
    keys constant text[] := array(select translate(lower(n collate "C"), '_', '-')
                                  from unnest(names) with ordinality as u (n, at) order by at);
    reserved_key constant text := translate(lower(signature_header collate "C"), '_', '-');
    name text;
    key text;
begin
    if names is null then
        return 'the names are null; give an array';
    elsif cardinality(names) > 32 then
        return format('there are %s headers; at most 32 are allowed', cardinality(names));
    end if;
    for name, key in select n, k from unnest(names, keys) with ordinality as u (n, k, at) order by at loop
        if length(name) > 256 then
            return format('a name is %s characters long; at most 256 are allowed', length(name));
        elsif name is null or name collate "C" !~ '^[!#$%&''*+.^_`|~0-9A-Za-z-]+$' then
            return 'a name is not one or more letters, digits and !#$%&''*+-.^_`|~ only';
        elsif key = reserved_key or key collate "C" ~ ('^(webhook-.*|user-agent|content-.*|traceparent|tracestate'
                '|accept-encoding|cookie2?|set-cookie2?|host|connection|keep-alive|te|trailers?|transfer-encoding|upgrade'
                '|expect|proxy-.*|http2-settings|metadata|metadata-.*|x-metadata-.*|x-amz-.*|x-aws-.*|x-goog-.*'
                '|x-google-.*|x-aliyun-.*|.*-metadata-(token|flavor|request).*|x-ms-version|x-ms-agent-name|x-identity-header)$') then
            return format('%s is reserved; leave it out', name);
        elsif cardinality(array_positions(keys, key)) > 1 then
            return format('%s is given twice, letter case and _ for - aside', name);
        end if;
    end loop;
    return null;
end
$$;
comment on function outbox.header_names_problem(text[], text) is
    'Why an endpoint may not have custom headers of these names, in words, or null. The second argument is settings.signature_header.';

create or replace function outbox.header_names(headers jsonb) returns text[]
language plpgsql immutable strict parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
    -- Assigned, not selected from the headers: auto_explain logs a nested statement with what it was given.
    names constant jsonb := jsonb_path_query_array(headers, '$.keyvalue().key');
begin
    return array(select jsonb_array_elements_text(names));
end
$$;
comment on function outbox.header_names(jsonb) is 'The names of an object of headers.';

create or replace function outbox.header_problem(headers jsonb, signature_header text default 'Edesy-Signature') returns text
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
    names text[];
    name text;
    content text;
    kind text;
    total bigint := 0;
    problem text;
begin
    if headers is null or jsonb_typeof(headers) <> 'object' then
        return 'the headers are not a JSON object of names and text values';
    end if;
    names := outbox.header_names(headers);
    problem := outbox.header_names_problem(names, signature_header);
    if problem is not null then
        return problem;
    end if;
    foreach name in array names loop
        content := headers ->> name;
        kind := jsonb_typeof(headers -> name);
        if kind <> 'string' then
            return format('the value of %s is not text', name);
        elsif length(content) > 4096 then
            return format('the value of %s is %s characters long; at most 4096 are allowed', name, length(content));
        elsif content collate "C" !~ '^([!-~]([ -~]*[!-~])?)?$' then
            return format('the value of %s is not visible ASCII characters without blanks at the ends', name);
        elsif lower(name collate "C") = 'authorization' and content collate "C" ~* '^bearer +oracle$' then
            return format('the value of %s opens a cloud''s metadata service', name);
        end if;
        total := total + length(name) + length(content);
    end loop;
    if total > 16384 then
        return format('the headers are %s bytes long; at most 16384 are allowed', total);
    end if;
    return null;
end
$$;
comment on function outbox.header_problem(jsonb, text) is
    'Why an endpoint may not have these custom headers, in words, or null. Never quotes a value.';
