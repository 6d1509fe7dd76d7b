-- A coupon is in partition hashtext(name) & (partitions - 1); the partitions are the options of the server "coupons", which
-- is the operator's (deploy/shards/README.md). The guards are the shards' own.
create or replace function public.coupon_schema_version()
returns integer
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select {{ .version }}
$$;

create or replace function public.create_coupon(p_coupon text, p_amount bigint)
returns public.create_status
language plproxy
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  cluster 'coupons';
  run on hashtext(p_coupon);
$$;

create or replace function public.get_coupon(p_coupon text)
returns table (name text, amount integer, remaining_amount integer)
language plproxy
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  cluster 'coupons';
  run on hashtext(p_coupon);
$$;

create or replace function public.coupon_claimers(p_coupon text, p_after integer, p_upto integer)
returns setof text
language plproxy
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  cluster 'coupons';
  run on hashtext(p_coupon);
$$;

create or replace function public.claim_coupons(p_users text[], p_coupon text)
returns public.claim_status[]
language plproxy
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  cluster 'coupons';
  run on hashtext(p_coupon);
$$;

create or replace function public.claim_coupon(p_user text, p_coupon text)
returns public.claim_status
language plproxy
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  cluster 'coupons';
  run on hashtext(p_coupon);
$$;

-- Each shard gets its part of the arrays, in one transaction of its own. The rows come shard by shard: whoever asks knows
-- his claims by their positions.
create or replace function public.claim_batch(p_users text[], p_coupons text[], p_positions integer[])
returns table ("position" integer, status public.claim_status)
language plproxy
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  cluster 'coupons';
  split p_users, p_coupons, p_positions;
  run on hashtext(p_coupons);
$$;

-- Which partitions share a shard, for the service to keep its claims apart by: a shard goes by the lowest of its partitions. It
-- tells numbers alone: a connection string may hold a password. Strings that are not equal are two connections to PL/Proxy,
-- and so two shards here.
create or replace function public.coupon_shards()
returns integer[]
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
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
    where s.srvname = 'coupons'
  ) as m
$$;

create or replace function public.coupon_shard_version(p_partition integer)
returns integer
language plproxy
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  cluster 'coupons';
  run on p_partition;
  select public.coupon_schema_version();
$$;

-- A record of the shard's write-ahead log that nobody reads: it changes nothing, and its commit waits for what all commits there
-- wait for.
create or replace function public.coupon_shard_commit(p_partition integer)
returns pg_lsn
language plproxy
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  cluster 'coupons';
  run on p_partition;
  select pg_catalog.pg_logical_emit_message(true, 'coupond', '');
$$;

comment on function public.coupon_schema_version() is
  'The version of the schema whose functions this proxy has. It asks no shard.';
comment on function public.coupon_shards() is
  'For each partition, from 0 on, the shard that has it: the lowest of the partitions whose connection string is the same. It asks no shard.';
comment on function public.coupon_shard_version(integer) is
  'On the shard that has p_partition: the version of its schema. Whoever gets an answer knows that the shard is there.';
comment on function public.coupon_shard_commit(integer) is
  'On the shard that has p_partition: commits something that changes nothing. Whoever gets an answer knows that commits come back there.';
comment on function public.create_coupon(text, bigint) is
  'On the shard that owns p_coupon: creates it.';
comment on function public.get_coupon(text) is
  'On the shard that owns p_coupon: its amount and what remains of it.';
comment on function public.coupon_claimers(text, integer, integer) is
  'On the shard that owns p_coupon: who has it, a page of claim numbers.';
comment on function public.claim_coupons(text[], text) is
  'On the shard that owns p_coupon: claims one piece of it for each of p_users.';
comment on function public.claim_coupon(text, text) is
  'On the shard that owns p_coupon: claims one piece of it for p_user.';
comment on function public.claim_batch(text[], text[], integer[]) is
  'Splits the arrays over the shards that own the coupons. Each shard commits its part by itself: after an error, others may have committed theirs.';

do $$
declare
  v_function regprocedure;
begin
  foreach v_function in array array[
    'public.coupon_schema_version()',
    'public.coupon_shards()',
    'public.coupon_shard_version(integer)',
    'public.coupon_shard_commit(integer)',
    'public.create_coupon(text, bigint)',
    'public.get_coupon(text)',
    'public.coupon_claimers(text, integer, integer)',
    'public.claim_coupons(text[], text)',
    'public.claim_coupon(text, text)',
    'public.claim_batch(text[], text[], integer[])'
  ]::regprocedure[] loop
    execute format('alter function %s owner to coupon_proxy', v_function);
    execute format('revoke all on function %s from public', v_function);
    execute format('grant execute on function %s to coupon_service', v_function);
  end loop;
end;
$$;
