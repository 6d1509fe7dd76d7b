-- A coupon is in partition hashtext(name) & (partitions - 1). The partitions are options of the
-- foreign server "coupond", which the operator maintains (deploy/shards/README.md). The shards
-- check arguments.
create or replace function coupond.coupon_schema_version()
returns integer
language sql
stable
security definer
set search_path = pg_catalog, coupond, pg_temp
as $$
  select {{ .Version }}
$$;

-- The settings of the caller's session on the proxy. Those that storing a claim rests on are the
-- shards' (coupon_shard_problem).
create or replace function coupond.session_problem()
returns text
language sql
stable
as $$
  select
    case
      when pg_catalog.current_setting('client_encoding') <> 'UTF8' then
        pg_catalog.format(
          'client_encoding is %s: names would be stored as other characters; set client_encoding = UTF8',
          pg_catalog.current_setting('client_encoding'))
      when pg_catalog.current_setting('client_min_messages') = 'error' then
        'client_min_messages is error: the warning that a claim has not reached the standby would be hidden; '
        'set client_min_messages = warning'
    end
$$;

create or replace function coupond.create_coupon(p_coupon text, p_amount bigint)
returns coupond.create_status
language plproxy
volatile
security definer
set search_path = pg_catalog, coupond, pg_temp
as $$
  cluster 'coupond';
  run on hashtext(p_coupon);
$$;

create or replace function coupond.get_coupon(p_coupon text)
returns table (name text, amount integer, remaining_amount integer)
language plproxy
volatile
security definer
set search_path = pg_catalog, coupond, pg_temp
as $$
  cluster 'coupond';
  run on hashtext(p_coupon);
$$;

create or replace function coupond.coupon_claimers(p_coupon text, p_after integer, p_upto integer)
returns setof text
language plproxy
volatile
security definer
set search_path = pg_catalog, coupond, pg_temp
as $$
  cluster 'coupond';
  run on hashtext(p_coupon);
$$;

create or replace function coupond.claim_coupons(p_users text[], p_coupon text)
returns coupond.claim_status[]
language plproxy
volatile
security definer
set search_path = pg_catalog, coupond, pg_temp
as $$
  cluster 'coupond';
  run on hashtext(p_coupon);
$$;

create or replace function coupond.claim_coupon(p_user text, p_coupon text)
returns coupond.claim_status
language plproxy
volatile
security definer
set search_path = pg_catalog, coupond, pg_temp
as $$
  cluster 'coupond';
  run on hashtext(p_coupon);
$$;

-- Each shard gets its part of the arrays, in its own transaction. Rows are returned shard by shard;
-- the caller matches them to its claims by position.
create or replace function coupond.claim_batch(p_users text[], p_coupons text[], p_positions integer[])
returns table ("position" integer, status coupond.claim_status)
language plproxy
volatile
security definer
set search_path = pg_catalog, coupond, pg_temp
as $$
  cluster 'coupond';
  split p_users, p_coupons, p_positions;
  run on hashtext(p_coupons);
$$;

create or replace function coupond.locked_coupons(p_coupons text[])
returns setof text
language plproxy
volatile
security definer
set search_path = pg_catalog, coupond, pg_temp
as $$
  cluster 'coupond';
  split p_coupons;
  run on hashtext(p_coupons);
$$;

-- Which partitions share a shard, so that the service can batch claims by shard. A shard is
-- identified by its lowest partition. Only numbers are returned, because a connection string may
-- contain a password. Different connection strings are different connections to PL/Proxy, and so
-- different shards here.
create or replace function coupond.coupon_shards()
returns integer[]
language sql
stable
security definer
set search_path = pg_catalog, coupond, pg_temp
as $$
  select array_agg(m.shard order by m.partition)
  from (
    select
      p.partition,
      min(p.partition) over (partition by p.address) as shard
    from pg_foreign_server as s
    cross join lateral pg_options_to_table(s.srvoptions) as o
    cross join lateral (
      select
        substr(o.option_name, 2)::integer as partition,
        o.option_value as address
      where o.option_name ~ '^p[0-9]{1,5}$'
    ) as p
    where s.srvname = 'coupond'
  ) as m
$$;

create or replace function coupond.coupon_shard_version(p_partition integer)
returns integer
language plproxy
volatile
security definer
set search_path = pg_catalog, coupond, pg_temp
as $$
  cluster 'coupond';
  run on p_partition;
  select coupond.coupon_schema_version();
$$;

create or replace function coupond.coupon_shard_problem(p_partition integer)
returns text
language plproxy
volatile
security definer
set search_path = pg_catalog, coupond, pg_temp
as $$
  cluster 'coupond';
  run on p_partition;
  select coupond.session_problem();
$$;

-- Writes a record to the shard's write-ahead log that has no effect: its commit waits for what
-- every commit on that shard waits for.
create or replace function coupond.coupon_shard_commit(p_partition integer)
returns pg_lsn
language plproxy
volatile
security definer
set search_path = pg_catalog, coupond, pg_temp
as $$
  cluster 'coupond';
  run on p_partition;
  select pg_catalog.pg_logical_emit_message(true, 'coupond', '');
$$;

comment on function coupond.coupon_schema_version() is
  'The schema version of this proxy''s functions. Does not call a shard.';
comment on function coupond.session_problem() is
  'Null, or a sentence that names the first setting of the calling session that breaks a promise of the service. Does '
  'not call a shard.';
comment on function coupond.coupon_shards() is
  'The shard of each partition, from partition 0 on: the lowest partition with the same connection string. '
  'Does not call a shard.';
comment on function coupond.coupon_shard_version(integer) is
  'The schema version of the shard that has p_partition. An answer proves that the shard is reachable.';
comment on function coupond.coupon_shard_problem(integer) is
  'session_problem() on the shard that has p_partition: about the session that the proxy has there.';
comment on function coupond.coupon_shard_commit(integer) is
  'Commits a transaction without effect on the shard that has p_partition. An answer proves that the shard commits.';
comment on function coupond.create_coupon(text, bigint) is
  'Creates p_coupon on the shard that owns it.';
comment on function coupond.get_coupon(text) is
  'Returns p_coupon from the shard that owns it, or no row.';
comment on function coupond.coupon_claimers(text, integer, integer) is
  'One page of the users that have p_coupon, in claim order, from the shard that owns it.';
comment on function coupond.claim_coupons(text[], text) is
  'Claims p_coupon for each of p_users on the shard that owns it.';
comment on function coupond.claim_coupon(text, text) is
  'Claims p_coupon for p_user on the shard that owns it.';
comment on function coupond.claim_batch(text[], text[], integer[]) is
  'Splits the arrays over the shards that own the coupons. Each shard commits its part independently: after '
  'an error, other shards may have committed theirs.';
comment on function coupond.locked_coupons(text[]) is
  'Those of p_coupons that have stock and are locked by another transaction, from the shards that own them.';
