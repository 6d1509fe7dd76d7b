-- An invalid argument raises SQLSTATE 22023 with a message that names the argument and the index.
begin;
select plan(14);

select coupond.create_coupon('lamp', 5);

select throws_ok(
  $$ select coupond.claim_coupons(null, 'lamp') $$,
  '22023', 'p_users must not be null', 'no users');
select throws_ok(
  $$ select coupond.claim_coupons(array['ann'], null) $$,
  '22023', 'p_coupon must not be null', 'no coupon');
select throws_ok(
  $$ select coupond.claim_coupons(array['ann'], U&'\00a0') $$,
  '22023', 'p_coupon must have 1 to 255 characters that are not all white space', 'a blank coupon');
select throws_ok(
  $$ select coupond.claim_coupons(array['ann'], repeat('x', 256)) $$,
  '22023', 'p_coupon must have 1 to 255 characters that are not all white space', 'a coupon of 256 characters');
select throws_ok(
  $$ select coupond.claim_coupons(array['ann', null, ''], 'lamp') $$,
  '22023', 'p_users[2] must not be null', 'a null user: the first invalid index is named');
select throws_ok(
  $$ select coupond.claim_coupons(array['ann', 'bob', ''], 'lamp') $$,
  '22023', 'p_users[3] must have 1 to 255 characters that are not all white space', 'an empty user');
select throws_ok(
  $$ select coupond.claim_coupons(array[E'\t', 'bob'], 'lamp') $$,
  '22023', 'p_users[1] must have 1 to 255 characters that are not all white space', 'a blank user');
select throws_ok(
  $$ select coupond.claim_coupons(array['ann', repeat('x', 256)], 'lamp') $$,
  '22023', 'p_users[2] must have 1 to 255 characters that are not all white space', 'a user of 256 characters');
select throws_ok(
  $$ select coupond.claim_coupons(array[['ann', 'bob'], ['eve', 'joe']], 'lamp') $$,
  '22023', 'p_users must be an array of one dimension', 'a two-dimensional array of users');
select throws_ok(
  $$ select coupond.claim_coupons('[7:8]={ann,NULL}', 'lamp') $$,
  '22023', 'p_users[2] must not be null', 'the index counts from 1, whatever the lower bound of the array');
select throws_ok(
  $$ select coupond.claim_coupons(array['ann', null], 'chair') $$,
  '22023', 'p_users[2] must not be null', 'a coupon that does not exist gets the same error');

select is_empty('select from coupond.claims', 'one invalid user, and no claim of the batch is made');
select is((select remaining_amount from coupond.coupons), 5, 'the stock is unchanged');
select is(coupond.claim_coupons('[7:8]={ann,bob}', 'lamp'), '{claimed,claimed}', 'an array with lower bound 7 is valid');

select * from finish();
rollback;
