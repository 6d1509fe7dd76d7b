-- The first users of the crowd win, as many as there is stock; none after them.
begin;
select plan(5);

select public.create_coupon('lamp', 1000);
create temporary table answer as
  select
    place,
    status
  from unnest(public.claim_coupons(array(select 'user ' || i from generate_series(1, 5000) as i), 'lamp'))
    with ordinality as a (status, place);

select is((select count(*) from answer), 5000::bigint, 'everybody has an answer');
select results_eq(
  $$ select status::text, count(*), min(place), max(place) from answer group by status order by status $$,
  $$ values ('claimed', 1000::bigint, 1::bigint, 1000::bigint), ('out_of_stock', 4000, 1001, 5000) $$,
  'the first thousand have won, nobody else');
select is((select remaining_amount from public.coupons), 0, 'nothing is left');
select ok(
  (select count(*) = 1000 and min(claim_number) = 1 and max(claim_number) = 1000 from public.claims),
  'claim numbers are 1 to 1000');
select is_empty(
  $$ select from public.claims where user_id <> 'user ' || claim_number $$,
  'in the order of the crowd');

select * from finish();
rollback;
