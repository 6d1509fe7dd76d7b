reset role;
reset all;
do $$ begin perform pg_catalog.pg_advisory_unlock({{template "lock"}}); end; $$;
