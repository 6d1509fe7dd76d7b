-- Claims a coupon for a user: look, lock, insert, decrement.
--
-- Rejections return after the look, without a lock: stock never grows and claims are never deleted,
-- so "sold out" and "already claimed" stay true. Only a claim that may succeed takes the row lock,
-- and reads the stock again under it. Names compare as bytes (collate "C").
create or replace function coupond.claim_coupon(p_user text, p_coupon text)
returns coupond.claim_status
language plpgsql
security definer
set search_path = pg_catalog, coupond, pg_temp
-- Otherwise every call plans its statements anew, or scans a table that was small once (ADR 0010).
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_sort = off
as $$
declare
  v_amount integer;
  v_remaining integer;
  v_has_claim boolean;
begin
  perform check_name('p_user', p_user), check_name('p_coupon', p_coupon), check_shard(p_coupon);

  -- 1. Look.
  select remaining_amount, exists (select from find_claim(p_coupon, p_user)) into v_remaining, v_has_claim
  from coupons
  where name = p_coupon collate "C";
  if not found then
    return 'coupon_not_found';
  elsif v_has_claim then
    return 'already_claimed';
  elsif v_remaining = 0 then
    return 'out_of_stock';
  end if;

  -- 2. Lock. Concurrent claims of this coupon wait here for the one that holds the lock.
  select amount, remaining_amount into v_amount, v_remaining
  from coupons
  where name = p_coupon collate "C"
  for no key update;
  if not found then
    return 'coupon_not_found'; -- deleted by hand
  elsif v_remaining = 0 then -- sold out while this claim waited, perhaps to the same user
    return case when exists (select from find_claim(p_coupon, p_user)) then 'already_claimed' else 'out_of_stock' end;
  end if;

  -- 3. Insert. The claim number is the next unit of stock.
  insert into claims (coupon_name, claim_number, user_id)
  values (p_coupon, v_amount - v_remaining + 1, p_user)
  on conflict (coupon_name, user_id) do nothing;
  if not found then
    return 'already_claimed'; -- by a concurrent call for the same user
  end if;

  -- 4. Decrement.
  update coupons
  set remaining_amount = remaining_amount - 1
  where name = p_coupon collate "C";
  return 'claimed';
end;
$$;

comment on function coupond.claim_coupon(text, text) is
  'Claims p_coupon for p_user: locks the coupon, inserts the claim and decrements the stock atomically. '
  'Returns claimed, already_claimed, out_of_stock or coupon_not_found. A bad argument raises SQLSTATE '
  '22023 and changes nothing.';
