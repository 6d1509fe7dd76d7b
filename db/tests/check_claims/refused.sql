-- A claim's coupon exists, and its amount is not below the claim number, even if the claim is
-- written by hand.
begin;
select plan(15);

insert into coupond.coupons (name, amount, remaining_amount)
values ('lamp', 3, 3), ('chair', 2147483647, 2147483647);

select lives_ok(
  $$ insert into coupond.claims (coupon_name, claim_number, user_id) values ('lamp', 1, 'ann'), ('lamp', 3, 'eve'), ('chair', 2147483647, 'ann') $$,
  'claim numbers up to the amount');
select throws_ok(
  $$ insert into coupond.claims (coupon_name, claim_number, user_id) values ('lamp', 4, 'joe') $$,
  '23503', 'the coupon ''lamp'' has no claim number 4', 'a claim number above the amount');
select throws_ok(
  $$ insert into coupond.claims (coupon_name, claim_number, user_id) values ('lamp', 2, 'joe'), ('sofa', 1, 'joe') $$,
  '23503', 'the coupon ''sofa'' of a claim does not exist', 'one of several claims');
select throws_ok(
  $$
    insert into coupond.claims (coupon_name, claim_number, user_id)
    select 'lamp', i, 'user ' || i
    from generate_series(4, 1000) as i
  $$,
  '23503', 'the coupon ''lamp'' has no claim number 1000', 'many claims');
select throws_ok(
  $$ insert into coupond.claims (coupon_name, claim_number, user_id) values ('lamp', 4, 'joe') on conflict do nothing $$,
  '23503', null, 'with on conflict');
select throws_ok(
  $$
    with moved as (
      delete from coupond.coupons where name = 'chair' returning name
    )
    insert into coupond.claims (coupon_name, claim_number, user_id)
    select name, 1, 'joe' from moved
  $$,
  '23503', null, 'a coupon that the same statement deletes');
select throws_ok(
  $$ update coupond.claims set claim_number = 4 where claim_number = 3 $$,
  '23503', 'the coupon ''lamp'' has no claim number 4', 'a claim that is renumbered');
select throws_ok(
  $$ update coupond.claims set coupon_name = 'sofa' where claim_number = 3 $$,
  '23503', 'the coupon ''sofa'' of a claim does not exist', 'a claim that is moved');
select lives_ok(
  $$ update coupond.claims set claim_number = 2 where claim_number = 3 $$,
  'a claim may be changed within the rules');
select lives_ok($$ insert into coupond.claims select * from coupond.claims where false $$, 'no claims');

select lives_ok(
  $$
    with made as (
      insert into coupond.coupons (name, amount, remaining_amount) values ('sofa', 1, 0) returning name
    )
    insert into coupond.claims (coupon_name, claim_number, user_id)
    select name, 1, 'ann' from made
  $$,
  'a coupon and its claim in one statement');

-- The writer needs no privilege on the coupons, and cannot change what the check means.
create role writer;
grant usage on schema coupond to writer;
grant insert on coupond.claims to writer;
grant usage on type coupond.positive_integer to writer;
grant usage on schema tap to writer;
set local role writer;
create temporary table coupons (name text, amount integer);
insert into coupons values ('none', 5);
create function pg_temp.always(coupond.positive_integer, coupond.positive_integer) returns boolean language sql as 'select true';
create operator pg_temp.<= (leftarg = coupond.positive_integer, rightarg = coupond.positive_integer, function = pg_temp.always);
set local search_path = pg_temp, tap, pg_catalog;
select lives_ok($$ insert into coupond.claims (coupon_name, claim_number, user_id) values ('lamp', 3, 'sue') $$, 'a writer of claims');
select throws_ok($$ insert into coupond.claims (coupon_name, claim_number, user_id) values ('none', 1, 'sue') $$, '23503', null, 'a table of its own');
select throws_ok($$ insert into coupond.claims (coupon_name, claim_number, user_id) values ('lamp', 4, 'tom') $$, '23503', null, 'an operator of its own');
reset role;

set local session_replication_role = replica;
select lives_ok(
  $$ insert into coupond.claims (coupon_name, claim_number, user_id) values ('nowhere', 1, 'ann') $$,
  'like a foreign key, it does not check what a replica or pg_restore --disable-triggers writes');

select * from finish();
rollback;
