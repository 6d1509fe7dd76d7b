-- The locks of the calling transaction are not locks of another one: its own claims do not wait.
begin;
select plan(5);

select coupond.create_coupon('claimed', 3), coupond.claim_coupon('ann', 'claimed');
select coupond.create_coupon('locked', 3), coupond.create_coupon('shared', 3), coupond.create_coupon('changed', 3);
select from coupond.coupons where name = 'locked' for update;
select from coupond.coupons where name = 'shared' for share;
update coupond.coupons
set amount = 4, remaining_amount = 4
where name = 'changed';
savepoint before;
select is_empty(
  $$ select coupond.locked_coupons(array['claimed', 'locked', 'shared', 'changed']) $$,
  'locks of every kind');
select is_empty(
  $$ select coupond.locked_coupons(array['claimed', 'locked', 'shared', 'changed']) $$,
  'a second call');
rollback to before;
select is_empty(
  $$ select coupond.locked_coupons(array['claimed', 'locked', 'shared', 'changed']) $$,
  'after a savepoint');

select is((select amount::integer from coupond.coupons where name = 'changed'), 4, 'the transaction''s changes are kept');
select is(coupond.claim_coupon('bob', 'locked'), 'claimed', 'and it goes on');

select * from finish();
rollback;
