create or replace function public.get_coupon(p_coupon text)
returns table (name text, amount integer, remaining_amount integer)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
#variable_conflict use_column
begin
  perform public.guard_name('p_coupon', p_coupon);
  if exists (select from public.shard) then
    perform public.guard_ownership(p_coupon);
  end if;

  return query
  select c.name, c.amount, c.remaining_amount
  from public.coupons as c
  where c.name = p_coupon;
end;
$$;

comment on function public.get_coupon(text) is
  'The coupon, or no row. amount - remaining_amount is the number of its claims at this moment: claim numbers '
  '1 to that number exist and do not change, so coupon_claimers() can read them later without a common '
  'snapshot.';

revoke all on function public.get_coupon(text) from public;
grant execute on function public.get_coupon(text) to coupon_service;
