-- Claims a coupon for a user: look, take a unit of stock, insert.
--
-- Rejections return after the look, without a lock: stock never grows and claims are never deleted,
-- so "sold out" and "already claimed" stay true. The update that takes the unit locks the row until
-- the commit, and works on the newest stock. Names compare as bytes (collate "C").
create or replace function coupond.claim_coupon(p_user text, p_coupon text)
returns coupond.claim_status
language plpgsql
security definer
set search_path = pg_catalog, coupond, pg_temp
-- Plan each statement once, by index, even if its table is small at that moment (ADR 0010).
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_sort = off
as $$
declare
  v_remaining integer;
  v_has_claim boolean;
  v_is_shard boolean;
  v_number integer;
begin
  if is_valid_name(p_user) is not true then
    perform check_name('p_user', p_user);
  end if;

  -- 1. Look. A coupon that exists has a valid name.
  select remaining_amount, exists (select from find_claim(p_coupon, p_user)), exists (select from shard)
  into v_remaining, v_has_claim, v_is_shard
  from coupons
  where name = p_coupon collate "C";
  if not found or v_is_shard then
    perform check_name('p_coupon', p_coupon), check_shard(p_coupon);
  end if;
  if v_remaining is null then
    return 'coupon_not_found';
  elsif v_has_claim then
    return 'already_claimed';
  elsif v_remaining = 0 then
    return 'out_of_stock';
  end if;

  -- 2. Take a unit of stock. Concurrent claims of this coupon wait here for the one with the lock.
  update coupons
  set remaining_amount = remaining_amount - 1
  where name = p_coupon collate "C" and remaining_amount > 0
  returning amount - remaining_amount into v_number;
  if not found then
    return claim_coupon(p_user, p_coupon); -- sold out or deleted since the look: look again
  end if;

  -- 3. Insert. If a concurrent call has claimed for the same user since the look, give the unit back.
  insert into claims (coupon_name, claim_number, user_id)
  values (p_coupon, v_number, p_user)
  on conflict (coupon_name, user_id) do nothing;
  if not found then
    update coupons set remaining_amount = remaining_amount + 1 where name = p_coupon collate "C";
    return 'already_claimed';
  end if;
  return 'claimed';
end;
$$;

comment on function coupond.claim_coupon(text, text) is
  'Claims p_coupon for p_user: decrements the stock, which locks the coupon, and inserts the claim atomically. '
  'Returns claimed, already_claimed, out_of_stock or coupon_not_found. A bad argument raises SQLSTATE '
  '22023 and changes nothing.';
