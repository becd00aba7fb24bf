-- The vault: what is sealed here can only be opened in a worker. Nothing in the database decrypts.

create or replace function outbox.install_vault_key(public_key bytea) returns text
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    new_id text;
begin
    begin
        new_id := @pgcrypto@.pgp_key_id(install_vault_key.public_key);
    exception
        when external_routine_invocation_exception then
            new_id := null;  -- not an OpenPGP key, or one with several encryption subkeys
    end;
    if new_id is null or new_id !~ '^[0-9A-F]{16}$' then
        raise exception 'cannot install the vault key: no single encryption subkey was found in it'
            using errcode = 'OB012', hint = 'Make the key with: outbox-worker keygen';
    end if;
    update outbox.vault_keys set active = false where active and key_id <> new_id;
    insert into outbox.vault_keys (key_id, public_key) values (new_id, install_vault_key.public_key)
    on conflict (key_id) do update set public_key = excluded.public_key, active = true;
    return new_id;
end
$$;
comment on function outbox.install_vault_key(bytea) is
    'Makes an OpenPGP public key the one that new secrets and headers are sealed with; returns its id. The owner''s alone: whoever may replace it reads all later secrets.';

create or replace function outbox.seal(workspace_id text, endpoint_id uuid, origin text, kind text, value jsonb) returns bytea
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    key bytea;
    sealed bytea;
begin
    select k.public_key into key from outbox.vault_keys k where k.active;
    if not found then
        raise exception 'cannot seal the % of endpoint %: no vault key is installed', kind, endpoint_id
            using errcode = 'OB012', hint = 'Run once: outbox-worker keygen';
    end if;
    -- An assignment, not an INSERT of the call: auto_explain logs nested statements with their text.
    sealed := @pgcrypto@.pgp_pub_encrypt_bytea(
        convert_to(jsonb_build_object('v', 1, 'workspace_id', seal.workspace_id, 'endpoint_id', seal.endpoint_id,
                                      'origin', seal.origin, 'kind', seal.kind, 'value', seal.value)::text, 'UTF8'),
        key, 'cipher-algo=aes256, compress-algo=0');
    return sealed;
end
$$;
comment on function outbox.seal(text, uuid, text, text, jsonb) is
    'Encrypts a value to the active vault key together with the workspace, endpoint and origin it is for; a worker refuses to use it for any other.';

create or replace function outbox.new_secret() returns text
language sql volatile security definer set search_path = pg_catalog, outbox, pg_temp
begin atomic
    select 'whsec_' || encode(@pgcrypto@.gen_random_bytes(32), 'base64');
end;
comment on function outbox.new_secret() is
    'A new signing secret: whsec_ and the base64 of 32 random bytes (Standard Webhooks 1.0).';

-- What is not sealed yet goes from assignment to assignment and never through a statement: auto_explain logs nested
-- statements, with log_verbose even the values that they were given. So these two seal, and the two after them store.
create or replace function outbox.seal_secret(endpoint outbox.endpoints, secret text) returns bytea
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
begin
    return outbox.seal(endpoint.workspace_id, endpoint.endpoint_id, outbox.url_origin(endpoint.url), 'secret', to_jsonb(secret));
end
$$;
comment on function outbox.seal_secret(outbox.endpoints, text) is 'Seals a signing secret for the endpoint''s present origin.';

create or replace function outbox.seal_headers(endpoint outbox.endpoints, headers jsonb) returns bytea
language plpgsql security definer set search_path = pg_catalog, outbox, pg_temp
as $$
declare
    reserved text;
    problem text;
begin
    select s.signature_header into strict reserved from outbox.settings s;
    problem := outbox.header_problem(headers, reserved);
    if problem is not null then
        raise exception 'cannot store the headers of endpoint %: %', endpoint.endpoint_id, problem
            using errcode = 'OB006', hint = 'Give a JSON object of header names and text values, such as {"x-api-key": "…"}.';
    end if;
    if headers = '{}' then
        return null;
    end if;
    return outbox.seal(endpoint.workspace_id, endpoint.endpoint_id, outbox.url_origin(endpoint.url), 'headers', headers);
end
$$;
comment on function outbox.seal_headers(outbox.endpoints, jsonb) is
    'Checks custom headers and seals them for the endpoint''s present origin; null for {}.';

drop function if exists outbox.store_secret(outbox.endpoints, text, interval);
create or replace function outbox.store_secret(endpoint outbox.endpoints, sealed bytea, overlap interval) returns void
language sql security definer set search_path = pg_catalog, outbox, pg_temp
begin atomic
    insert into outbox.endpoint_vault as v (endpoint_id, workspace_id, secret, secret_origin)
    values (endpoint.endpoint_id, endpoint.workspace_id, sealed, outbox.url_origin(endpoint.url))
    on conflict on constraint endpoint_vault_pkey do update
    set previous_secret = case when v.secret_origin = excluded.secret_origin and overlap > interval '0 s' then v.secret end,
        previous_expires_at = case when v.secret_origin = excluded.secret_origin and overlap > interval '0 s'
                                   then clock_timestamp() + overlap end,
        secret = excluded.secret,
        secret_origin = excluded.secret_origin;
end;
comment on function outbox.store_secret(outbox.endpoints, bytea, interval) is
    'Stores a sealed signing secret; the one before keeps signing for the overlap, if it was sealed for the same origin.';

drop function if exists outbox.store_headers(outbox.endpoints, jsonb);
create or replace function outbox.store_headers(endpoint outbox.endpoints, sealed bytea, names text[]) returns void
language sql security definer set search_path = pg_catalog, outbox, pg_temp
begin atomic
    update outbox.endpoint_vault v
    set headers = sealed, headers_origin = case when sealed is not null then outbox.url_origin(endpoint.url) end
    where v.endpoint_id = endpoint.endpoint_id and v.workspace_id = endpoint.workspace_id;
    update outbox.endpoints e
    set header_names = names, sealed_at = clock_timestamp()
    where e.endpoint_id = endpoint.endpoint_id and e.workspace_id = endpoint.workspace_id;
end;
comment on function outbox.store_headers(outbox.endpoints, bytea, text[]) is
    'Stores sealed custom headers and their names; null and {} for none.';
