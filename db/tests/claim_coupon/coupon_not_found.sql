-- A coupon that does not exist cannot be claimed. Names are compared byte by byte.
begin;
select plan(8);

select is(coupond.claim_coupon('ann', 'lamp'), 'coupon_not_found', 'no coupon exists');

select coupond.create_coupon('lamp', 1);
select is(coupond.claim_coupon('ann', 'Lamp'), 'coupon_not_found', 'case is not folded');
select is(coupond.claim_coupon('ann', ' lamp'), 'coupon_not_found', 'leading white space is not trimmed');
select is(coupond.claim_coupon('ann', 'lamp '), 'coupon_not_found', 'trailing white space is not trimmed');
select coupond.create_coupon(U&'caf\00e9', 1);
select is(coupond.claim_coupon('ann', U&'cafe\0301'), 'coupon_not_found', 'Unicode is not normalised');
select is(coupond.claim_coupon('ann', '%'), 'coupon_not_found', 'a name is not a pattern');
select is_empty('select from coupond.claims', 'no claim is stored');
select is((select count(*) from coupond.coupons), 2::bigint, 'no coupon was created');

select * from finish();
rollback;
