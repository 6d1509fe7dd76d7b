-- Run once on each shard after coupond migrate. Creates the proxy's role and sets the partitions
-- that the shard owns.
--   psql "$SHARD" -v partitions=64 -v owned='{0,4,8,12}' \
--     -c '\set password `cat proxy.password`' -f shard.sql
--
-- PL/Proxy has no working time-outs for connections and queries, so the shard has them. Both are
-- below 0.2 of the service's CLAIM_TIMEOUT (here of its default, 5s), so that the error arrives
-- before the service closes the connection.
-- No statement of this session goes to the server's log, because one contains the password.
set log_statement = none;
set log_min_error_statement = panic;
set log_min_duration_statement = -1;

create role coupon_proxy_login login password :'password' in role coupon_service;
alter role coupon_proxy_login set statement_timeout = '900ms';
alter role coupon_proxy_login set lock_timeout = '700ms';
alter role coupon_proxy_login set idle_in_transaction_session_timeout = '5s';
alter role coupon_proxy_login set tcp_keepalives_idle = 5;
alter role coupon_proxy_login set tcp_keepalives_interval = 2;
alter role coupon_proxy_login set tcp_keepalives_count = 3;

insert into coupond.shard (partitions, owned) values (:partitions, :'owned');
