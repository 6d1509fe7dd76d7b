-- An invalid argument raises SQLSTATE 22023 with a message that names the argument and the index.
begin;
select plan(5);

select throws_ok(
  $$ select coupond.locked_coupons(null) $$,
  '22023', 'p_coupons must not be null', 'no array');
select throws_ok(
  $$ select coupond.locked_coupons(array['lamp', null]) $$,
  '22023', 'p_coupons[2] must not be null', 'a null among the coupons');
select throws_ok(
  $$ select coupond.locked_coupons(array['lamp', '']) $$,
  '22023', 'p_coupons[2] must have 1 to 255 characters that are not all white space', 'an empty name');
select throws_ok(
  $$ select coupond.locked_coupons(array[repeat('x', 256)]) $$,
  '22023', 'p_coupons[1] must have 1 to 255 characters that are not all white space', 'a name of 256 characters');
select throws_ok(
  $$ select coupond.locked_coupons(array[['lamp', 'chair']]) $$,
  '22023', 'p_coupons must be an array of one dimension', 'a two-dimensional array');

select * from finish();
rollback;
