create or replace function coupond.get_coupon(p_coupon text)
returns table (name text, amount integer, remaining_amount integer)
language plpgsql
stable
security definer
set search_path = pg_catalog, coupond, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
begin
  perform check_name('p_coupon', p_coupon);
  perform check_shard(p_coupon);

  return query
  select c.name, c.amount::integer, c.remaining_amount
  from coupons as c
  where c.name = p_coupon collate "C";
end;
$$;

comment on function coupond.get_coupon(text) is
  'The coupon, or no row. amount - remaining_amount is the number of its claims at this moment: claim numbers '
  '1 to that number exist and do not change, so coupon_claimers() can read them later without a common '
  'snapshot.';
