-- A new coupon has its whole stock.
begin;
select plan(6);

select is(coupond.create_coupon('lamp', 3), 'created', 'created');
select results_eq(
  $$ select name, amount::integer, remaining_amount from coupond.coupons $$,
  $$ values ('lamp' collate "C", 3, 3) $$,
  'the remaining amount is the amount');
select ok((select created_at between now() and clock_timestamp() from coupond.coupons), 'created_at is set');
select is(coupond.create_coupon('Lamp', 1), 'created', 'names differ byte by byte: by case,');
select is(coupond.create_coupon('lamp ', 2147483647), 'created', 'by white space; and an amount of 2147483647 is allowed');
select is(coupond.create_coupon('claim', 1), 'created', 'no name is reserved');

select * from finish();
rollback;
