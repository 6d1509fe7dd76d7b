-- The rivals' own two tables, as their fans would make them: one index fewer than ours, and no claim numbers.
create schema if not exists rival;

create table if not exists rival.coupons (
  name text primary key,
  amount integer not null check (amount >= 1),
  remaining_amount integer not null check (remaining_amount >= 0)
) with (fillfactor = 50);

create table if not exists rival.claims (
  coupon_name text not null references rival.coupons (name),
  user_id text not null,
  claimed_at timestamptz not null default clock_timestamp(),
  primary key (coupon_name, user_id)
);
