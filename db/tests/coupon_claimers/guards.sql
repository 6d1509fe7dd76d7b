-- An invalid argument raises SQLSTATE 22023 with a message that begins with the argument's name.
begin;
select plan(7);

select coupond.create_coupon('lamp', 1);

select throws_ok(
  $$ select coupond.coupon_claimers(null, 0, 1) $$,
  '22023', 'p_coupon must not be null', 'no coupon');
select throws_ok(
  $$ select coupond.coupon_claimers(' ', 0, 1) $$,
  '22023', 'p_coupon must have 1 to 255 characters that are not all white space', 'a blank coupon');
select throws_ok(
  $$ select coupond.coupon_claimers('lamp', null, 1) $$,
  '22023', 'p_after must be a claim number of 0 or more', 'p_after is null');
select throws_ok(
  $$ select coupond.coupon_claimers('lamp', -1, 1) $$,
  '22023', 'p_after must be a claim number of 0 or more', 'p_after is negative');
select throws_ok(
  $$ select coupond.coupon_claimers('lamp', 0, null) $$,
  '22023', 'p_upto must be a claim number not below p_after', 'p_upto is null');
select throws_ok(
  $$ select coupond.coupon_claimers('lamp', 2, 1) $$,
  '22023', 'p_upto must be a claim number not below p_after', 'p_upto is less than p_after');
select is_empty(
  $$ select coupond.coupon_claimers('lamp', 2147483647, 2147483647) $$,
  'the largest claim number is valid');

select * from finish();
rollback;
