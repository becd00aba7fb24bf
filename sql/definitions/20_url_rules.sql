-- Rules of URLs: what may be stored as one. No tables are read.
-- Null is fine, anything else is the reason in words. The reasons follow a subject ("cannot store the URL: …") and
-- never quote a URL's path or a header's value. outbox_worker/egress.py decides the same; a test holds the two together.
-- Every regular expression runs under the collation "C", so that a range means ASCII.

create or replace function outbox.is_international_label(label text) returns boolean
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
    -- Blocks without one code point that a domain name may hold (RFC 5892).
    not_in_names constant int4multirange := '{[128,182],[184,222],[247,247],[4352,4607],[8192,8203],[8206,8334],
        [8352,8399],[8448,8525],[8528,8579],[8581,8587],[8592,11263],[11904,12292],[12800,13311],[55296,64013],[65040,65049],[65072,65135],[65140,65535],
        [119808,120831],[126976,131071],[917504,1114111]}';
    encoded constant text := substr(label, 5);
    delimiter constant int := coalesce(length(encoded) + 1 - nullif(strpos(reverse(encoded), '-'), 0), 0);
    at int := delimiter + 1;
    symbols int := greatest(delimiter - 1, 0);
    code_point bigint := 128; bias bigint := 72; i bigint := 0;  -- named as RFC 3492 names them
    previous_i bigint; weight bigint; base bigint; digit int; threshold bigint; delta bigint;
begin
    -- An encoding that adds no code point is not international.
    if label is null or left(label, 4) <> 'xn--' or delimiter = 1 or at > length(encoded) then
        return false;
    end if;
    while at <= length(encoded) loop
        previous_i := i;
        weight := 1;
        base := 36;
        loop
            digit := strpos('abcdefghijklmnopqrstuvwxyz0123456789', substr(encoded, at, 1)) - 1;
            if at > length(encoded) or digit < 0 then
                return false;
            end if;
            at := at + 1;
            i := i + digit * weight;
            if i > 1000000000 then  -- beyond the last code point already, and soon beyond a bigint
                return false;
            end if;
            threshold := least(greatest(base - bias, 1), 26);
            exit when digit < threshold;
            weight := weight * (36 - threshold);
            base := base + 36;
        end loop;
        symbols := symbols + 1;
        delta := (i - previous_i) / case when previous_i = 0 then 700 else 2 end;
        delta := delta + delta / symbols;
        bias := 0;
        while delta > 455 loop
            delta := delta / 35;
            bias := bias + 36;
        end loop;
        bias := bias + 36 * delta / (delta + 38);
        code_point := code_point + i / symbols;
        if code_point > 1114111 or not_in_names @> code_point::int then
            return false;
        end if;
        i := i % symbols + 1;
    end loop;
    return true;
end
$$;
comment on function outbox.is_international_label(text) is
    'Whether a label beginning with xn-- is the encoded form (RFC 3492) of a name that is not plain ASCII.';

create or replace function outbox.is_ipv4_literal(host text) returns boolean
language sql immutable parallel safe
return host collate "C" ~ '^(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3}$';
comment on function outbox.is_ipv4_literal(text) is
    'Whether a host is an IPv4 address in its one unambiguous spelling: four decimal numbers without leading zeros.';

create or replace function outbox.is_ipv6_literal(host text) returns boolean
language sql immutable parallel safe
return host collate "C" ~ '^([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}$'
    or (host collate "C" ~ '^(([0-9a-f]{1,4}:)*[0-9a-f]{1,4})?::(([0-9a-f]{1,4}:)*[0-9a-f]{1,4})?$'
        and regexp_count(host collate "C", '[0-9a-f]+') <= 7);
comment on function outbox.is_ipv6_literal(text) is
    'Whether a host without its brackets is an IPv6 address in lower case, without a zone or a dotted part.';

create or replace function outbox.host_problem(host text) returns text
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
    labels constant text[] := string_to_array(host, '.');
    last_label constant text := labels[cardinality(labels)];
