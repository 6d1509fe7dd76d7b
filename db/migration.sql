{{- /*
A migration, in one transaction. The row of the version is locked before anything that claims need:
tern updates it once more, but after it has reset lock_timeout. The comment is the version for prepare.sql.
*/ -}}
update coupond.schema_version set version = {{.Sequence}};
{{.UpSQL}}
;
do $$
declare
  v_index constant regclass := (
    select i.indexrelid
    from pg_index as i
    join pg_class as c
      on c.oid = i.indexrelid
    where c.relnamespace = 'coupond'::regnamespace
      and not i.indisvalid
    limit 1
  );
begin
  -- CREATE INDEX IF NOT EXISTS takes what a failed CREATE INDEX CONCURRENTLY has left for the index.
  if v_index is not null then
    raise exception 'the index % is INVALID', v_index
      using errcode = 'UC010', hint = format('If no session is building it: drop index %s. Then run this again.', v_index);
  end if;
end;
$$;
comment on table coupond.schema_version is '{{template "version comment"}}{{.Sequence}}';
