-- The tables of the contestants that do not use ours, as their users would write them: one index
-- fewer than our schema, and no claim numbers.
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
