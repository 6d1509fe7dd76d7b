-- find_claim returns one row if the user has the coupon, else none.
begin;
select plan(7);

select coupond.create_coupon('lamp', 5), coupond.create_coupon('Lamp', 5);
select coupond.claim_coupon('ann', 'lamp'), coupond.claim_coupon('bob', 'lamp'), coupond.claim_coupon('eve', 'Lamp');

select results_eq($$ select coupond.find_claim('lamp', 'ann') $$, array[true], 'a claim');
select results_eq($$ select coupond.find_claim('lamp', 'bob') $$, array[true], 'another claim of the coupon');
select is_empty($$ select coupond.find_claim('lamp', 'eve') $$, 'a user of another coupon');
select is_empty($$ select coupond.find_claim('lamp', 'Ann') $$, 'names are compared as bytes');
select is_empty($$ select coupond.find_claim('lamp', 'an') $$, 'the beginning of a user id');
select is_empty($$ select coupond.find_claim('none', 'ann') $$, 'a coupon that does not exist');

-- The planner inlines it, so its plan is part of the caller's.
create function pg_temp.plan_of(p_query text) returns setof text language plpgsql as $$
begin
  return query execute 'explain (costs off) ' || p_query;
end
$$;
set local enable_sort = off;
set local enable_seqscan = off;
select matches(
  (select string_agg(line, ' ') from pg_temp.plan_of('select exists (select from coupond.find_claim(''lamp'', ''ann''))') as line),
  'Index (Only )?Scan using claims_user_has_coupon_once', 'the planner inlines it and probes the unique index');

select * from finish();
rollback;
