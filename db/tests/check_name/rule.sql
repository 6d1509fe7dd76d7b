-- check_name raises an error that begins with the argument's name, unless the value is a valid name.
begin;
select plan(6);

select lives_ok($$ select coupond.check_name('p_user', 'ann') $$, 'a valid name');
select lives_ok($$ select coupond.check_name('p_user', repeat(U&'\+01F3AB', 255)) $$, '255 characters of four bytes');
select throws_ok(
  $$ select coupond.check_name('p_user', null) $$,
  '22023', 'p_user must not be null', 'null');
select throws_ok(
  $$ select coupond.check_name('p_coupon', '') $$,
  '22023', 'p_coupon must have 1 to 255 characters that are not all white space', 'an empty name');
select throws_ok(
  $$ select coupond.check_name('p_coupon', repeat('x', 256)) $$,
  '22023', 'p_coupon must have 1 to 255 characters that are not all white space', '256 characters');
select throws_ok(
  $$ select coupond.check_name('p_coupon', U&' \3000\2003') $$,
  '22023', 'p_coupon must have 1 to 255 characters that are not all white space', 'only white space');

select * from finish();
rollback;
