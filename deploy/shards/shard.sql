-- Run once on each shard after coupond migrate. Creates the proxy's role and sets the partitions
-- that the shard owns.
--   psql "$SHARD" -v password="$PASSWORD" -v partitions=64 -v owned='{0,4,8,12}' -f shard.sql
--
-- PL/Proxy has no working time-outs for connections and queries, so the shard has them. Both are
-- below 0.2 of the service's CLAIM_TIMEOUT (here of its default, 5s), so that the error arrives
-- before the service closes the connection.
create role coupon_proxy_login login password :'password' in role coupon_service;
alter role coupon_proxy_login set statement_timeout = '900ms';
alter role coupon_proxy_login set lock_timeout = '700ms';
alter role coupon_proxy_login set idle_in_transaction_session_timeout = '5s';
alter role coupon_proxy_login set tcp_keepalives_idle = 5;
alter role coupon_proxy_login set tcp_keepalives_interval = 2;
alter role coupon_proxy_login set tcp_keepalives_count = 3;

insert into coupond.shard (partitions, owned) values (:partitions, :'owned');
