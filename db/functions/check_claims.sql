-- The trigger function of claims: the coupons of new or changed claims exist, and their amounts
-- reach the claim numbers. It does what a foreign key would do, once per statement (ADR 0018).
--
-- It locks the coupons as a claim does. Our functions hold these locks already. For a claim that is
-- written by hand, it waits for a transaction that deletes or changes the coupon, and keeps others
-- from doing so; at a higher isolation level than READ COMMITTED, a coupon that has changed since
-- the snapshot is an error (40001).
create or replace function coupond.check_claims()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, coupond, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  v_coupon text;
  v_number integer;
  v_amount integer;
begin
  -- A subquery and not a join: each coupon is one index probe, whatever the planner knows.
  select n.coupon_name, max(n.claim_number)
  into v_coupon, v_number
  from new_claims as n
  group by n.coupon_name
  having max(n.claim_number) <= (
    select c.amount
    from coupons as c
    where c.name = n.coupon_name
    for no key update
  ) is not true;

  if not found then
    return null;
  end if;

  select amount
  into v_amount
  from coupons
  where name = v_coupon;

  if not found then
    raise exception using
      errcode = 'foreign_key_violation',
      message = format('the coupon %L of a claim does not exist', v_coupon);
  end if;

  raise exception using
    errcode = 'foreign_key_violation',
    message = format('the coupon %L has no claim number %s', v_coupon, v_number),
    detail = format('Its amount is %s.', v_amount);
end;
$$;

comment on function coupond.check_claims() is
  'Trigger function of claims. Raises 23503 (foreign_key_violation) unless the coupon of each claim exists and its '
  'amount is not below the claim number.';
