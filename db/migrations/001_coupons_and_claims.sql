-- The state: coupons with their stock, and successful claims.
--
-- Down migrations do not exist, because they would drop claims that users already have. Names and
-- user ids are compared as bytes (collate "C"), so no locale decides whether two names are equal,
-- and an upgrade of the operating system's collations cannot corrupt an index.

create type public.claim_status as enum (
  'claimed',
  'already_claimed',
  'out_of_stock',
  'coupon_not_found'
);

comment on type public.claim_status is
  'The outcome of a claim. Outcomes are values; only faults are errors (SQLSTATEs).';

create type public.create_status as enum (
  'created',
  'coupon_exists'
);

comment on type public.create_status is
  'The outcome of creating a coupon.';

create table public.coupons (
  name text collate "C" not null,
  amount integer not null,
  remaining_amount integer not null,
  created_at timestamptz not null default clock_timestamp(),
  constraint coupons_pkey
    primary key (name),
  constraint coupons_name_has_1_to_255_characters
    check (char_length(name) between 1 and 255),
  constraint coupons_amount_is_positive
    check (amount >= 1),
  constraint coupons_remaining_amount_is_within_amount
    check (remaining_amount between 0 and amount)
)
-- A coupon on sale is updated once per batch. Half-empty pages have room for the next version of
-- the row, so that updates are heap-only (no index is touched) and pages are pruned.
with (fillfactor = 50);

comment on table public.coupons is
  'The coupons on sale: amount is the initial stock, remaining_amount is what is not claimed yet.';

create table public.claims (
  coupon_name text collate "C" not null,
  claim_number integer not null,
  user_id text collate "C" not null,
  claimed_at timestamptz not null default clock_timestamp(),
  -- No two claims can take the same unit of stock, and the claims of a coupon, in claim order, are
  -- an index scan.
  constraint claims_pkey
    primary key (coupon_name, claim_number),
  constraint claims_user_has_coupon_once
    unique (user_id, coupon_name),
  constraint claims_coupon_exists
    foreign key (coupon_name)
    references public.coupons (name),
  constraint claims_claim_number_is_positive
    check (claim_number >= 1),
  -- The whole rule for names is public.is_valid_name(), which the functions check. Here, every
  -- INSERT would parse and plan it again (ADR 0009).
  constraint claims_user_id_has_1_to_255_characters
    check (char_length(user_id) between 1 and 255)
);

comment on table public.claims is
  'The successful claims. They are never updated, deleted or renumbered.';

comment on column public.claims.claim_number is
  '1, 2, 3 … per coupon, without gaps: the unit of stock that this claim took.';
