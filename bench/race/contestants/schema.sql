-- The tables and the function of the contestants that do not use ours, as their users would write
-- them: one index fewer than our schema, and no claim numbers.
create schema if not exists contestant;

create table if not exists contestant.coupons (
  name text primary key,
  amount integer not null check (amount >= 1),
  remaining_amount integer not null check (remaining_amount >= 0)
) with (fillfactor = 50);

create table if not exists contestant.claims (
  coupon_name text not null references contestant.coupons (name),
  user_id text not null,
  claimed_at timestamptz not null default clock_timestamp(),
  primary key (coupon_name, user_id)
);

-- The plainest function for a claim: look, lock, insert, decrement.
create or replace function contestant.claim(p_user text, p_coupon text)
returns text
language plpgsql
as $$
declare
  v_remaining integer;
begin
  select remaining_amount into v_remaining from contestant.coupons where name = p_coupon;
  if not found then
    return 'coupon_not_found';
  end if;
  if exists (select from contestant.claims where coupon_name = p_coupon and user_id = p_user) then
    return 'already_claimed';
  end if;
  if v_remaining = 0 then
    return 'out_of_stock';
  end if;

  select remaining_amount into v_remaining from contestant.coupons where name = p_coupon for update;
  if v_remaining = 0 then
    return 'out_of_stock';
  end if;

  insert into contestant.claims (coupon_name, user_id)
  values (p_coupon, p_user)
  on conflict (coupon_name, user_id) do nothing;
  if not found then
    return 'already_claimed';
  end if;

  update contestant.coupons set remaining_amount = remaining_amount - 1 where name = p_coupon;
  return 'claimed';
end;
$$;
