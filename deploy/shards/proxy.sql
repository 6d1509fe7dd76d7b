-- On each proxy, once, after coupond migrate --proxy: where each partition is, and as whom the proxy goes there.
--   psql "$PROXY" -v password="$PASSWORD" -v partitions=64 -v shards='{"host=shard0 …","host=shard1 …"}' -f proxy.sql
--
-- The partitions go round: shard 0 has 0, 4, 8 and so on when there are four, as its shard.sql was told.
--
-- PL/Proxy keeps one connection for each string, so partitions of one shard have the same.
select format(
  'create server coupons foreign data wrapper plproxy options (%s)',
  string_agg(format('p%s %L', p, s.addresses[1 + p % cardinality(s.addresses)]), ', ' order by p)
)
from (select :'shards'::text[]) as s (addresses)
cross join generate_series(0, :partitions - 1) as p
\gexec
grant usage on foreign server coupons to coupon_proxy;
create user mapping for coupon_proxy server coupons options (user 'coupon_proxy_login', password :'password');
