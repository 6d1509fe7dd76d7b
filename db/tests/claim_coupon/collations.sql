-- Names are compared as bytes, whatever collation the arguments bring along, such as that of a
-- column of another table.
begin;
select plan(16);

create collation pg_temp.ignore_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
create temporary table customer (
  id text collate "en-x-icu",
  code text collate pg_temp.ignore_case,
  favourite text collate "de-x-icu"
);
insert into customer values ('zoe', 'lamp', 'lamp');

select is(coupond.create_coupon(code, 9), 'created', 'create_coupon') from customer;
select is(coupond.create_coupon(upper(code), 9), 'created', 'create_coupon, in capitals') from customer;
select is(coupond.claim_coupon(id, 'lamp'), 'claimed', 'claim_coupon with a user from a table') from customer;
select is(coupond.claim_coupon(id, favourite), 'already_claimed', 'and a coupon of another collation') from customer;
select is(coupond.claim_coupon(upper(id) collate pg_temp.ignore_case, code), 'claimed', 'ZOE is another user') from customer;
select is(coupond.claim_coupon(id, initcap(code)), 'coupon_not_found', 'Lamp is another coupon') from customer;
select is(
  coupond.claim_coupons(array[code, upper(code), code], code), '{claimed,claimed,already_claimed}', 'claim_coupons: lamp and LAMP are two users')
from customer;
select results_eq(
  $$
    select b.status
    from customer,
      coupond.claim_batch(
        array[upper(code), code, code, initcap(code)] collate pg_temp.ignore_case,
        array[upper(code), upper(code), initcap(code), code] collate pg_temp.ignore_case, array[1, 2, 3, 4]) as b
  $$,
  $$ values ('claimed'::coupond.claim_status), ('claimed'), ('coupon_not_found'), ('claimed') $$,
  'claim_batch: LAMP and lamp are two users and two coupons, Lamp does not exist');
select results_eq(
  $$ select c.name from customer, coupond.get_coupon(code) as c $$, array['lamp'], 'get_coupon');
select is_empty($$ select from customer, coupond.get_coupon(initcap(code)) as c $$, 'get_coupon, of another coupon');
select results_eq(
  $$ select c::text collate "C" from customer, coupond.coupon_claimers(code, 0, 9) as c $$,
  $$ values ('zoe' collate "C"), ('ZOE'), ('lamp'), ('LAMP'), ('Lamp') $$, 'coupon_claimers');
select is(coupond.is_valid_name(U&'\200B' collate pg_temp.ignore_case), true, 'a character that the collation ignores');
select is(
  coupond.owns_coupon(code), true, 'owns_coupon') from customer;

insert into coupond.shard (partitions, owned)
values (32768, array[hashtext('lamp') & 32767]);
select is(coupond.owns_coupon(code), true, 'owns_coupon, by the hash of the bytes') from customer;
select is(coupond.owns_coupon(upper(code)), false, 'which differs for other letters') from customer;
select lives_ok($$ select coupond.check_shards(array[code]) from customer $$, 'check_shards');

select * from finish();
rollback;
