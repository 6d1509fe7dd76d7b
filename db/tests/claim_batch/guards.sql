-- An invalid argument raises SQLSTATE 22023 with a message that names the argument and the index.
begin;
select plan(20);

select coupond.create_coupon('lamp', 5);

select throws_ok(
  $$ select coupond.claim_batch(null, array['lamp'], array[1]) $$,
  '22023', 'p_users must not be null', 'no users');
select throws_ok(
  $$ select coupond.claim_batch(array['ann'], null, array[1]) $$,
  '22023', 'p_coupons must not be null', 'no coupons');
select throws_ok(
  $$ select coupond.claim_batch(array['ann'], array['lamp'], null) $$,
  '22023', 'p_positions must be an array of one dimension without nulls', 'no positions');
select throws_ok(
  $$ select coupond.claim_batch(array['ann', null], array['lamp', 'lamp'], array[1, 2]) $$,
  '22023', 'p_users[2] must not be null', 'a null among the users');
select throws_ok(
  $$ select coupond.claim_batch(array['ann', 'bob'], array['lamp', null], array[1, 2]) $$,
  '22023', 'p_coupons[2] must not be null', 'a null among the coupons');
select throws_ok(
  $$ select coupond.claim_batch(array['ann', 'bob'], array['lamp', 'lamp'], array[1, null]) $$,
  '22023', 'p_positions must be an array of one dimension without nulls', 'a null among the positions');
select throws_ok(
  $$ select coupond.claim_batch(array['ann', ''], array['lamp', 'lamp'], array[1, 2]) $$,
  '22023', 'p_users[2] must have 1 to 255 characters that are not all white space', 'an empty user');
select throws_ok(
  $$ select coupond.claim_batch(array['ann', 'bob'], array['', 'lamp'], array[1, 2]) $$,
  '22023', 'p_coupons[1] must have 1 to 255 characters that are not all white space', 'an empty coupon');
select throws_ok(
  $$ select coupond.claim_batch(array[U&'\2028'], array['lamp'], array[1]) $$,
  '22023', 'p_users[1] must have 1 to 255 characters that are not all white space', 'a blank user');
select throws_ok(
  $$ select coupond.claim_batch(array['ann'], array[repeat('x', 256)], array[1]) $$,
  '22023', 'p_coupons[1] must have 1 to 255 characters that are not all white space', 'a coupon of 256 characters');
select throws_ok(
  $$ select coupond.claim_batch(array[['ann', 'bob']], array['lamp', 'lamp'], array[1, 2]) $$,
  '22023', 'p_users must be an array of one dimension', 'a two-dimensional array of users');
select throws_ok(
  $$ select coupond.claim_batch(array['ann', 'bob'], array[['lamp', 'lamp']], array[1, 2]) $$,
  '22023', 'p_coupons must be an array of one dimension', 'a two-dimensional array of coupons');
select throws_ok(
  $$ select coupond.claim_batch(array['ann', 'bob'], array['lamp', 'lamp'], array[[1, 2]]) $$,
  '22023', 'p_positions must be an array of one dimension without nulls', 'a two-dimensional array of positions');
select throws_ok(
  $$ select coupond.claim_batch(array['ann'], array['lamp', 'lamp'], array[1, 2]) $$,
  '22023', 'p_users, p_coupons and p_positions must have the same length', 'too few users');
select throws_ok(
  $$ select coupond.claim_batch(array['ann', 'bob'], array['lamp'], array[1, 2]) $$,
  '22023', 'p_users, p_coupons and p_positions must have the same length', 'too few coupons');
select throws_ok(
  $$ select coupond.claim_batch(array['ann', 'bob'], array['lamp', 'lamp'], array[1]) $$,
  '22023', 'p_users, p_coupons and p_positions must have the same length', 'too few positions');
select throws_ok(
  $$ select coupond.claim_batch('{}', '{}', array[1]) $$,
  '22023', 'p_users, p_coupons and p_positions must have the same length', 'a position without a claim');
select throws_ok(
  $$ select coupond.claim_batch(array['ann', 'bob'], array['lamp', 'chair'], array[[1], [2]]) $$,
  '22023', 'p_positions must be an array of one dimension without nulls', 'a coupon that does not exist gets the same error');

select is_empty('select from coupond.claims', 'one invalid claim, and no claim of the call is made');
select is((select remaining_amount from coupond.coupons), 5, 'the stock is unchanged');

select * from finish();
rollback;
