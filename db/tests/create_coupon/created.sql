-- A coupon is on sale as soon as it is created, with all of its stock.
begin;
select plan(6);

select is(public.create_coupon('lamp', 3), 'created', 'created');
select results_eq(
  $$ select name, amount, remaining_amount from public.coupons $$,
  $$ values ('lamp' collate "C", 3, 3) $$,
  'it has all of its stock');
select ok((select created_at between now() and clock_timestamp() from public.coupons), 'and says since when it is there');
select is(public.create_coupon('Lamp', 1), 'created', 'names differ byte by byte: by case,');
select is(public.create_coupon('lamp ', 2147483647), 'created', 'by white space; and 2147483647 pieces are allowed');
select is(public.create_coupon('claim', 1), 'created', 'no name is reserved');

select * from finish();
rollback;
