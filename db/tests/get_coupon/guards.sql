-- An invalid argument raises SQLSTATE 22023 with a message that begins with the argument's name.
begin;
select plan(4);

select throws_ok(
  $$ select * from coupond.get_coupon(null) $$,
  '22023', 'p_coupon must not be null', 'no name');
select throws_ok(
  $$ select * from coupond.get_coupon('') $$,
  '22023', 'p_coupon must have 1 to 255 characters that are not all white space', 'an empty name');
select throws_ok(
  $$ select * from coupond.get_coupon(E'\n') $$,
  '22023', 'p_coupon must have 1 to 255 characters that are not all white space', 'a blank name');
select throws_ok(
  $$ select * from coupond.get_coupon(repeat('x', 256)) $$,
  '22023', 'p_coupon must have 1 to 255 characters that are not all white space', 'a name of 256 characters');

select * from finish();
rollback;
