-- Which coupons this server owns, if coupons are distributed over several servers (deploy/shards).
--
-- It is a table and not a setting because a change applies to every session from its next statement
-- on, which a move of partitions relies on. It has one row and not one per partition because a
-- server can lose its last partition: it then owns none, and must not look like a single server,
-- which owns all.
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
  'Empty on a single server, which owns every coupon. On a shard, one row: the number of partitions, and the '
  'partitions that this server owns. A coupon is in partition hashtext(name) & (partitions - 1), which is '
  'PL/Proxy''s rule.';
