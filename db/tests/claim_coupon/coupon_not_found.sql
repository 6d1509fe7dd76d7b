-- A coupon that does not exist cannot be claimed; a name is the same only byte for byte.
begin;
select plan(8);

select is(public.claim_coupon('ann', 'lamp'), 'coupon_not_found', 'there is no coupon at all');

select public.create_coupon('lamp', 1);
select is(public.claim_coupon('ann', 'Lamp'), 'coupon_not_found', 'case is not folded');
select is(public.claim_coupon('ann', ' lamp'), 'coupon_not_found', 'white space before is not trimmed');
select is(public.claim_coupon('ann', 'lamp '), 'coupon_not_found', 'nor white space behind');
select public.create_coupon(U&'caf\00e9', 1);
select is(public.claim_coupon('ann', U&'cafe\0301'), 'coupon_not_found', 'Unicode is not normalised');
select is(public.claim_coupon('ann', '%'), 'coupon_not_found', 'a name is no pattern');
select is_empty('select from public.claims', 'nothing was claimed');
select is((select count(*) from public.coupons), 2::bigint, 'no coupon came into being');

select * from finish();
rollback;
