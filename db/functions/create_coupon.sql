create or replace function coupond.create_coupon(p_coupon text, p_amount bigint)
returns coupond.create_status
language plpgsql
security definer
set search_path = pg_catalog, coupond, pg_temp
set plan_cache_mode = force_generic_plan
as $$
begin
  perform check_name('p_coupon', p_coupon);

  -- p_amount is bigint so that 2147483648 gets this error, which names the argument, and not the
  -- error of a cast (22003).
  if p_amount between 1 and 2147483647 is not true then
    raise exception using
      errcode = 'invalid_parameter_value',
      message = 'p_amount must be a whole number from 1 to 2147483647',
      detail = format('It is %s.', coalesce(p_amount::text, 'null'));
  end if;

  perform check_shard(p_coupon);

  insert into coupons (name, amount, remaining_amount)
  values (p_coupon, p_amount, p_amount)
  on conflict (name) do nothing;

  if found then
    return 'created'::create_status;
  end if;
  return 'coupon_exists'::create_status;
end;
$$;

comment on function coupond.create_coupon(text, bigint) is
  'Creates p_coupon with a stock of p_amount (1 to 2147483647). If the name exists, changes nothing and returns coupon_exists.';