begin
    if host is null or host = '' then
        return 'it has no host';
    elsif left(host, 1) = '[' then
        if outbox.is_ipv6_literal(substr(host, 2, length(host) - 2)) then
            return null;
        end if;
        return 'its host is not an IPv6 address in lower case without a zone';
    elsif outbox.is_ipv4_literal(host) then
        return null;
    elsif length(host) > 253 then
        return format('its host is %s characters long; at most 253 are allowed', length(host));
    elsif exists (select from unnest(labels) as label
                  where label collate "C" !~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$') then
        return 'its host is not labels of 1 to 63 lower-case letters, digits and inner hyphens, joined by dots';
    elsif cardinality(labels) < 2 then
        return 'its host has only one label; use a full public name';
    elsif left(last_label, 2) = '0x' or last_label collate "C" !~ '[a-z]' then
        return 'its host ends like a number; use a host name';
    elsif exists (select from unnest(labels) as label
                  where left(label, 4) = 'xn--' and not outbox.is_international_label(label)) then
        return 'its host has an xn-- label that is not the form of an international name';
    end if;
    return null;
end
$$;
comment on function outbox.host_problem(text) is
    'Why a URL may not have this host, or null. IP literals are well-formed here; outbox.url_problem decides on them.';

create or replace function outbox.url_problem(
    url text, allowed_ports int[], allow_plain_http boolean, allow_ip_literals boolean) returns text
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
    parts text[];
    problem text;
    port int;
begin
    if url is null or url = '' then
        return 'it is empty';
    elsif length(url) > 2048 then
        return format('it is %s characters long; at most 2048 are allowed', length(url));
    elsif url collate "C" ~ '[^!-~]' then
        return 'it contains a blank, a control character or a character outside ASCII';
    elsif strpos(url, '\') > 0 then
        return 'it contains a backslash';
    elsif strpos(url, '#') > 0 then
        return 'it contains a fragment';
    elsif url collate "C" !~ '^https?://' then
        return 'it does not begin with https:// in lower case';
    elsif url collate "C" ~ '^https?://[^/?]*@' then
        return 'it contains user information';
    end if;
    parts := regexp_match(url collate "C", '^(https?)://(\[[^\[\]/?]*\]|[^\[\]:/?]*)(?::([^/?]*))?(?:[/?].*)?$');
    if parts is null then
        return 'its host and port cannot be told apart';
    end if;
    problem := outbox.host_problem(parts[2]);
    if problem is not null then
        return problem;
    end if;
    if parts[3] collate "C" !~ '^[1-9][0-9]{0,4}$' or parts[3]::int > 65535 then
        return 'its port is not a number from 1 to 65535';
    end if;
    port := coalesce(parts[3]::int, case parts[1] when 'https' then 443 else 80 end);
    if parts[1] = 'http' and allow_plain_http is not true then
        return 'it is plain http, which is not allowed here; use https';
    elsif allow_ip_literals is not true and (left(parts[2], 1) = '[' or outbox.is_ipv4_literal(parts[2])) then
        return 'its host is an IP address, which is not allowed here; use a host name';
    elsif (port = any (allowed_ports)) is not true then
        return format('port %s is not among the allowed ports (%s)', port,
                      array_to_string(array(select distinct p from unnest(allowed_ports) as p
                                            where p is not null order by p), ', '));
    end if;
    return null;
end
$$;
comment on function outbox.url_problem(text, int[], boolean, boolean) is
    'Why an endpoint may not have this URL, in words, or null. Never quotes the URL''s path, which can be a secret.';

create or replace function outbox.url_origin(url text) returns text
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
    parts constant text[] := regexp_match(
        url collate "C", '^(https?)://(\[[0-9a-f:]+\]|[a-z0-9.-]+)(?::([0-9]{1,5}))?(?:[/?].*)?$');
begin
    return parts[1] || '://' || parts[2] || ':' || coalesce(parts[3], case parts[1] when 'https' then '443' else '80' end);
end
$$;
comment on function outbox.url_origin(text) is
    'Scheme, host and port of a stored URL, the port always written out: what sealed secrets are bound to.';

create or replace function outbox.mask_url(url text) returns text
language sql immutable parallel safe
return case
    when url collate "C" ~ '^https?://([a-zA-Z0-9._-]+|\[[0-9a-fA-F:]+\])(:[0-9]+)?/?$' then url
    when url is not null then
        coalesce(substring(url collate "C", '^(https?://(?:[a-zA-Z0-9._-]+|\[[0-9a-fA-F:]+\])(?::[0-9]+)?)[/?#]') || '/', '') || '…'
end;
comment on function outbox.mask_url(text) is
    'The URL as people may see it: its origin as written, and /… in place of a path or query, which can be secrets.';
