-- Internal: whether the coupon belongs on this server, even if it does not exist. Always true on a
-- single server, where public.shard is empty.
create or replace function public.owns_coupon(p_coupon text)
returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select not exists (
    select
    from public.shard as s
    where s.singleton
      and hashtext(p_coupon) & (s.partitions - 1) <> all (s.owned)
  )
$$;

comment on function public.owns_coupon(text) is
  'Internal. Whether p_coupon belongs on this server: always on a single server; on a shard if public.shard '
  'lists its partition, hashtext(p_coupon) & (partitions - 1).';

revoke all on function public.owns_coupon(text) from public;
