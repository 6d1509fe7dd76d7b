create or replace function coupond.coupon_claimers(p_coupon text, p_after integer, p_upto integer)
returns setof text
language plpgsql
stable
security definer
set search_path = pg_catalog, coupond, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
-- A page is an ordered scan of the primary key, without a sort or a bitmap.
set enable_bitmapscan = off
set enable_sort = off
as $$
begin
  perform check_name('p_coupon', p_coupon);

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

  perform check_shard(p_coupon);

  return query
  select user_id::text
  from claims
  where coupon_name = p_coupon collate "C"
    and claim_number > p_after
    and claim_number <= p_upto
  order by claim_number;
end;
$$;

comment on function coupond.coupon_claimers(text, integer, integer) is
  'One page of the users that have p_coupon: the user ids of claims p_after + 1 to p_upto, in claim order. '
  'Claims are never renumbered, so pages need no common snapshot. Returns no rows if the coupon does not '
  'exist or has no such claims yet.';
