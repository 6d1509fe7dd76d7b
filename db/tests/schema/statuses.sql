-- Outcomes are values: the labels of two enums, in the order of their precedence.
begin;
select plan(4);

select enum_has_labels('coupond', 'claim_status', array['claimed', 'already_claimed', 'out_of_stock', 'coupon_not_found']);
select enum_has_labels('coupond', 'create_status', array['created', 'coupon_exists']);
select enums_are('coupond', array['claim_status', 'create_status'], 'other enums do not exist');
select is_empty(
  $$
    select
      p.oid::regprocedure
    from pg_proc as p
    where p.pronamespace = 'coupond'::regnamespace
      and obj_description(p.oid, 'pg_proc') is null
  $$,
  'every function has a comment');

select * from finish();
rollback;
