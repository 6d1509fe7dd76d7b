-- Internal: check_shards for one coupon. On a single server it only looks whether shard has a row.
create or replace function coupond.check_shard(p_coupon text)
returns void
language plpgsql
stable
as $$
begin
  if exists (select from coupond.shard) then
    perform coupond.check_shards(array[p_coupon]);
  end if;
end;
$$;

comment on function coupond.check_shard(text) is
  'Internal. Raises SC421 unless owns_coupon() is true for p_coupon, so that nothing is answered or written for it.';
