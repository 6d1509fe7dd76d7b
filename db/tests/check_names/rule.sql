-- check_names raises the error of check_name for the first invalid element, with its index.
begin;
select plan(8);

select lives_ok($$ select coupond.check_names('p_users', array['ann', 'bob', 'ann']) $$, 'valid names');
select lives_ok($$ select coupond.check_names('p_users', '{}') $$, 'no names');
select throws_ok(
  $$ select coupond.check_names('p_users', null) $$,
  '22023', 'p_users must not be null', 'no array');
select throws_ok(
  $$ select coupond.check_names('p_users', array[['ann'], ['bob']]) $$,
  '22023', 'p_users must be an array of one dimension', 'two dimensions');
select throws_ok(
  $$ select coupond.check_names('p_users', array['ann', null, '']) $$,
  '22023', 'p_users[2] must not be null', 'a null, before another invalid element');
select throws_ok(
  $$ select coupond.check_names('p_users', array['', null]) $$,
  '22023', 'p_users[1] must have 1 to 255 characters that are not all white space', 'an empty name, before a null');
select throws_ok(
  $$ select coupond.check_names('p_users', array['ann', repeat('x', 256)]) $$,
  '22023', 'p_users[2] must have 1 to 255 characters that are not all white space', '256 characters');
select throws_ok(
  $$ select coupond.check_names('p_users', '[5:6]={ann,null}') $$,
  '22023', 'p_users[2] must not be null', 'the index counts from 1, whatever the lower bound of the array');

select * from finish();
rollback;
