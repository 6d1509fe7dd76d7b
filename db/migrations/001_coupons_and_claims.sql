-- The state: coupons with their stock, and the claims that were granted.
--
-- There is no way down on purpose: a claim is a promise made to a person, and a migration that drops it is no migration.
-- Names and user ids are compared as bytes (collate "C"): no locale decides whether two coupons are the same one, and an
-- upgrade of the operating system's collations cannot corrupt an index.

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

-- The rule for names stands here once: the constraints below and the guards of the functions both ask it. It is plain SQL
-- without options, so that the planner inlines it. ascii() sees whether the first character is printable ASCII, which
-- answers "not blank" for nearly every name without looking at the rest; the list is Unicode's White_Space
-- (PropList.txt), because \s and [[:space:]] know ASCII only under collation "C".
create function public.is_valid_name(p_value text)
returns boolean
language sql
immutable
parallel safe
as $$
  select
    char_length(p_value) between 1 and 255
    and (
      ascii(p_value) between 33 and 126
      or btrim(
        p_value,
        E'\u0009\u000a\u000b\u000c\u000d\u0020\u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005'
        '\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000'
      ) <> ''
    )
$$;

revoke all on function public.is_valid_name(text) from public;

comment on function public.is_valid_name(text) is
  'Whether a coupon''s name or a user''s id has 1 to 255 characters that are not all white space; null for null.';

create table public.coupons (
  name text collate "C" not null,
  amount integer not null,
  remaining_amount integer not null,
  created_at timestamptz not null default clock_timestamp(),
  constraint coupons_pkey
    primary key (name),
  constraint coupons_name_is_valid
    check (public.is_valid_name(name)),
  constraint coupons_amount_is_positive
    check (amount >= 1),
  constraint coupons_remaining_amount_is_within_amount
    check (remaining_amount between 0 and amount)
)
-- A coupon on sale is updated once per crowd. Half-empty pages leave room for the next version beside the old one, so
-- that the update stays heap-only (no index is touched) and the page prunes itself.
with (fillfactor = 50);

comment on table public.coupons is
  'What is on sale: amount pieces from the start, remaining_amount of them not claimed yet.';

create table public.claims (
  coupon_name text collate "C" not null,
  claim_number integer not null,
  user_id text collate "C" not null,
  claimed_at timestamptz not null default clock_timestamp(),
  -- Two claims can never be the same piece of stock; and the claims of a coupon, in claim order, are an index scan.
  constraint claims_pkey
    primary key (coupon_name, claim_number),
  constraint claims_user_has_coupon_once
    unique (user_id, coupon_name),
  constraint claims_coupon_exists
    foreign key (coupon_name)
    references public.coupons (name),
  constraint claims_claim_number_is_positive
    check (claim_number >= 1),
  constraint claims_user_id_is_valid
    check (public.is_valid_name(user_id))
);

comment on table public.claims is
  'Who has which coupon. Claims are never updated, deleted or renumbered.';

comment on column public.claims.claim_number is
  '1, 2, 3 … per coupon, without gaps: which piece of the stock this claim took.';
