-- The state: coupons with their stock, and the claims that succeeded.
--
-- The schema coupond and its table schema_version exist already: db.Apply creates them. Roles,
-- functions and privileges are in db/functions, which is installed after the migrations on every
-- deploy. Down migrations do not exist, because they would drop claims that users already have.

comment on schema coupond is
  'The coupon system (coupond migrate). Everything it has in this database is in this schema.';

create type coupond.claim_status as enum (
  'claimed',
  'already_claimed',
  'out_of_stock',
  'coupon_not_found'
);

comment on type coupond.claim_status is
  'The outcome of a claim. Outcomes are values; only faults are errors (SQLSTATEs).';

create type coupond.create_status as enum (
  'created',
  'coupon_exists'
);

comment on type coupond.create_status is
  'The outcome of creating a coupon.';

-- Names are compared as bytes (collate "C"), so no locale decides whether two names are equal, and
-- an upgrade of the operating system's collations cannot corrupt an index.
--
-- Domains where possible, because an INSERT or UPDATE parses the CHECK constraints of its table each
-- time, and a session parses those of a domain once (ADR 0020). The names of coupons are plain text,
-- which a trigger checks: the row filter of a publication, by which deploy/shards moves a partition,
-- refuses user-defined types.

create domain coupond.user_id as text collate "C"
  constraint user_id_has_1_to_255_characters
    check (char_length(value) between 1 and 255);

comment on domain coupond.user_id is
  'The id of a user. The functions check the whole rule, is_valid_name().';

create domain coupond.positive_integer as integer
  constraint positive_integer_is_positive
    check (value >= 1);

comment on domain coupond.positive_integer is
  'An integer from 1 to 2147483647.';

create table coupond.coupons (
  name text collate "C" not null,
  amount coupond.positive_integer not null,
  remaining_amount integer not null,
  created_at timestamptz not null default clock_timestamp(),
  constraint coupons_pkey
    primary key (name),
  constraint coupons_remaining_amount_is_within_amount
    check (remaining_amount between 0 and amount)
)
-- A coupon on sale is updated once per batch. Half-empty pages have room for the next version of
-- the row, so that updates are heap-only (no index is touched) and pages are pruned.
with (fillfactor = 50);

comment on table coupond.coupons is
  'The coupons on sale: amount is the whole stock, remaining_amount is what is not claimed yet.';

create table coupond.claims (
  coupon_name text collate "C" not null,
  claim_number coupond.positive_integer not null,
  user_id coupond.user_id not null,
  claimed_at timestamptz not null default clock_timestamp(),
  -- No two claims can take the same unit of stock, and the claims of a coupon, in claim order, are
  -- an index scan.
  constraint claims_pkey
    primary key (coupon_name, claim_number),
  -- Both indexes begin with the coupon, so the claims of a sale are adjacent (ADR 0017).
  constraint claims_user_has_coupon_once
    unique (coupon_name, user_id)
);

comment on table coupond.claims is
  'The successful claims. No function updates, deletes or renumbers them.';

comment on column coupond.claims.claim_number is
  '1, 2, 3 … per coupon, without gaps: the unit of stock that this claim took.';

-- A claim's coupon exists and has that unit of stock. Triggers per statement enforce it, because a
-- foreign key is a query per claim (ADR 0018). Their functions are in db/functions; until these are
-- installed, these two refuse every change.
create function coupond.check_claims()
returns trigger
language plpgsql
as $$
begin
  raise exception 'the functions are not installed: run coupond migrate';
end;
$$;

create function coupond.protect_coupons()
returns trigger
language plpgsql
as $$
begin
  raise exception 'the functions are not installed: run coupond migrate';
end;
$$;

create trigger claims_inserted
  after insert on coupond.claims
  referencing new table as new_claims
  for each statement
  execute function coupond.check_claims();

create trigger claims_updated
  after update on coupond.claims
  referencing new table as new_claims
  for each statement
  execute function coupond.check_claims();

-- The decrement of remaining_amount does not fire it.
create trigger coupons_changed
  after insert or delete or update of name, amount on coupond.coupons
  for each row
  execute function coupond.protect_coupons();

create trigger coupons_truncated
  after truncate on coupond.coupons
  for each statement
  execute function coupond.protect_coupons();

-- Which coupons this server owns, if coupons are distributed over several servers (deploy/shards).
--
-- It is a table and not a setting because a change applies to every session from its next statement
-- on, which a move of partitions relies on. It has one row and not one per partition because a
-- server can lose its last partition: it then owns none, and must not look like a single server,
-- which owns all.
create table coupond.shard (
  singleton boolean not null default true,
  partitions integer not null,
  owned integer[] not null,
  constraint shard_pkey
    primary key (singleton),
  constraint shard_has_one_row
    check (singleton),
  constraint shard_partitions_is_within_1_and_32768
    check (partitions between 1 and 32768),
  constraint shard_partitions_is_a_power_of_two
    check (partitions & (partitions - 1) = 0),
  constraint shard_owned_is_within_partitions
    check (
      array_position(owned, null) is null
      and 0 <= all (owned)
      and partitions > all (owned)
    )
);

comment on table coupond.shard is
  'Empty on a single server, which owns every coupon. On a shard, one row: the number of partitions, and the '
  'partitions that this server owns. A coupon is in partition hashtext(name) & (partitions - 1), which is '
  'PL/Proxy''s rule.';
