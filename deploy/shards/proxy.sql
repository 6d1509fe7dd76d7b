-- Run once on each proxy after coupond migrate --proxy. Sets the shard of each partition, and the
-- role that the proxy uses there.
--   psql "$PROXY" -v partitions=64 -v shards='{"host=shard0 …","host=shard1 …"}' \
--     -c '\set password `cat proxy.password`' -f proxy.sql
--
-- Partition p is on shard p modulo the number of shards: with four shards, shard 0 has 0, 4, 8 and
-- so on. The argument owned of shard.sql must match.
--
-- PL/Proxy opens one connection per connection string, so all partitions of a shard have the same
-- string.
-- No statement of this session goes to the server's log, because one contains the password.
set log_statement = none;
set log_min_error_statement = panic;
set log_min_duration_statement = -1;

select format(
  'create server coupond foreign data wrapper plproxy options (%s)',
  string_agg(format('p%s %L', p, s.addresses[1 + p % cardinality(s.addresses)]), ', ' order by p)
)
from (select :'shards'::text[]) as s (addresses)
cross join generate_series(0, :partitions - 1) as p
\gexec
grant usage on foreign server coupond to coupon_proxy;
create user mapping for coupon_proxy server coupond options (user 'coupon_proxy_login', password :'password');
