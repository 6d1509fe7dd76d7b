create or replace function public.coupon_claimers(p_coupon text, p_after integer, p_upto integer)
returns setof text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
-- A page is an ordered scan of the primary key, without a sort or a bitmap.
set enable_bitmapscan = off
set enable_sort = off
as $$
begin
  perform public.guard_name('p_coupon', p_coupon);

  if p_after >= 0 is not true then
    raise exception using
      errcode = 'invalid_parameter_value',
      message = 'p_after must be a claim number of 0 or more';
  end if;
  if p_upto >= p_after is not true then
    raise exception using
      errcode = 'invalid_parameter_value',
      message = 'p_upto must be a claim number not below p_after';
  end if;
  if exists (select from public.shard) then
    perform public.guard_ownership(p_coupon);
  end if;

  return query
  select k.user_id
  from public.claims as k
  where k.coupon_name = p_coupon
    and k.claim_number > p_after
    and k.claim_number <= p_upto
  order by k.claim_number;
end;
$$;

comment on function public.coupon_claimers(text, integer, integer) is
  'One page of the users that have p_coupon: the user ids of claims p_after + 1 to p_upto, in claim order. '
  'Claims are never renumbered, so pages need no common snapshot. Returns no rows if the coupon does not '
  'exist or has no such claims yet.';

revoke all on function public.coupon_claimers(text, integer, integer) from public;
grant execute on function public.coupon_claimers(text, integer, integer) to coupon_service;
