-- Claims a coupon for one user: a batch of one, so that the rule is written once.
create or replace function public.claim_coupon(p_user text, p_coupon text)
returns public.claim_status
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform public.guard_name('p_user', p_user);

  return (public.claim_coupons(array[p_user], p_coupon))[1];
end;
$$;

comment on function public.claim_coupon(text, text) is
  'Claims p_coupon for p_user: locks the coupon, inserts the claim and decrements the stock atomically. '
  'Returns claimed, already_claimed, out_of_stock or coupon_not_found. A bad argument raises SQLSTATE '
  '22023 and changes nothing.';

revoke all on function public.claim_coupon(text, text) from public;
grant execute on function public.claim_coupon(text, text) to coupon_service;
