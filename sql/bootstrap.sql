-- bootstrap: the roles, the schema and the extension. Run by the connecting role at the start of every
-- migrate; changes nothing the second time. Needs CREATEROLE and CREATE on the database only where
-- something is missing, never a superuser once pgcrypto exists.
do $$
declare
    wanted text;
    can_become_owner boolean;
begin
    foreach wanted in array array['outbox_owner', 'outbox_app', 'outbox_worker', 'outbox_operator',
                                  'outbox_reader', 'outbox_secrets', 'outbox_tenant'] loop
        if not exists (select from pg_catalog.pg_roles where rolname = wanted) then
            begin
                execute format('create role %I nologin', wanted);
            exception
                when duplicate_object or unique_violation then
                    raise notice 'role % was created by another session meanwhile', wanted;
                when insufficient_privilege then
                    raise exception 'cannot create the role %: % may not create roles', wanted, current_user
                        using errcode = 'insufficient_privilege',
                              hint = format('Let a DBA run: create role %I nologin; and: grant outbox_owner to %I;',
                                            wanted, current_user);
            end;
        end if;
    end loop;

    if current_setting('server_version_num')::int >= 160000 then
        can_become_owner := pg_has_role(current_user, 'outbox_owner', 'SET');
    else
        can_become_owner := pg_has_role(current_user, 'outbox_owner', 'MEMBER');
    end if;
    if not can_become_owner then
        execute format('grant outbox_owner to %I', current_user);
    end if;

    if not exists (select from pg_catalog.pg_namespace where nspname = 'outbox') then
        execute 'create schema outbox authorization outbox_owner';
    end if;

    if not exists (select from pg_catalog.pg_extension where extname = 'pgcrypto') then
        execute format('create extension pgcrypto with schema %I',
                       case when has_schema_privilege('public', 'create') then 'public' else 'outbox' end);
    end if;
end
$$;
