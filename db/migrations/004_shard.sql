-- Which coupons this server owns, where coupons are spread over several (deploy/shards).
--
-- A table, and no setting: what is written here holds for every session from its next statement on, which a move of
-- partitions relies on. One row, and not one for each partition: a server whose last partition has moved away owns none,
-- and must not be mistaken for a single server, which owns all.
create table public.shard (
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

comment on table public.shard is
  'Empty: a single server, which owns every coupon. Else one row: of so many partitions, those that this server owns. A coupon is in partition hashtext(name) & (partitions - 1), which is PL/Proxy''s rule.';
