-- Internal: whether the coupon belongs on this server, even if it does not exist. Always true on a
-- single server, where coupond.shard is empty.
create or replace function coupond.owns_coupon(p_coupon text)
returns boolean
language sql
stable
as $$
  select not exists (
    select
    from coupond.shard
    where singleton
      and hashtext(p_coupon collate "C") & (partitions - 1) <> all (owned)
  )
$$;

comment on function coupond.owns_coupon(text) is
  'Internal. Whether p_coupon belongs on this server: always on a single server; on a shard if coupond.shard '
  'lists its partition, hashtext(p_coupon) & (partitions - 1).';
